"""Removal in function space equals removal in parameter space, and predicts retraining.

Claims (Extending Kernel Trick to Influence Functions, arXiv 2605.11239): on models linear in their
parameters the dual form equals the primal one, and predicts retraining for removals of 10-90 %; in
infinite width, where there are no parameters, of half of the training set. The error is
||estimate - retrained|| / ||original - retrained||: doing nothing scores 1. Speed is
`dual_timing`'s subject, networks that are not linearised `dual_control`'s.

    python -m experiments.influence.dual_influence

Two minutes on two CPU cores. Expect (least and largest error over the
removals; infinite width with half of the training set forgotten):

    dual - primal, relative  5.2e-10
    linearised, squared  error 2.9e-10 to 6.4e-10
    linearised, cross_entropy  error 0.023 to 0.21
    infinite width, squared  error 1.4e-11  slope 1.000
    infinite width, cross_entropy  error 0.052  slope 0.979
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from experiments.harness.results import Page
from experiments.harness.run import Bare, Experiment, main
from experiments.influence import KERNEL, infinite_width, linearised
from experiments.influence.networks import CLASSES, LOSSES, load_digits, means
from famr_jax.cli.flags import Ascending, Count, Positive, Seed, Share
from famr_jax.report import number

AGREES, EXACT, PREDICTS, TRAINED = 1e-8, 1e-6, 0.2, 1e-10


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    num_train: Count = 300
    """Training images of the linearised network."""
    width: Count = 256
    """Its hidden units."""
    shares: Annotated[tuple[Share, ...], Ascending()] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares of the training set to forget."""
    masks: Count = 3
    """Random forget sets for each share."""
    l2: tuple[Positive, Positive] = (1e-3, 1e-2)
    """Ridges, for the squared loss and cross-entropy."""
    infinite_train: Count = 500
    """Training images of the infinitely wide network; half are forgotten."""
    depth: Count = 3
    """Its hidden layers."""
    infinite_l2: Positive = 0.1
    """Its ridge."""
    seed: Seed = 0
    """Of everything random."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path | None = None
    """Directory of the results; one of its own in runs/ if not given."""


SMALL = Flags(num_train=24, width=8, shares=(0.5,), masks=1, infinite_train=30, depth=1)
"""The configuration that the test suite runs."""


def measure(flags: Flags, bench: Bare) -> dict[str, Any]:
    """Both parts in float64: a linearised network, and one of infinite width."""
    with jax.enable_x64(True):
        train, test = load_digits(flags.data_dir)
        near = partial(
            linearised.measure,
            train[: flags.num_train],
            test,
            width=flags.width,
            l2s=flags.l2,
            shares=flags.shares,
            seeds=range(flags.seed, flags.seed + flags.masks),
        )
        limit = partial(
            infinite_width.measure,
            train[: flags.infinite_train],
            test,
            depth=flags.depth,
            l2=flags.infinite_l2,
            seed=flags.seed,
        )
        return {
            "linearised": bench.clock.show("linearised", near),
            "infinite": bench.clock.show("infinite", limit),
            "num_train": flags.num_train,
            "infinite_train": flags.infinite_train,
            "num_params": (train.x[0].size + 1) * flags.width + (flags.width + 1) * CLASSES,
            "num_test": len(test),
        }


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's claims, judged by thresholds fixed here."""
    del flags
    rows = results["linearised"]
    where = f"{len(rows)} removals, N={results['num_train']}, {results['num_params']} parameters"
    apart, gradient = (_largest(row[name] for row in rows) for name in ("from_primal", "gradient"))
    solved = all(each["converged"] for row in rows for each in row["status"].values())
    errors = {k: [r["error"]["dual"] for r in rows if r["loss"] == k] for k in LOSSES}
    squared = _largest(errors["squared"])
    good = [squared <= EXACT, *(_largest([e]) <= PREDICTS for e in errors["cross_entropy"])]
    by_share = "; ".join(
        f"{row['share']:.0%}: {row['error']['dual']:.3f}"
        for row in means(rows, "loss", "share", of=["error"])
        if row["loss"] == "cross_entropy"
    )
    half = results["infinite"][-1]["outputs"]
    equal = "holds" if apart <= AGREES else "fails"
    predicts = "holds" if all(good) else "mixed" if any(good) else "fails"
    return [
        KERNEL.judge(
            "equal",
            equal if solved else "not resolved",
            f"Linearised network on digits, float64: the two moves of the parameters differ "
            f"by at most {apart:.1e} of their length ({where}).",
        ),
        KERNEL.judge(
            "predicts",
            predicts if solved and gradient <= TRAINED else "not resolved",
            f"Error, 1 for doing nothing: squared loss at most {squared:.1e}; "
            f"cross-entropy, mean by forgotten share, {by_share}; predicted means at most "
            f"{PREDICTS} ({where}; gradients after training at most {gradient:.0e} of those "
            f"before). Infinite width, half forgotten, cross-entropy: "
            f"{half['error']:.3f} on test outputs (N={results['infinite_train']}).",
        ),
    ]


def _largest(values: Iterable[float | None]) -> float:
    """The largest of a JSON's numbers; NaN, which no threshold passes, where one is null."""
    return np.max(np.asarray(list(values), np.float64))


def headline(content: Mapping[str, Any]) -> list[str]:
    """The numbers of each part, for docstrings and README, from the JSON."""
    results, told = content["results"], []
    rows = results["linearised"]
    told.append(f"dual - primal, relative  {_largest(row['from_primal'] for row in rows):.1e}")
    for name in LOSSES:
        errors = [row["error"]["dual"] for row in rows if row["loss"] == name]
        told.append(f"linearised, {name}  error {min(errors):.2g} to {max(errors):.2g}")
    for row in results["infinite"]:
        found = row["outputs"]
        told.append(
            f"infinite width, {row['loss']}  error {found['error']:.2g}  slope {found['slope']:.3f}"
        )
    return told


def page(content: Mapping[str, Any]) -> Page:
    """Errors and accuracies of the linearised network by share, and infinite width."""
    results = content["results"]
    rows = results["linearised"]
    count = len(rows) // len({(row["loss"], row["share"]) for row in rows})
    return Page(
        "Removal in function space",
        f"A network of {number(results['num_params'])} parameters, linearised where it "
        f"starts and trained on {number(results['num_train'])} digits; {count} random forget "
        "sets for each share. The error is ‖estimate − retrained‖ / ‖original − retrained‖: 0 "
        "is retraining, 1 is doing nothing.",
        [
            linearised.section(rows),
            infinite_width.section(results["infinite"], results["infinite_train"]),
        ],
    )


EXPERIMENT = Experiment(
    module="experiments.influence.dual_influence",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
)

if __name__ == "__main__":
    main(EXPERIMENT)
