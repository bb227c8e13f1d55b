"""Removal in function space equals removal in parameter space, and predicts retraining.

Claims (Extending Kernel Trick to Influence Functions, arXiv 2605.11239): on models linear in their
parameters the dual form equals the primal one, and predicts retraining for removals of 10-90 %; in
infinite width, where there are no parameters, of half of the training set. The error is
||estimate - retrained|| / ||original - retrained||: doing nothing scores 1. Speed is
`dual_timing`'s subject, networks that are not linearised `dual_control`'s.

    python -m experiments.dual_influence

Two minutes on two CPU cores. Expect (least and largest error over the
removals; infinite width with half of the training set forgotten):

    dual - primal, relative  5.2e-10
    linearised, squared  error 2.9e-10 to 6.4e-10
    linearised, cross_entropy  error 0.023 to 0.21
    infinite width, squared  error 1.4e-11  slope 1.000
    infinite width, cross_entropy  error 0.052  slope 0.979
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import common, dual_report, dual_routes
from experiments.dual_routes import (
    BIAS_STD,
    LOSSES,
    SOURCE,
    TIGHT,
    WEIGHT_STD,
    Ridge,
    accuracies,
    by_dual,
    error,
    gauss_newton,
    init,
    load_digits,
    network,
    newton,
    norm,
    random_mask,
    status,
    train_linearised,
)
from famr_jax.influence import dual, kernels
from famr_jax.types import Batch, check_count

AGREES, EXACT, PREDICTS, TRAINED = 1e-8, 1e-6, 0.2, 1e-10
CLASSES, SCATTER = 10, 500  # SCATTER: points kept for the figure


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    num_train: int = 300
    """Training images of the linearised network."""
    width: int = 256
    """Its hidden units."""
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares of the training set to forget."""
    masks: int = 3
    """Random forget sets for each share."""
    l2: tuple[float, float] = (1e-3, 1e-2)
    """Ridges, for the squared loss and cross-entropy."""
    infinite_train: int = 500
    """Training images of the infinitely wide network; half are forgotten."""
    depth: int = 3
    """Its hidden layers."""
    infinite_l2: float = 0.1
    """Its ridge."""
    seed: int = 0
    """Of everything random."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path = Path("runs/dual_influence")
    """Directory of the results."""


SMALL = Flags(num_train=24, width=8, shares=(0.5,), masks=1, infinite_train=30, depth=1)
"""The configuration that the test suite runs."""


def linearised(flags: Flags, train: Batch, test: Batch) -> list[dict[str, Any]]:
    """Both routes beside retraining of a linearised network, for each loss, share and mask."""
    centre = init(jax.random.key(flags.seed), train.x[0].size, flags.width, CLASSES)
    model, kernel = kernels.linearize_model(network, centre), kernels.TangentKernel(network, centre)
    rows = []
    for (name, loss), l2 in zip(LOSSES.items(), flags.l2, strict=True):
        ridge = Ridge(loss, model, l2)
        original, gradient = train_linearised(ridge, centre, train)
        outputs, test_outputs = model(original, train.x), model(original, test.x)
        cases = [(share, seed) for share in flags.shares for seed in range(flags.masks)]
        for share, seed in cases:
            mask = random_mask(share, len(train), flags.seed + seed)
            kept = np.flatnonzero(~mask)
            retrained, retrained_gradient = train_linearised(ridge, centre, train[kept])
            true = optax.tree.sub(retrained, original)
            curve = gauss_newton(loss, centre, train[kept], outputs[kept])
            slope = ridge.value_and_grad(original, centre, train[kept])[1]
            primal = newton(curve, slope, l2, **TIGHT)
            move, found = by_dual(loss, kernel, train, outputs, mask, l2, **TIGHT)
            changes = [kernel.product(x, train.x, found.value) for x in (train.x, test.x)]
            after = model(retrained, train.x), model(retrained, test.x)
            rows.append(
                {
                    "loss": name,
                    "l2": l2,
                    "share": share,
                    "num_forget": int(mask.sum()),
                    "gradient": max(gradient, retrained_gradient),
                    "error": {"primal": error(primal.value, true), "dual": error(move, true)},
                    "as_published": error(move, true) * norm(true) / norm(retrained),
                    "test_output_error": error(changes[1], after[1] - test_outputs),
                    "from_primal": error(move, primal.value),
                    "forget_accuracy": accuracies(
                        train.labels[mask],
                        original=outputs[mask],
                        dual=(outputs + changes[0])[mask],
                        retrained=after[0][mask],
                    ),
                    "test_accuracy": accuracies(
                        test.labels,
                        original=test_outputs,
                        dual=test_outputs + changes[1],
                        retrained=after[1],
                    ),
                    "status": {"primal": status(primal), "dual": status(found)},
                }
            )
    return rows


def infinite(flags: Flags, train: Batch, test: Batch) -> list[dict[str, Any]]:
    """Half of the training set removed from an infinitely wide network, without parameters."""
    kernel, l2 = kernels.ReLUKernel(flags.depth, WEIGHT_STD, BIAS_STD), flags.infinite_l2
    gram, mask = kernel.gram(train.x), random_mask(0.5, len(train), flags.seed)
    kept, rows, zeros = np.flatnonzero(~mask), [], jnp.zeros((len(train), CLASSES))
    for name, loss in LOSSES.items():
        fit = partial(dual.fit, loss, l2=l2, tol=TIGHT["tol"])
        original = fit(gram, train.labels, zeros)
        retrained = fit(kernel.gram(train.x[kept]), train.labels[kept], zeros[kept])
        how = {"l2": l2, "normaliser": "n-m", **TIGHT}
        found = dual.remove(loss, gram, original.outputs, train.labels, mask, **how)
        weights = jnp.zeros_like(zeros).at[kept].set(retrained.weights)
        moves = {"dual": found.value, "retrained": weights - original.weights}
        before = kernel.product(test.x, train.x, original.weights)
        changes = {k: kernel.product(test.x, train.x, move) for k, move in moves.items()}
        value = lambda outputs, loss=loss: loss.value(outputs, test.labels)  # noqa: E731
        losses = {
            "first order": dual.loss_changes(loss, before, test.labels, changes["dual"]),
            "evaluated": value(before + changes["dual"]) - value(before),
        }
        true = changes["retrained"], value(before + changes["retrained"]) - value(before)
        forgotten = {k: (original.outputs + gram(move))[mask] for k, move in moves.items()}
        every = slice(None, None, true[0].size // SCATTER + 1)
        rows.append(
            {
                "loss": name,
                "l2": l2,
                "num_forget": int(mask.sum()),
                "gradient": max(float(original.residual), float(retrained.residual)),
                "newton_steps": [int(original.num_steps), int(retrained.num_steps)],
                "outputs": agreement(changes["dual"], true[0]),
                "losses": {k: agreement(v, true[1]) for k, v in losses.items()},
                "forget_accuracy": accuracies(
                    train.labels[mask], original=original.outputs[mask], **forgotten
                ),
                "test_accuracy": accuracies(
                    test.labels, original=before, **{k: before + v for k, v in changes.items()}
                ),
                "scatter": {
                    "outputs": [true[0].ravel()[every], changes["dual"].ravel()[every]],
                    "losses": [true[1], losses["first order"]],
                },
                "status": status(found),
            }
        )
    return rows


def agreement(estimate: Array, true: Array) -> dict[str, float]:
    """How estimated changes compare with true ones; the slope is that of estimate over true."""
    estimate, true = np.ravel(estimate), np.ravel(true)
    return {
        "error": error(estimate, true),
        "slope": float(estimate @ true / (true @ true)),
        "correlation": float(np.corrcoef(estimate, true)[0, 1]),
        "n": true.size,
    }


def claims(results: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's claims, judged by thresholds fixed here."""
    rows = results["linearised"]
    where = f"{len(rows)} removals, N={results['num_train']}, {results['num_params']} parameters"
    apart = np.max([row["from_primal"] for row in rows])
    solved = all(each["converged"] for row in rows for each in row["status"].values())
    errors = {k: [r["error"]["dual"] for r in rows if r["loss"] == k] for k in LOSSES}
    gradient = np.max([row["gradient"] for row in rows])
    good = [np.max(errors["squared"]) <= EXACT, *(e <= PREDICTS for e in errors["cross_entropy"])]
    means = {
        share: np.mean(
            [
                r["error"]["dual"]
                for r in rows
                if r["loss"] == "cross_entropy" and r["share"] == share
            ]
        )
        for share in sorted({row["share"] for row in rows})
    }
    by_share = "; ".join(f"{share:.0%}: {mean:.3f}" for share, mean in means.items())
    half = results["infinite"][-1]["outputs"]
    return [
        common.claim(
            "The dual form equals the primal one for models linear in their parameters.",
            SOURCE,
            "not resolved" if not solved else "holds" if apart <= AGREES else "fails",
            f"Linearised network on digits, float64: the two moves of the parameters differ "
            f"by at most {apart:.1e} of their length ({where}).",
        ),
        common.claim(
            "Dual influence predicts retraining of linearised networks for 10-90 % removals.",
            SOURCE,
            "not resolved"
            if not (solved and gradient <= TRAINED)
            else "holds"
            if all(good)
            else "mixed"
            if any(good)
            else "fails",
            f"Error, 1 for doing nothing: squared loss at most {max(errors['squared']):.1e}; "
            f"cross-entropy, mean by forgotten share, {by_share}; predicted means at most "
            f"{PREDICTS} ({where}; gradients after training at most {gradient:.0e} of those "
            f"before). Infinite width, half forgotten, cross-entropy: "
            f"{half['error']:.3f} on test outputs (N={results['infinite_train']}).",
        ),
    ]


def headline(content: dict[str, Any]) -> list[str]:
    """The numbers of each part, for docstrings and README, from the JSON."""
    results, lines = content["results"], []
    apart = max(row["from_primal"] for row in results["linearised"])
    lines.append(f"dual - primal, relative  {apart:.1e}")
    for name in LOSSES:
        errors = [r["error"]["dual"] for r in results["linearised"] if r["loss"] == name]
        lines.append(f"linearised, {name}  error {min(errors):.2g} to {max(errors):.2g}")
    for row in results["infinite"]:
        found = row["outputs"]
        lines.append(
            f"infinite width, {row['loss']}  error {found['error']:.2g}  slope {found['slope']:.3f}"
        )
    return lines


def measure(flags: Flags, clock: common.Clock) -> tuple[list, dict[str, Any]]:
    """Both parts, and the verdicts."""
    train, test = load_digits(flags.data_dir)
    parts = {
        "linearised": partial(linearised, flags, train[: flags.num_train], test),
        "infinite": partial(infinite, flags, train[: flags.infinite_train], test),
    }
    results = {name: clock.show(name, part) for name, part in parts.items()}
    results |= {
        "num_train": flags.num_train,
        "infinite_train": flags.infinite_train,
        "num_params": (train.x[0].size + 1) * flags.width + (flags.width + 1) * CLASSES,
        "num_test": len(test),
    }
    return claims(results), results


def run(flags: Flags) -> None:
    """The whole experiment: writes metrics.json and report.html."""
    for name in ("num_train", "width", "masks", "infinite_train", "depth"):
        check_count(name, getattr(flags, name))
    dual_routes.run("dual_influence", flags, measure, dual_report.influence, headline)


if __name__ == "__main__":
    common.main(Flags, run)
