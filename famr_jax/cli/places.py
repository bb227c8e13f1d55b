"""Where a run's results go: a directory a configuration, filled at once when the run is whole."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from famr_jax.cli.bench import Bench
from famr_jax.cli.record import PLACES
from famr_jax.files import discard, plain, usable_directory

NEW = ".new"
"""The directory in which a run gathers what it will leave."""


def settled(bench: Bench, config: Mapping[str, Any]) -> Bench:
    """The bench with the directory of its results, as `directory` chooses it.

    Args:
        bench: As `open_bench` gives it.
        config: The whole configuration, as the JSON will have it.

    Raises:
        ValueError: The directory or the store cannot be written to, or holds another
            configuration.
    """
    usable_directory("cache", bench.flags.cache)
    return replace(bench, out=directory(bench.flags.out, config))


def directory(given: Path | None, config: Mapping[str, Any]) -> Path:
    """The directory of a run's results: the given one, or one of this configuration's own.

    The default is named by the experiment and a hash of the configuration, so that no other
    configuration has it.

    Raises:
        ValueError: It cannot be written to, or holds another configuration.
    """
    text = json.dumps(_identity(config), sort_keys=True)
    own = f"{config['experiment']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    out = usable_directory("out", given or Path("runs") / own)
    refuse_another(out, config)
    return out


def refuse_another(out: Path, config: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if a directory holds the results of another configuration."""
    path = out / "metrics.json"
    if not path.exists():
        return
    try:
        there = _identity(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        there = {}
    here = _identity(config)
    for name in [*here, *there]:
        if name not in there or name not in here or there[name] != here[name]:
            found, wanted = (_shown(name, each) for each in (there, here))
            raise ValueError(
                f"`out` must be empty or of this configuration, got {out} with {found} instead "
                f"of {wanted}: give another --out, or none for one of its own."
            )


@contextlib.contextmanager
def filled(bench: Bench, config: Mapping[str, Any]) -> Iterator[Bench]:
    """A bench that writes into a new directory, whose files take their places at the end.

    What an earlier run of the same configuration left stays until then; if this one fails or is
    killed, it stays altogether. Runs of one configuration side by side wait for one another.

    Raises:
        ValueError: The directory holds another configuration by now.
    """
    out = bench.out
    with bench.store.alone(out):
        refuse_another(out, config)
        new = out / NEW
        existed = out.exists()
        if jax.process_index() == 0:
            discard(new)
        try:
            yield replace(bench, out=new)
            if jax.process_index() == 0:
                _move(new, out)
        finally:
            if jax.process_index() == 0 and new.exists():
                discard(new)
                if not existed:
                    with contextlib.suppress(OSError):
                        out.rmdir()


def _move(new: Path, out: Path) -> None:
    """Everything in `new` in the place of what has its name in `out`; the JSON comes last."""
    for path in sorted(new.iterdir(), key=lambda path: path.name == "metrics.json"):
        if path.is_dir():
            discard(out / path.name)
        path.replace(out / path.name)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to have one directory: all but where things lie."""
    where = (*PLACES, "data_dir")
    flags = {name: value for name, value in config["flags"].items() if name not in where}
    parts = {"experiment": config["experiment"], **flags, **config.get("made_of", {})}
    return json.loads(json.dumps(plain(parts)))


def _shown(name: str, among: Mapping[str, Any]) -> str:
    if name not in among:
        return f"no {name}"
    value = among[name]
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
