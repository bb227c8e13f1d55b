"""Filters that remove a class from a classifier's outputs, beside classifiers trained without it.

Claim (arXiv 2510.26230): projection and redistribution (MPRU) bring outputs near those of a model
retrained without the class, at no cost on retained accuracy. Removes every class, one at a time,
from a Vision Transformer and from gradient-boosted trees on tables by masking, by MPRU as its
authors ran it (with the true labels of the images it filters) and as it could be deployed, and by
the tilted target of TRW; compares with retrained models, whose divergence from one another is the
floor. Writes metrics.json and report.html.

    python -m experiments.filters.output_filters
    python -m experiments.filters.output_filters --dataset cifar100 --data-dir DIR --classes 10
        --tables --model vit_mu/8 --train-epochs 20 --train-lr 2e-3 --batch-size 50

The first takes 26 minutes on two very busy CPU cores, the second 15. Expect (for each classifier
and model the mean over classes of KL(oracle||model) on the removed class and on the others, over
the kept classes, in nats; retained accuracy, %; the oracle's own line is the floor):

    vit_mu/2         original               1.390   0.178   96.8
    vit_mu/2         oracle                 1.376   0.177   96.3
    vit_mu/2         masked                 1.390   0.178   96.8
    vit_mu/2         MPRU as published      1.328   0.174   96.8
    vit_mu/2         MPRU                   1.358   0.176   96.8
    vit_mu/2         MPRU, removed first    1.358   0.176   96.8
    vit_mu/2         MPRU, removed last     1.351   0.176   96.8
    vit_mu/2         tilted 1               1.433   0.178   96.8
    vit_mu/2         tilted 10              2.669   0.179   96.7
    vit_mu/2         retraining 30 s, the slowest filter 0.0063 s
    trees on wine    original               0.450   0.039  100.0
    trees on wine    oracle                 0.002   0.002   99.7
    trees on wine    masked                 0.450   0.039  100.0
    trees on wine    MPRU as published      0.441   0.039  100.0
    trees on wine    MPRU                   0.450   0.039  100.0
    trees on wine    MPRU, removed first    0.450   0.039  100.0
    trees on wine    MPRU, removed last     0.450   0.039  100.0
    trees on wine    tilted 1               0.460   0.039  100.0
    trees on wine    tilted 10              0.567   0.039  100.0
    trees on wine    retraining 0.21 s, the slowest filter 0.0023 s
    trees on digits  original               0.552   0.011   98.0
    trees on digits  oracle                 0.102   0.007   98.0
    trees on digits  masked                 0.552   0.011   98.0
    trees on digits  MPRU as published      0.554   0.011   98.0
    trees on digits  MPRU                   0.552   0.011   98.0
    trees on digits  MPRU, removed first    0.552   0.011   98.0
    trees on digits  MPRU, removed last     0.552   0.011   98.0
    trees on digits  tilted 1               0.515   0.011   98.0
    trees on digits  tilted 10              0.393   0.011   98.0
    trees on digits  retraining 12 s, the slowest filter 0.0063 s

and of the first ten classes of CIFAR-100:

    vit_mu/8         original               0.267   0.180   63.1
    vit_mu/8         oracle                 0.246   0.178   62.0
    vit_mu/8         masked                 0.267   0.180   63.1
    vit_mu/8         MPRU as published      0.260   0.171   64.0
    vit_mu/8         MPRU                   0.261   0.174   63.0
    vit_mu/8         MPRU, removed first    0.259   0.172   63.1
    vit_mu/8         MPRU, removed last     0.260   0.173   63.1
    vit_mu/8         tilted 1               0.282   0.180   63.1
    vit_mu/8         tilted 10              0.584   0.195   62.5
    vit_mu/8         retraining 13 s, the slowest filter 0.0035 s

So a ViT that is masked is about as near to its oracles as they are to one another, and MPRU gains
hundredths of a nat or less; trees are so sure of their classes that MPRU is masking.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import scipy.special

from experiments.filters.compared import Labels, Outputs, compare
from experiments.filters.outputs_page import claims, headline, page
from experiments.filters.tables import BUNDLED, FETCHED, measure_table
from experiments.harness.run import Experiment, main
from famr_jax import metrics
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, NotNegative, OneOf
from famr_jax.targets import head_similarity
from famr_jax.unlearn import subtree


@dataclass(frozen=True)
class Flags:
    """Settings of a run; --oracles are of each class, and for the tables too."""

    removed: tuple[int, ...] = ()
    """Classes to remove, each on its own; every class if none is given."""
    seeds: Count = 3
    """Originals, each filtered."""
    betas: Annotated[tuple[NotNegative, ...], Ascending(1)] = (1.0, 10.0)
    """Strengths of the tilt, ascending."""
    tables: Annotated[tuple[str, ...], OneOf((*BUNDLED, FETCHED))] = BUNDLED
    """Tables for the trees: wine and digits are bundled with scikit-learn, covertype is fetched by
    it; none for no trees."""
    trees: Count = 100
    """Rounds of boosting."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    removed=(0, 1, 2),
    seeds=2,
    tables=("wine",),
    trees=5,
    bench=BenchFlags(model="mlp_8", train_epochs=2, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a class below zero, or one that is named twice."""
    if len(set(flags.removed)) < len(flags.removed) or min(flags.removed, default=0) < 0:
        words = " ".join(map(str, flags.removed))
        raise ValueError(f"`removed` must be different classes from 0 on, got {words}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A row for each classifier, class and model, with a number a seed."""
    count = bench.dataset.num_classes
    specs = [f"class:{c}" for c in flags.removed or range(count)]
    sets = bench.forget_sets(specs)
    labels = Labels(np.asarray(bench.train.labels), np.asarray(bench.test.labels))
    originals = [_original(bench, seed) for seed in range(flags.seeds)]
    rows = []
    for gone in sets:
        phase = f"oracles {gone.name}"
        oracles = [_softmax(bench, params, bench.test.x) for params in bench.oracles(gone)]
        retrain = bench.clock.phases[phase]["run"] / len(oracles)
        found = compare(bench.model.name, gone.classes[0], originals, oracles, labels, flags.betas)
        rows += [row | ({"retrain": retrain} if row["model"] == "oracle" else {}) for row in found]
    for table in flags.tables:
        rows += measure_table(
            bench,
            table,
            seeds=flags.seeds,
            oracles=bench.flags.oracles,
            trees=flags.trees,
            removed=flags.removed,
            betas=flags.betas,
        )
    return {
        "dataset": {"name": bench.dataset.name, "num_classes": count},
        "model": {"name": bench.model.name},
        "seeds": flags.seeds,
        "oracles": bench.flags.oracles,
        "rows": rows,
    }


def _original(bench: Bench, seed: int) -> Outputs:
    """What the original of one seed says of all images, and how alike its head's classes are."""
    own = replace(bench, flags=replace(bench.flags, seed=bench.flags.seed + seed))
    params = own.original(f"original {seed}").params
    train, test = (_softmax(bench, params, images.x) for images in (bench.train, bench.test))
    kernel = subtree(params, (*bench.model.head, "kernel"))
    return Outputs(train, test, np.asarray(head_similarity(kernel), np.float64))


def _softmax(bench, params, x):
    logits = np.asarray(metrics.predict(bench.model.apply, params, x), np.float64)
    return scipy.special.softmax(logits, axis=1)


EXPERIMENT = Experiment(
    module="experiments.filters.output_filters",
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
