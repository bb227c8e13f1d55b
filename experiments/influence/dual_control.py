"""Where influence fails: a network that is not linearised, by the strength of its ridge.

Claim (Extending Kernel Trick to Influence Functions, arXiv 2605.11239): outside the linear regime
both forms fail. Estimates of how retraining moves the weights, for two digits and the squared loss,
beside the same network linearised at its start, where they do not fail. The error is
||estimate - retrained|| / ||original - retrained||: doing nothing scores 1.

    python -m experiments.influence.dual_control

Two minutes on two busy CPU cores. Expect (mean errors over three starts of the parameter form with
the Hessian and with the Gauss-Newton matrix, and of the kernel form with the kernel at the starting
and at the trained weights):

    l2 0.1  errors 0.016 0.1 0.17 0.1
    l2 0.01  errors 0.18 0.25 0.39 0.25
    l2 0.001  errors 1 0.7 0.8 0.7
    l2 0.0001  errors 1 0.83 0.93 0.83

The two errors of 1 are no estimates: on an indefinite Hessian conjugate gradients take no step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.results import Page, measured
from experiments.harness.run import Bare, Experiment, main
from experiments.influence import KERNEL, networks
from experiments.influence.networks import LOOSE, means, network
from famr_jax.cli.flags import Count, Positive, Seed, Share
from famr_jax.influence import dual, kernels
from famr_jax.report import Column, Drawing, Grid, Section, Table, lines, number
from famr_jax.types import Batch, Params, as_pytree

PAIR = (3, 8)
HESSIAN, GAUSS_NEWTON = "primal, Hessian", "primal, Gauss-Newton"
AT_START, AT_END = "dual, kernel at the start", "dual, kernel at the end"
ESTIMATES = (HESSIAN, GAUSS_NEWTON, AT_START, AT_END)
AGAIN = "retrained from the original"
TRAINED = ("original", "retrained")
LINEARISED = "dual, linearised network"


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    num_train: Count = 1000
    """Training images of the two digits, at most."""
    width: Count = 256
    """Hidden units."""
    l2: tuple[Positive, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Ridges."""
    share: Share = 0.1
    """Share of the training set to forget."""
    seeds: Count = 3
    """How many networks and forget sets."""
    seed: Seed = 0
    """The first of them."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path | None = None
    """Directory of the results; one of its own in runs/ if not given."""


SMALL = Flags(num_train=20, width=8, l2=(1.0,), share=0.5, seeds=1)
"""The configuration that the test suite runs."""


def measure(flags: Flags, bench: Bare) -> dict[str, Any]:
    """One row for each ridge and seed, in float64."""
    with jax.enable_x64(True):
        train, test = (_only(batch, *PAIR) for batch in networks.load_digits(flags.data_dir))
        train = train[: flags.num_train]
        rows = []
        for l2 in flags.l2:
            for seed in range(flags.seed, flags.seed + flags.seeds):
                one = partial(one_ridge, flags, train, test, l2, seed)
                rows.append(bench.clock.show(f"l2 {l2:g}, seed {seed}", one))
    return {
        "num_train": len(train),
        "num_test": len(test),
        "num_params": (train.x[0].size + 1) * flags.width + (flags.width + 1) * len(PAIR),
        "rows": rows,
    }


def _only(batch: Batch, first: int, second: int) -> Batch:
    """The images of two classes, labelled 0 and 1."""
    rows = np.flatnonzero(np.isin(batch.labels, (first, second)))
    return Batch(batch.x[rows], (batch.labels[rows] == second).astype(jnp.int32))


def one_ridge(flags: Flags, train: Batch, test: Batch, l2: float, seed: int) -> dict[str, Any]:
    """Estimates of one move of the weights, and of that of the linearised network."""
    centre = networks.init(jax.random.key(seed), train.x[0].size, flags.width, 2)
    mask = networks.random_mask(flags.share, len(train), seed)
    retain = train[np.flatnonzero(~mask)]
    ridge = networks.Ridge(dual.SQUARED, as_pytree(network), l2)
    original = networks.train_network(ridge, centre, centre, train)
    retrained = networks.train_network(ridge, centre, centre, retain)
    again = networks.train_network(ridge, original.params, centre, retain)

    weights, minima = original.params, {"original": original, "retrained": retrained, AGAIN: again}
    moves, found = estimates(ridge, weights, centre, train, mask)
    moves[AGAIN] = optax.tree.sub(again.params, weights)
    true = optax.tree.sub(retrained.params, weights)
    before, after = network(weights, test.x), network(retrained.params, test.x)
    return {
        "l2": l2,
        "seed": seed,
        "num_forget": int(mask.sum()),
        "trained": {
            name: {
                "converged": bool(end.converged),
                "num_steps": int(end.num_steps),
                "train_accuracy": networks.accuracy(network(end.params, train.x), train.labels),
                "test_accuracy": networks.accuracy(network(end.params, test.x), test.labels),
            }
            for name, end in minima.items()
        },
        "distance_from_start": networks.error(weights, centre),
        "error": {name: networks.error(move, true) for name, move in moves.items()},
        "test_output_error": {
            name: networks.error(
                network(optax.tree.add(weights, move), test.x) - before, after - before
            )
            for name, move in moves.items()
        },
        **linearised(l2, centre, train, mask),
        "status": {name: networks.status(answer) for name, answer in found.items()},
    }


def estimates(
    ridge: networks.Ridge, weights: Params, centre: Params, train: Batch, mask: np.ndarray
) -> tuple[dict[str, Params], dict[str, Any]]:
    """The moves that each form foretells from the trained weights, and its solver's answers."""
    loss, retain, outputs = ridge.loss, train[np.flatnonzero(~mask)], network(weights, train.x)
    slope = ridge.value_and_grad(weights, centre, retain)[1]
    curves = {
        HESSIAN: networks.hessian(loss, weights, retain),
        GAUSS_NEWTON: networks.gauss_newton(loss, weights, retain, outputs[~mask]),
    }
    found = {k: networks.newton(curve, slope, ridge.l2, LOOSE) for k, curve in curves.items()}
    moves = {name: answer.value for name, answer in found.items()}
    for name, params in ((AT_START, centre), (AT_END, weights)):
        kernel = kernels.TangentKernel(network, params)
        moves[name], found[name] = networks.by_dual(
            loss, kernel, train, outputs, mask, ridge.l2, LOOSE
        )
    return moves, found


def linearised(l2: float, centre: Params, train: Batch, mask: np.ndarray) -> dict[str, float]:
    """The error of the kernel form on the network linearised at its start."""
    kernel = kernels.TangentKernel(network, centre)
    ridge = networks.Ridge(dual.SQUARED, kernels.linearize_model(network, centre), l2)
    batches = train, train[np.flatnonzero(~mask)]
    ends = [networks.train_linearised(ridge, centre, batch) for batch in batches]
    (first, _), (second, _) = ends
    outputs = ridge.model(first, train.x)
    move, _ = networks.by_dual(ridge.loss, kernel, train, outputs, mask, l2, LOOSE)
    return {
        "linearised_gradient": max(gradient for _, gradient in ends),
        "linearised_error": networks.error(move, optax.tree.sub(second, first)),
    }


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's claim, judged at the smallest ridge, where the network is least linear."""
    del flags
    rows, names = results["rows"], (HESSIAN, AT_START)
    last = [row for row in rows if row["l2"] == rows[-1]["l2"]]
    trained = all(row["trained"][name]["converged"] for row in last for name in TRAINED)
    # A Hessian that is indefinite is the form's own failure; a solver that gave up is not.
    solved = all(
        row["status"][name]["converged"] or row["status"][name]["negative_curvature"]
        for row in last
        for name in names
    )
    fails = [all(not measured(row["error"][name]) < 1 for row in last) for name in names]
    verdict = "holds" if all(fails) else "mixed" if any(fails) else "fails"
    by_ridge = "; ".join(
        f"l2 {row['l2']:g}: {row['error'][HESSIAN]:.2g} and {row['error'][AT_START]:.2g}"
        for row in means(rows, "l2", of=["error"])
    )
    stopped = [row["l2"] for row in rows if row["status"][HESSIAN]["negative_curvature"]]
    no_step = ", ".join(f"{stopped.count(l2)} at l2 {l2:g}" for l2 in dict.fromkeys(stopped))
    return [
        KERNEL.judge(
            "fails",
            verdict if trained and solved else "not resolved",
            f"Mean error of primal (Hessian) and dual (kernel at the start), 1 for doing nothing: "
            f"{by_ridge}; digits {PAIR[0]} and {PAIR[1]}, {rows[0]['num_forget']} of "
            f"N={results['num_train']} forgotten, {len(last)} seeds; at the smallest ridge "
            f"{'all' if trained else 'not all'} networks reached a gradient of 1e-6 of the first. "
            f"Indefinite Hessians, on which the primal form takes no step: {no_step or 'none'}.",
        ),
    ]


def headline(content: Mapping[str, Any]) -> list[str]:
    """Mean errors by ridge, for docstrings and README, from the JSON."""
    return [
        f"l2 {row['l2']:g}  errors " + " ".join(f"{row['error'][name]:.2g}" for name in ESTIMATES)
        for row in means(content["results"]["rows"], "l2", of=["error"])
    ]


def page(content: Mapping[str, Any]) -> Page:
    """Errors in weights and in test outputs by ridge, and a table of every seed."""
    results = content["results"]
    rows = results["rows"]
    by_l2 = means(rows, "l2", of=["error", "test_output_error", "linearised_error"])
    for row in by_l2:
        row["error"][LINEARISED] = row["linearised_error"]
    kinds = {"Weights": "error", "Test outputs": "test_output_error"}
    charts = [_chart(title, by_l2, kind) for title, kind in kinds.items()]
    return Page(
        "Outside the linear regime",
        f"A network of {number(results['num_params'])} parameters that is not linearised, on "
        f"{number(results['num_train'])} images of two digits, of which "
        f"{rows[0]['num_forget']} are forgotten; squared loss, {len(rows) // len(by_l2)} seeds.",
        [Section("Error against the ridge", [Grid(charts, width=420), _table(rows)])],
    )


def _chart(title: str, rows: Sequence[Mapping[str, Any]], column: str) -> Drawing:
    return lines(
        [
            {"l2": row["l2"], "estimate": name, "error": row[column][name]}
            for name in rows[0][column]
            for row in rows
        ],
        *("l2", "error", "estimate"),
        title=title,
        words="error of doing nothing: 1",
        levels=[(1.0, "do nothing")],
        log_x=True,
        log_y=True,
        colours={GAUSS_NEWTON: "blue"},
        key=True,
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        {
            "l2": f"{row['l2']:g}",
            "Seed": row["seed"],
            "Distance from start": row["distance_from_start"],
            **row["error"],
            "Dual, linearised": row["linearised_error"],
            **{f"Test: {name}": row["trained"][name]["test_accuracy"] for name in TRAINED},
            "Not converged": _not_converged(row),
        }
        for row in rows
    ]
    shares = {name: Column(name, "share") for name in shown[0] if name.startswith("Test")}
    return Table(
        shown,
        dict.fromkeys(shown[0]) | shares | {"Not converged": Column(wide=True)},
        caption="Curves are means over the seeds. Retrained from the original: another "
        "stationary point of the retained objective, the null. Distance from start: "
        "relative to the starting weights. Accuracies in %.",
    )


def _not_converged(row):
    """What did not converge, each with its solver's reason."""
    told = [
        f"{name}: {each.get('why', 'training').partition(':')[0]}"
        for name, each in (row["status"] | row["trained"]).items()
        if not each["converged"]
    ]
    return "; ".join(told) or "none"


EXPERIMENT = Experiment(
    module="experiments.influence.dual_control",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
)

if __name__ == "__main__":
    main(EXPERIMENT)
