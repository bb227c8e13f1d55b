"""Shallow forgetting: what is noticed if the last layer alone is unlearned?

Claim (ours): unlearning the last layer alone takes the accuracy on a forgotten class to chance, as
unlearning all weights does; no measure of outputs tells the two apart, probes of the features do.
Unlearns three classes, each on its own, from a Vision Transformer by changing its last layer, its
last block and last layer, or all weights, each at the smallest step of a grid that takes For-Acc on
training images to chance, 1/C and two standard errors (which needs no oracle), and takes every
measure and a linear probe of every block beside eight retrained models. Writes metrics.json and
report.html.

    python -m experiments.knowledge.shallow_forgetting
    python -m experiments.knowledge.shallow_forgetting --method delete

A quarter of an hour each on two very busy CPU cores. Expect (of each model its step, For-Acc and
Ret-Acc on training images, %, in how many measures it lies outside the oracles' band, and in how
many probes):

    class:1  last layer  lr 0.1       0.0  96.4  outside in 8 of 11, probes 3
    class:1  last block  lr 0.001    11.6  83.8  outside in 11 of 11, probes 3
    class:1  all         lr 0.0001   13.0  91.6  outside in 11 of 11, probes 3
    class:3  last layer  lr 0.1       5.5  88.4  outside in 8 of 11, probes 1
    class:3  last block  lr 0.001     3.4  85.4  outside in 7 of 11, probes 0
    class:3  all         lr 0.0001    8.9  80.2  outside in 8 of 11, probes 0
    class:8  last layer  lr 0.1       7.2  96.7  outside in 5 of 11, probes 0
    class:8  last block  lr 0.001     9.4  91.8  outside in 6 of 11, probes 0
    class:8  all         lr 0.0001   10.8  92.2  outside in 7 of 11, probes 0

and with --method delete:

    class:1  last layer  lr 0.01      0.0  98.3  outside in 6 of 11, probes 3
    class:1  last block  lr 0.001     0.0  97.3  outside in 6 of 11, probes 3
    class:1  all         lr 0.0001    0.7  96.4  outside in 7 of 11, probes 3
    class:3  last layer  lr 0.01      0.0  98.8  outside in 1 of 11, probes 1
    class:3  last block  lr 0.001     0.0  98.5  outside in 2 of 11, probes 1
    class:3  all         lr 0.0001    5.5  95.2  outside in 7 of 11, probes 0
    class:8  last layer  lr 0.01      0.0  98.2  outside in 2 of 11, probes 0
    class:8  last block  lr 0.001     0.0  98.1  outside in 2 of 11, probes 0
    class:8  all         lr 0.0001    2.2  96.9  outside in 1 of 11, probes 0

The last layer alone is enough, at less cost than all weights: of class 3 DELETE leaves a model that
one probe alone tells from the oracles. But changing all weights hardly takes more of the class from
the features, so that probes mostly notice both or neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import optax

from experiments.harness.run import Experiment, main
from experiments.knowledge.shallow_page import PARTS, claims, headline, page
from famr_jax import evaluation
from famr_jax.attacks import linear_probe
from famr_jax.attacks.layers import layer_shapes
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import (
    Ascending,
    BenchFlags,
    Count,
    OneOf,
    Optimizer,
    Positive,
    make_optimizer,
)
from famr_jax.cli.measured import at_chance
from famr_jax.evaluation import MEASURES, Measure, Part, View
from famr_jax.methods import BY_NAME
from famr_jax.types import Params

PROBED = "all_test"


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:1", "class:3", "class:8")
    """Classes to forget, each on its own."""
    method: Annotated[str, OneOf(tuple(BY_NAME))] = "famr"
    """The unlearning method, at its defaults but for the step."""
    lrs: Annotated[tuple[Positive, ...], Ascending(1)] = (1e-4, 1e-3, 1e-2, 1e-1)
    """Steps to try, ascending."""
    optimizer: Optimizer = "adam"
    """Of unlearning."""
    epochs: Count = 10
    """Epochs of unlearning."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(oracles=8))


SMALL = Flags(
    forget=("class:3",),
    lrs=(1e-2,),
    epochs=1,
    bench=BenchFlags(model="vit_mu/4", train_epochs=2, batch_size=128, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless whole classes are forgotten."""
    for spec in flags.forget:
        if not spec.startswith("class:"):
            raise ValueError(f"`forget` must be classes, as class:3, got {spec!r}.")


def changed(params: Params, part: str, head: str) -> set[str]:
    """Names of the parameters, at the top of their tree, that a part has."""
    blocks = [name for name in params if name.startswith("block_")]
    if part == "all":
        return set(params)
    last = max(blocks, key=lambda name: int(name.removeprefix("block_")), default=head)
    return {head} if part == "last layer" else {head, last}


def only(optimizer: optax.GradientTransformation, names: set[str]) -> optax.GradientTransformation:
    """The optimizer on the parameters of these names; all others stay as they are."""

    def label(params: Params) -> Params:
        return {
            name: jax.tree.map(lambda _, name=name: name in names, part)
            for name, part in params.items()
        }

    return optax.partition({True: optimizer, False: optax.set_to_zero()}, label)


def probe(view: View, oracles: Sequence[View], *, layer: str, classes: tuple[int, ...]) -> float:
    """Balanced accuracy of a linear probe of a layer that finds the class among test images."""
    del oracles
    features = view.features(PROBED, layer)
    features = features.mean(1) if features.ndim == 3 else features
    return linear_probe(features, np.isin(view.labels(PROBED), classes))


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A case for each class."""
    original = bench.original()
    return {
        **bench.describe(original),
        "oracles": bench.flags.oracles,
        "cases": [_case(flags, bench, g, original.params) for g in bench.forget_sets(flags.forget)],
    }


def _case(flags, bench, gone, original):
    """Every step of every part, and all measures of those that were chosen."""
    oracles = bench.oracles(gone)
    layers = layer_shapes(bench.model.features, original, bench.test.x)
    probes = [
        Measure(f"probe_{name}", "share", PROBED,
                partial(probe, layer=name, classes=gone.classes), f"Probe of {name}")
        for name in layers
    ]  # fmt: skip
    measures = (*MEASURES, *probes)
    everything = {PROBED: Part(bench.test)}
    evaluate = bench.evaluator(gone, original, oracles, measures=measures, more=everything)
    quick = bench.evaluator(gone, original, measures=evaluation.named("for_acc", "ret_acc"))
    limit = at_chance(1 / bench.dataset.num_classes, int(gone.mask.sum()))
    tried, chosen = [], []
    for part in PARTS:
        for lr in flags.lrs:
            params = _unlearned(flags, bench, gone, original, part, lr)
            row = quick(params)
            tried.append({"model": part, "lr": lr} | {n: row[n] for n in ("for_acc", "ret_acc")})
            if row["for_acc"] <= limit:
                break
        chosen.append({"model": part, "lr": lr} | evaluate(params))
    rows = [*evaluate.references(), *chosen]
    return {
        "forget": gone.spec,
        "at_chance": limit,
        "tried": tried,
        "models": [{k: v for k, v in row.items() if k not in ("n", "absent")} for row in rows],
        "verdicts": evaluation.verdicts(rows, measures),
    }


def _unlearned(flags, bench, gone, original, part, lr):
    names = changed(original, part, bench.model.head[0])
    method = BY_NAME[flags.method](
        bench.model.apply, optimizer=only(make_optimizer(flags.optimizer, lr), names)
    )
    config = {"method": flags.method, "part": sorted(names), "lr": lr, "with": flags.optimizer}
    return bench.unlearn(
        f"{flags.method} {part} {lr:g} {gone.name}",
        method,
        original,
        gone,
        config=config,
        sources=(BY_NAME[flags.method].__module__,),
        epochs=flags.epochs,
        key=bench.keys.unlearn,
    ).params


EXPERIMENT = Experiment(
    module="experiments.knowledge.shallow_forgetting",
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
