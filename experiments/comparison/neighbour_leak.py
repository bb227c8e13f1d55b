"""Does a forgotten class leak to attacks that know retrained models, and does tilting mend it?

Claims (TRW and MIA-NN, arXiv 2506.20893): retrained models send a forgotten class to its
look-alikes and unlearners do not; tilted reweighting leaves a smaller gap to retraining than the
best method before it, by 46 % under the nearest-neighbour attack and by 19 % under U-LiRA. Trains
several models on everything and as many without each class, lets every one of the former unlearn it
by every method, each at the smallest step of a grid that takes For-Acc of the first model to chance
(which needs no oracle), and attacks all. Writes metrics.json and report.html.

    python -m experiments.comparison.neighbour_leak --dataset cifar100 --data-dir DIR --classes 10

Resumable by model and method. LATER
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from experiments.comparison import leaks
from experiments.comparison.leaks_page import claims, headline, page
from experiments.harness.run import Experiment, main
from famr_jax import metrics
from famr_jax.cli import ensembles
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, Positive, make_optimizer
from famr_jax.cli.measured import at_chance
from famr_jax.forget import ForgetSet
from famr_jax.methods import BY_NAME
from famr_jax.types import Params, Unlearner

TILTED = {f"trw, beta {beta:g}": beta for beta in (1, 3, 10)}
METHODS = {
    **{
        name: BY_NAME[name]
        for name in ("finetune", "random_labels", "gradient_ascent", "salun", "famr", "delete")
    },
    **{name: partial(BY_NAME["trw"], beta=float(beta)) for name, beta in TILTED.items()},
}
"""DELETE's target is that of TRW at beta 0, on the forget set alone."""
LEAST = 2 * leaks.LEAST_MODELS
"""Oracles, which the null deals to two sides."""


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:0", "class:3", "class:8")
    """Classes to forget, each on its own."""
    members: Count = 8
    """Models trained on everything, and as many without each class."""
    methods: tuple[str, ...] = ()
    """Names of methods; none for all."""
    lrs: Annotated[tuple[Positive, ...], Ascending()] = (1e-4, 3e-4, 1e-3, 3e-3)
    """Steps of Adam to try, ascending."""
    epochs: Count = 10
    """Epochs of methods that see the forget set alone."""
    retain_epochs: Count = 4
    """Epochs of those that pass over the retained set: a fifth of the training's."""
    bench: BenchFlags = field(
        default_factory=partial(
            BenchFlags, model="vit_mu/8", train_epochs=20, train_lr=2e-3, batch_size=50
        )
    )


SMALL = Flags(
    forget=("class:3",),
    members=LEAST,
    methods=("famr", "delete", "trw, beta 10"),
    lrs=(1e-2,),
    epochs=2,
    retain_epochs=2,
    bench=BenchFlags(model="mlp_8", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for too few models, no class, or a method of another name."""
    if flags.members < LEAST:
        raise ValueError(f"`members` must be at least {LEAST}, got {flags.members}.")
    for spec in flags.forget:
        if not spec.startswith("class:"):
            raise ValueError(f"`forget` must be classes, as class:3, got {spec!r}.")
    for name in flags.methods:
        if name not in METHODS:
            raise ValueError(f"`methods` must be among {'; '.join(METHODS)}, got {name!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A case for each class: the oracles, doing nothing, and a row for each method."""
    everything = np.ones((flags.members, len(bench.train)), bool)
    trained = ensembles.trained(bench, "originals", everything, key=bench.keys.train)
    originals = [each.params for each in trained]
    dataset = bench.dataset
    described = {"name": dataset.name, "num_classes": dataset.num_classes}
    described |= {"class_names": list(dataset.class_names)}
    return {
        "dataset": described,
        "model": {"name": bench.model.name},
        "members": flags.members,
        "cases": [_case(flags, bench, gone, originals) for gone in bench.forget_sets(flags.forget)],
    }


def _case(flags: Flags, bench: Bench, gone: ForgetSet, originals: list[Params]) -> dict[str, Any]:
    masks = np.broadcast_to(~gone.mask, (len(originals), len(gone.mask)))
    retrained = ensembles.trained(bench, f"oracles {gone.name}", masks, key=bench.keys.oracle_train)
    seen = partial(outputs, bench, gone)
    oracles = seen([each.params for each in retrained])
    attack = partial(leaks.attacked, oracles=oracles, forgotten=gone.classes[0])
    rows, tried = [{"model": "nothing", "lr": None} | attack(seen(originals))], []
    limit = at_chance(1 / bench.dataset.num_classes, int(gone.mask.sum()))
    for name in flags.methods or METHODS:
        unlearned = partial(_unlearned, flags, bench, gone, name, METHODS[name])
        for lr in flags.lrs:
            first = seen([each.params for each in unlearned(lr, originals[:1])])
            tried.append({"model": name, "lr": lr, "for_acc": float(first.for_acc[0])})
            if tried[-1]["for_acc"] <= limit:
                break
        done = [each.params for each in unlearned(lr, originals)]
        rows.append({"model": name, "lr": lr} | attack(seen(done)))
    return {
        "forget": gone.spec,
        "num_forget": int(gone.mask.sum()),
        "at_chance": limit,
        **leaks.references(oracles, forgotten=gone.classes[0]),
        "rows": rows,
        "tried": tried,
    }


def _unlearned(
    flags: Flags,
    bench: Bench,
    gone: ForgetSet,
    name: str,
    build: Callable[..., Unlearner],
    lr: float,
    originals: Sequence[Params],
) -> list[Any]:
    method = build(bench.model.apply, optimizer=make_optimizer("adam", lr))
    masks = np.broadcast_to(gone.mask, (len(originals), len(gone.mask)))
    return ensembles.unlearned(
        bench,
        f"{name} {lr:g} {gone.name}",
        method,
        originals,
        masks,
        ~masks if method.epoch_over == "retain" else None,
        config={"name": name, "lr": lr},  # its other numbers are in its source
        sources=("famr_jax.methods", "famr_jax.targets", Path(__file__)),
        epochs=flags.retain_epochs if method.epoch_over == "retain" else flags.epochs,
        key=bench.keys.unlearn,
    )


def outputs(bench: Bench, gone: ForgetSet, members: Sequence[Params]) -> leaks.Outputs:
    """What the attacks see of several models."""
    forget, test = bench.in_memory(gone.mask), bench.test
    apply_fn = bench.model.apply
    shown = [
        tuple(np.asarray(metrics.predict(apply_fn, params, part.x)) for part in (forget, test))
        for params in members
    ]
    on_forget, on_test = (np.stack(each) for each in zip(*shown, strict=True))
    return leaks.Outputs(on_forget, np.asarray(forget.labels), on_test, np.asarray(test.labels))


EXPERIMENT = Experiment(
    module="experiments.comparison.neighbour_leak",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
)

if __name__ == "__main__":
    main(EXPERIMENT)
