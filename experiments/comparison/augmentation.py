"""Does augmentation help unlearning, or does it only shrink what there is to unlearn?

Claim (Data Augmentation Improves Machine Unlearning, arXiv 2508.18502): stronger augmentation
lowers the average gap to the retrained model, by up to 40 % with TrivialAugment. The same
augmentation is used in training, retraining and unlearning. But a model that was trained on
augmented images remembers less, so that the gap of doing nothing shrinks too: both stand side by
side. Every method runs at its defaults, from several originals, beside several oracles for each
augmentation and random forget set. Writes metrics.json and report.html.

    python -m experiments.comparison.augmentation --dataset cifar100 --data-dir DIR --classes 10

Resumable by model and method. Forty minutes on two busy CPU cores. Expect, in points:

    average gap          nothing finetune random_labels salun delete famr, reweighted oracles
    random:0.1 none         12.6      6.8          17.4  10.7    7.0              7.1     1.5
    random:0.5 none         18.6      9.9           7.5   8.3    8.6              8.7     1.5
    random:0.1 crop_flip     2.1      2.0           8.3   7.6    5.9              5.7     1.6
    random:0.5 crop_flip     8.1      6.6           7.4   7.1    6.2              7.0     1.1
    random:0.1 trivial       2.0      1.8           8.0   5.3    3.3              2.9     1.4
    random:0.5 trivial       7.9      5.6          11.9  10.2    7.0              8.2     1.3
    random:0.1 rand          1.9      1.2           9.3  10.6    3.7              3.4     1.1
    random:0.5 rand          8.7      6.3          12.7  11.4    9.3             11.5     1.4
    random:0.1 erasing       2.0      2.2           4.6   4.7    3.9              3.6     1.5
    random:0.5 erasing       7.7      6.2          12.2  13.6    6.7              8.0     1.1
    random:0.1 augmix        3.1      2.2           4.8   6.6    5.7              5.5     1.2
    random:0.5 augmix        8.1      5.3          10.4  10.0    6.1              8.1     1.2

Augmentation shrinks what there is to unlearn: doing nothing falls from 12.6 to 2.1 by crop_flip.
As a share of it the gap of a method falls with TrivialAugment, for every original, in 3 of 20
comparisons and rises in 11. On a random tenth of augmented images no method but fine-tuning is
nearer to retrained models than doing nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax

from experiments.comparison.augmentation_page import claims, headline, page
from experiments.harness.run import Experiment, main
from famr_jax import evaluation, targets
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags, Count, OneOf
from famr_jax.evaluation import average_gap
from famr_jax.forget import ForgetSet
from famr_jax.methods import BY_NAME, augmented, famr
from famr_jax.types import Params, Unlearner

MEASURES = evaluation.named("for_acc", "ret_acc", "test_acc", "svc_attack")
METHODS: dict[str, Callable[[Callable], Unlearner]] = {
    **{name: BY_NAME[name] for name in ("finetune", "random_labels", "salun", "delete")},
    "famr, reweighted": partial(famr, target=targets.reweighted),
}
WORDS = ("none", "crop_flip", "trivial", "rand", "erasing", "augmix")


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("random:0.1", "random:0.5")
    """Forget sets, each on its own."""
    augmentations: tuple[Annotated[str, OneOf(WORDS)], ...] = WORDS
    """What training, retraining and unlearning make of their images."""
    methods: tuple[str, ...] = ()
    """Names of methods; none for all."""
    originals: Count = 3
    """Originals of different seeds."""
    epochs: Count = 10
    """Epochs of methods that see the forget set alone."""
    retain_epochs: Count = 4
    """Epochs of those that pass over the retained set: a fifth of the training's."""
    bench: BenchFlags = field(
        default_factory=partial(
            BenchFlags, model="vit_mu/8", train_epochs=20, train_lr=2e-3, batch_size=50, oracles=8
        )
    )


SMALL = Flags(
    forget=("random:0.1",),
    augmentations=("none", "trivial"),
    methods=("delete", "random_labels"),
    originals=2,
    epochs=1,
    retain_epochs=1,
    bench=BenchFlags(model="mlp_8", train_epochs=2, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a method of another name, or an augmentation chosen twice over."""
    for name in flags.methods:
        if name not in METHODS:
            raise ValueError(f"`methods` must be among {'; '.join(METHODS)}, got {name!r}.")
    if flags.bench.augment is not None:
        got = flags.bench.augment
        raise ValueError(f"`augment` must be left out, use `augmentations`; got {got!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A cell for each augmentation and forget set: rows of oracles, doing nothing and methods."""
    cells = []
    for word in flags.augmentations:
        each = [
            replace(bench, flags=replace(bench.flags, augment=word, seed=bench.flags.seed + i))
            for i in range(flags.originals)
        ]
        originals = [other.original(f"original {i} {word}").params for i, other in enumerate(each)]
        for gone in bench.forget_sets(flags.forget):
            cells.append({"augmentation": word} | _cell(flags, each[0], gone, originals))
    dataset = bench.dataset
    described = {"name": dataset.name, "num_classes": dataset.num_classes}
    return {
        "dataset": described,
        "model": {"name": bench.model.name},
        "oracles": flags.bench.oracles,
        "cells": cells,
    }


def _cell(flags: Flags, bench: Bench, gone: ForgetSet, originals: list[Params]) -> dict[str, Any]:
    evaluate = bench.evaluator(gone, originals[0], bench.oracles(gone), measures=MEASURES)
    oracles = [row for row in evaluate.references() if row["model"] == "oracle"]
    rows = [{"model": "nothing", "seed": i} | evaluate(each) for i, each in enumerate(originals)]
    for name in flags.methods or METHODS:
        method = METHODS[name](bench.model.apply)
        retains = method.epoch_over == "retain"
        for i, original in enumerate(originals):
            done = bench.unlearn(
                f"{name} {i} {bench.flags.augment} {gone.name}",
                method if bench.augment is None else augmented(method, bench.augment),
                original,
                gone,
                config={"name": name},  # its numbers are in its source, the augmentation's name too
                sources=("famr_jax.methods", "famr_jax.targets", Path(__file__)),
                epochs=flags.retain_epochs if retains else flags.epochs,
                key=jax.random.fold_in(bench.keys.unlearn, i),
            )
            rows.append({"model": name, "seed": i} | evaluate(done.params))
    null = None
    for row in rows:
        lines = average_gap([*oracles, row | {"model": "one"}])
        row["average_gap"], null = lines[0].get("value"), lines[0].get("null")
    kept = (*(measure.name for measure in MEASURES), "model", "seed", "average_gap")
    return {
        "forget": gone.spec,
        "num_forget": int(gone.mask.sum()),
        "null": null,
        "oracles": [{name: row[name] for name in kept[:4] if name in row} for row in oracles],
        "rows": [{name: row[name] for name in kept if name in row} for row in rows],
    }


EXPERIMENT = Experiment(
    module="experiments.comparison.augmentation",
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
