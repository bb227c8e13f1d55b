"""Removal from an infinitely wide network, which has a kernel and no parameters."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.influence.networks import (
    BIAS_STD,
    CLASSES,
    LOSSES,
    TIGHT,
    WEIGHT_STD,
    WORDS,
    accuracies,
    error,
    random_mask,
    status,
)
from famr_jax.influence import dual, kernels
from famr_jax.report import Drawing, Grid, Section, Text, scatter
from famr_jax.types import Batch

SCATTER = 500  # points kept for the figure


def measure(train: Batch, test: Batch, *, depth: int, l2: float, seed: int) -> list[dict[str, Any]]:
    """Half of the training set removed, beside retraining on the other half, for each loss."""
    kernel = kernels.ReLUKernel(depth, WEIGHT_STD, BIAS_STD)
    gram, mask = kernel.gram(train.x), random_mask(0.5, len(train), seed)
    kept, zeros = np.flatnonzero(~mask), jnp.zeros((len(train), CLASSES))
    rows = []
    for name, loss in LOSSES.items():
        fit = partial(dual.fit, loss, l2=l2, tol=TIGHT.tol)
        original = fit(gram, train.labels, zeros)
        retrained = fit(kernel.gram(train.x[kept]), train.labels[kept], zeros[kept])
        found = dual.remove(
            loss,
            gram,
            original.outputs,
            train.labels,
            mask,
            l2=l2,
            normaliser="n-m",
            tol=TIGHT.tol,
            max_steps=TIGHT.max_steps,
        )
        weights = jnp.zeros_like(zeros).at[kept].set(retrained.weights)
        moves = {"dual": found.value, "retrained": weights - original.weights}
        before = kernel.product(test.x, train.x, original.weights)
        changes = {k: kernel.product(test.x, train.x, move) for k, move in moves.items()}
        after = {k: before + change for k, change in changes.items()}
        evaluated = {k: _rise(loss, before, outputs, test.labels) for k, outputs in after.items()}
        first = dual.loss_changes(loss, before, test.labels, changes["dual"])
        true = changes["retrained"], evaluated["retrained"]
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
                "losses": {
                    "first order": agreement(first, true[1]),
                    "evaluated": agreement(evaluated["dual"], true[1]),
                },
                "forget_accuracy": accuracies(
                    train.labels[mask], {"original": original.outputs[mask]} | forgotten
                ),
                "test_accuracy": accuracies(test.labels, {"original": before} | after),
                "scatter": {
                    "outputs": [true[0].ravel()[every], changes["dual"].ravel()[every]],
                    "losses": [true[1], first],
                },
                "status": status(found),
            }
        )
    return rows


def _rise(loss, before, after, labels):
    return loss.value(after, labels) - loss.value(before, labels)


def agreement(estimate: Array, true: Array) -> dict[str, float]:
    """How estimated changes compare with true ones; the slope is that of estimate over true."""
    estimate, true = np.ravel(estimate), np.ravel(true)
    return {
        "error": error(estimate, true),
        "slope": float(estimate @ true / (true @ true)),
        "correlation": float(np.corrcoef(estimate, true)[0, 1]),
        "n": true.size,
    }


def section(rows: Sequence[Mapping[str, Any]], num_train: int) -> Section:
    """Estimated against true changes of outputs and of losses, for each loss."""
    words = f"half of {num_train} images forgotten"
    return Section(
        "Infinite width: no parameters",
        [
            Text(
                "Changes on the test images, true and estimated; the line is equality. Losses to "
                "first order."
            ),
            Grid([_cloud(row, part, words) for row in rows for part in row["scatter"]], width=420),
        ],
    )


def _cloud(row: Mapping[str, Any], part: str, words: str) -> Drawing:
    found = row["outputs"] if part == "outputs" else row["losses"]["first order"]
    pairs = zip(*row["scatter"][part], strict=True)
    return scatter(
        [{"true": true, "estimate": estimate} for true, estimate in pairs],
        *("true", "estimate"),
        title=f"{part.title()}, {WORDS[row['loss']]}",
        words=words,
        x_words="true change (retrained), and upwards the estimated one",
        identity=True,
        colours="blue",
        caption=f"error {found['error']:.2g}, slope {found['slope']:.3f}, N = {found['n']}",
    )
