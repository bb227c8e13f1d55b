"""Removal from a linearised network by both routes, beside retraining."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.influence.networks import (
    CLASSES,
    LOSSES,
    TIGHT,
    WORDS,
    Ridge,
    accuracies,
    by_dual,
    error,
    gauss_newton,
    init,
    means,
    network,
    newton,
    norm,
    random_mask,
    status,
    train_linearised,
)
from famr_jax.influence import kernels
from famr_jax.report import Column, Grid, Section, Table, lines
from famr_jax.types import Batch, Params


def measure(
    train: Batch,
    test: Batch,
    *,
    width: int,
    l2s: Sequence[float],
    shares: Sequence[float],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Both routes and retraining, for each loss with its ridge, share and seed of a forget set.

    The first seed is that of the network.
    """
    centre = init(jax.random.key(seeds[0]), train.x[0].size, width, CLASSES)
    model = kernels.linearize_model(network, centre)
    rows = []
    for (name, loss), l2 in zip(LOSSES.items(), l2s, strict=True):
        ridge = Ridge(loss, model, l2)
        original, gradient = train_linearised(ridge, centre, train)
        for share, seed in itertools.product(shares, seeds):
            mask = random_mask(share, len(train), seed)
            case = {"loss": name, "l2": l2, "share": share, "num_forget": int(mask.sum())}
            found = _removal(ridge, centre, original, train, test, mask)
            found["gradient"] = max(gradient, found["gradient"])
            rows.append(case | found)
    return rows


def _removal(
    ridge: Ridge, centre: Params, original: Params, train: Batch, test: Batch, mask: np.ndarray
) -> dict[str, Any]:
    """One forget set removed from a linearised network by both routes, and by retraining."""
    loss, model, l2 = ridge.loss, ridge.model, ridge.l2
    kernel, retain = kernels.TangentKernel(network, centre), train[np.flatnonzero(~mask)]
    outputs, test_outputs = model(original, train.x), model(original, test.x)
    retrained, gradient = train_linearised(ridge, centre, retain)
    true = optax.tree.sub(retrained, original)
    curve = gauss_newton(loss, centre, retain, outputs[~mask])
    slope = ridge.value_and_grad(original, centre, retain)[1]
    primal = newton(curve, slope, l2, TIGHT)
    move, found = by_dual(loss, kernel, train, outputs, mask, l2, TIGHT)
    change, test_change = (kernel.product(x, train.x, found.value) for x in (train.x, test.x))
    after, test_after = model(retrained, train.x), model(retrained, test.x)
    trained = {"original": outputs, "dual": outputs + change, "retrained": after}
    tested = {"original": test_outputs, "dual": test_outputs + test_change}
    return {
        "gradient": gradient,
        "error": {"primal": error(primal.value, true), "dual": error(move, true)},
        "as_published": error(move, true) * norm(true) / norm(retrained),
        "test_output_error": error(test_change, test_after - test_outputs),
        "from_primal": error(move, primal.value),
        "forget_accuracy": accuracies(
            train.labels[mask], {name: every[mask] for name, every in trained.items()}
        ),
        "test_accuracy": accuracies(test.labels, tested | {"retrained": test_after}),
        "status": {"primal": status(primal), "dual": status(found)},
    }


def section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """How near to retraining the linearised network's removals are, by the forgotten share."""
    numbers = ["error", "from_primal", "test_output_error", "as_published"]
    rows = means(rows, "loss", "share", of=[*numbers, "forget_accuracy", "test_accuracy"])
    errors = [
        {"share": row["share"], "route": f"{route}, {WORDS[row['loss']]}", "value": value}
        for row in rows
        for route, value in row["error"].items()
    ]
    recognised = [
        {"share": row["share"], "model": name, "value": value}
        for row in rows
        for name, value in row["forget_accuracy"].items()
        if row["loss"] == "cross_entropy"
    ]
    charts = [
        lines(
            errors,
            *("share", "value", "route"),
            title="Error",
            words="error of doing nothing: 1",
            x_words="% forgotten",
            x_unit="share",
            levels=[(1.0, "do nothing")],
            log_y=True,
            colours={"primal, cross-entropy": "blue"},
            key=True,
        ),
        lines(
            recognised,
            *("share", "value", "model"),
            title="Forget accuracy",
            unit="share",
            words="% of images, cross-entropy",
            x_words="% forgotten",
            x_unit="share",
            key=True,
        ),
    ]
    return Section("How near to retraining?", [Grid(charts, width=420), _table(rows)])


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        {
            "Loss": WORDS[row["loss"]],
            "Forgotten": row["share"],
            "Primal": row["error"]["primal"],
            "Dual": row["error"]["dual"],
            "Dual − primal": row["from_primal"],
            "Test outputs": row["test_output_error"],
            "As published": row["as_published"],
            **{f"Forget: {name}": value for name, value in row["forget_accuracy"].items()},
            **{f"Test: {name}": value for name, value in row["test_accuracy"].items()},
        }
        for row in rows
    ]
    shares = [name for name in shown[0] if name == "Forgotten" or ": " in name]
    return Table(
        shown,
        dict.fromkeys(shown[0]) | {name: Column(name, "share") for name in shares},
        caption="Means over the forget sets; a random move of the true length scores 1.41. "
        "As published: the distance over ‖retrained‖, which the starting weights flatter. "
        "Forgotten and accuracies in %.",
    )
