"""Audits a model by its arrays or its checkpoint, beside the one before and retrained ones."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from famr_jax import audit, checkpoint
from famr_jax.audit.page import check_out
from famr_jax.cli import flags as cli_flags
from famr_jax.cli import record
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags, Count, Seed
from famr_jax.cli.opening import open_bench
from famr_jax.files import plain, usable_directory
from famr_jax.forget import ForgetSet
from famr_jax.progress import Clock
from famr_jax.store import FailedRunError
from famr_jax.types import Params

ROWS = {
    "before": "all training images",
    "after": "this forget set",
    "oracle": "the training images without this forget set",
}
OF_ARRAYS = ("before", "after", "oracle", "out")
"""Flags that count for arrays."""


@dataclass(frozen=True)
class Flags:
    """What to audit: .npz files of arrays, or checkpoints of this library."""

    before: Path
    """The trained model: a .npz of logits, labels, split, forget (and ids, features), or a
    checkpoint's directory."""
    after: Path
    """The model that is said to have forgotten, of the same kind."""
    oracle: tuple[Path, ...] = ()
    """Models retrained without the forget set; a verdict needs 8."""
    out: Path = Path("audit.html")
    """The page; its JSON lies beside it."""
    forget: str | None = None
    """Of checkpoints: what was to be forgotten, as class:3 or random:0.05 or index:FILE."""
    dataset: str = "digits"
    """Of checkpoints: the data, as for `forget`."""
    data_dir: Path | None = None
    """Of checkpoints: where TFDS keeps its data sets."""
    classes: int | None = None
    """Of checkpoints: the first k classes only."""
    image_size: Count | None = None
    """Of checkpoints: side of what the model sees."""
    stream: bool = False
    """Of checkpoints: read images from disk as they are needed."""
    model: str = "vit_mu/2"
    """Of checkpoints: the model, as for `forget`."""
    seed: Seed = 0
    """Of checkpoints: what drew the examples of random:SHARE."""


def run(flags: Flags) -> audit.Audit:
    """Audits, writes the page and its JSON, and prints the verdict.

    Raises:
        ValueError: A flag out of range, or what `audit` refuses; nothing is written then.
        FailedRunError: The model left the band of 8 oracles or more.
    """
    cli_flags.check(flags)
    check_out(flags.out)
    usable_directory("out", flags.out.parent)
    clock = Clock()
    given = (flags.before, flags.after, *flags.oracle)
    if len({path.is_dir() for path in given}) > 1:
        kinds = ", ".join(f"{p.name} a {'directory' if p.is_dir() else 'file'}" for p in given)
        rule = "must be all checkpoints or all .npz files"
        raise ValueError(f"`before`, `after` and `oracle` {rule}, got {kinds}.")
    function = _of_checkpoints if flags.before.is_dir() else _of_arrays
    found = clock.show("audit", lambda: function(flags))
    config = record.describe("audit", "python -m famr_jax audit", flags, _silent(flags))
    if not flags.before.is_dir():  # what reads checkpoints was not read
        config["flags"] = {name: config["flags"][name] for name in OF_ARRAYS}
    config = plain(config | {"seconds": clock.seconds()})
    end = record.made({"config": config, "results": {}})
    name = flags.after.name.encode(errors="replace").decode()  # of a name that is not UTF-8
    audit.write(found, flags.out, name=name, config=config, end=end)
    told = f"{name}: {found.verdict}. {found.words}"
    print(f"report: {flags.out}")
    if found.verdict == "left the band":
        raise FailedRunError(told)
    print(told)
    return found


def _silent(flags: Flags) -> Flags:
    """What the flags are where the command line says nothing; two of them it has to say."""
    return Flags(before=flags.before / "not said", after=flags.after / "not said")


def _of_arrays(flags):
    if flags.forget is not None:
        raise ValueError(f"`forget` must be left out where arrays hold it, got {flags.forget!r}.")
    return audit.arrays(flags.before, flags.after, flags.oracle)


def _of_checkpoints(flags):
    if flags.forget is None:
        raise ValueError("`forget` must be given with checkpoints, as class:3, got nothing.")
    bench = open_bench(
        BenchFlags(
            dataset=flags.dataset,
            data_dir=flags.data_dir,
            classes=flags.classes,
            image_size=flags.image_size,
            stream=flags.stream,
            model=flags.model,
            seed=flags.seed,
        ),
        streams=True,
    )
    (gone,) = bench.forget_sets([flags.forget])
    roles = ["before", "after", *["oracle"] * len(flags.oracle)]
    before, after, *oracles = (
        _weights(bench, gone, role, path)
        for role, path in zip(roles, (flags.before, flags.after, *flags.oracle), strict=True)
    )
    return audit.checkpoints(bench.model, before, after, oracles, bench.train, bench.test, gone)


def _weights(bench: Bench, gone: ForgetSet, role: str, path: Path) -> Params:
    """The weights of a checkpoint, unless its record says that it is no model of this role."""
    like = jax.eval_shape(bench.model.init, bench.keys.init)
    found = checkpoint.load(path, like, expect=bench.identity())
    everything = np.ones(len(gone.mask), bool)
    rows = {"before": everything, "after": gone.mask, "oracle": ~gone.mask}[role]
    wanted = plain(bench.config(rows))
    if role == "after" and "unlearn" not in found.config:
        return found.tree  # retrained, perhaps, or the trained model itself: it is what is asked
    for key, what in (("data", "these images"), ("mask", ROWS[role])):
        if found.config.get(key, wanted[key]) != wanted[key]:
            raise ValueError(f"`{role}` {path} must be made of {what}, by its record it was not.")
    return found.tree
