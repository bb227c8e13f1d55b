"""Which route to removal is faster, as parameters grow: parameter space or function space?

Claim (Extending Kernel Trick to Influence Functions, arXiv 2605.11239): the dual form is faster
where parameters outnumber retained outputs. Conjugate gradients solve both to the same residual;
the dual one with its kernel matrix kept from an earlier removal, built for this one, or as
products. Compilation is apart; routes take turns.

    python -m experiments.influence.dual_timing

Three minutes on two quiet CPU cores. Expect (seconds of the parameter route over those of the
kernel route, by parameters, and from where on the kernel is the faster):

    parameters  610  2410  9610  38410  153610  307210
    primal / dual, kernel kept  0.31  0.41  1  1  11  10  faster from 9.1e+03 parameters on
    primal / dual, kernel built each time  0.052  0.028  0.025  0.032  0.034  0.026  faster nowhere
    primal / dual, matrix-free  1.7  1.4  0.97  1.4  1.9  1.1  faster from 1.1e+04 parameters on
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.harness.results import Page
from experiments.harness.run import Bare, Experiment, main
from experiments.influence import KERNEL, networks
from experiments.influence.networks import CLASSES, LOOSE, TIGHT, network
from famr_jax.cli.flags import Count, Positive, Seed, Share
from famr_jax.influence import dual, kernels
from famr_jax.report import Column, Grid, Section, Table, lines, number, palette
from famr_jax.types import Batch

HALF = 0.5
ROUTES = {
    "kernel kept": ("dense",),
    "kernel built each time": ("dense", "kernel"),
    "matrix-free": ("matrix-free",),
}
NAMES = {
    "primal": "primal",
    "dense": "dual, kernel kept",
    "matrix-free": "dual, matrix-free",
    "kernel": "building the kernel",
}
COLOURS = palette([*NAMES.values(), *(f"dual, {name}" for name in ROUTES)])


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    num_train: Count = 200
    """Training images."""
    widths: tuple[Count, ...] = (8, 32, 128, 512, 2048, 4096)
    """Hidden units of the linearised networks, half of the images forgotten."""
    shares: tuple[Share, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares to forget, at one width."""
    width: Count = 512
    """That width."""
    l2: Positive = 1e-2
    """Ridge, for cross-entropy."""
    rounds: Count = 5
    """Interleaved rounds."""
    seed: Seed = 0
    """Of everything random."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path | None = None
    """Directory of the results; one of its own in runs/ if not given."""


SMALL = Flags(num_train=24, widths=(2, 8), shares=(), width=8, rounds=1)
"""The configuration that the test suite runs."""


def measure(flags: Flags, bench: Bare) -> dict[str, Any]:
    """One row for each width and share, and where the lines of the routes cross."""
    cases = [(width, HALF) for width in flags.widths]
    cases += [(flags.width, share) for share in flags.shares if (flags.width, share) not in cases]
    with jax.enable_x64(True):
        train = networks.load_digits(flags.data_dir)[0][: flags.num_train]
        rows = [
            bench.clock.show(
                f"width {width}, {share:.0%}", partial(race, flags, train, width, share)
            )
            for width, share in cases
        ]
    return {"num_train": len(train), "rows": rows, "crossings": crossings(rows)}


def race(flags: Flags, train: Batch, width: int, share: float) -> dict[str, Any]:
    """Warm seconds of every route in turns, and the true error of each answer."""
    loss, l2 = dual.CROSS_ENTROPY, flags.l2
    centre = networks.init(jax.random.key(flags.seed), train.x[0].size, width, CLASSES)
    kernel = kernels.TangentKernel(network, centre)
    grams = {form: kernel.gram(train.x, form=form) for form in ("dense", "matrix-free")}
    ridge = networks.Ridge(loss, kernels.linearize_model(network, centre), l2)
    start = network(centre, train.x)
    fit = dual.fit(loss, grams["matrix-free"], train.labels, start, l2=l2, tol=TIGHT.tol)
    params = optax.tree.add(centre, kernel.to_params(train.x, fit.weights))
    mask = networks.random_mask(share, len(train), flags.seed)
    kept = np.flatnonzero(~mask)
    retain = train[kept]

    def primal(effort=LOOSE):
        slope = ridge.value_and_grad(params, centre, retain)[1]
        return networks.newton(
            networks.gauss_newton(loss, centre, retain, fit.outputs[kept]), slope, l2, effort
        )

    def by_form(form):
        return networks.by_dual(loss, kernel, train, fit.outputs, mask, l2, LOOSE, gram=grams[form])

    routes = {
        "primal": primal,
        **{form: partial(by_form, form) for form in grams},
        "kernel": partial(kernel.gram, train.x, form="dense"),
    }
    first = {name: timed(route) for name, route in routes.items()}
    rounds = [{name: timed(route) for name, route in routes.items()} for _ in range(flags.rounds)]
    exact, (found, duals) = primal(TIGHT).value, (primal(), {form: by_form(form) for form in grams})
    answers = {"primal": found.value} | {form: move for form, (move, _) in duals.items()}
    solutions = {"primal": found} | {form: weights for form, (_, weights) in duals.items()}
    return {
        "width": width,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(centre)),
        "share": share,
        "retained_outputs": len(kept) * CLASSES,
        "seconds": {name: [each[name] for each in rounds] for name in routes},
        "first_call": first,
        "error": {name: networks.error(move, exact) for name, move in answers.items()},
        "status": {name: networks.status(found) for name, found in solutions.items()},
        "chosen": "dense" if isinstance(kernel.gram(train.x), kernels.Dense) else "matrix-free",
    }


def timed(route: Callable[[], Any]) -> float:
    """Wall seconds until the answer is ready."""
    began = time.perf_counter()
    jax.block_until_ready(route())
    return time.perf_counter() - began


def crossings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Primal over dual seconds by width, and the parameters from which on each dual route wins.

    The ratio is the median over rounds; a route that never wins has no crossover.
    """
    by_size = _by_size(rows)
    sizes, found = sorted(by_size), {}
    for name, parts in ROUTES.items():
        ratios = []
        for size in sizes:
            seconds = by_size[size]["seconds"]
            together = np.sum([seconds[part] for part in parts], axis=0)
            ratios.append(float(np.median(np.asarray(seconds["primal"]) / together)))
        found[name] = {"ratios": ratios, "crossover": crossover(sizes, ratios)}
    return {"num_params": sizes, "routes": found}


def _by_size(rows):
    return {row["num_params"]: row for row in reversed(rows) if row["share"] == HALF}


def crossover(sizes: Sequence[int], ratios: Sequence[float]) -> float | None:
    """Where the ratio exceeds 1 for good, interpolated between logarithms; None if nowhere."""
    below = [i for i, value in enumerate(ratios) if value <= 1]
    if not below:
        return float(sizes[0])
    last = below[-1]
    if last == len(sizes) - 1:
        return None
    ends = slice(last, last + 2)
    return float(np.exp(np.interp(0, np.log(ratios[ends]), np.log(sizes[ends]))))


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """The paper's claim, judged at every width whose parameters outnumber the retained outputs."""
    del flags
    cross, limit = results["crossings"], results["rows"][0]["retained_outputs"]
    beyond = [i for i, size in enumerate(cross["num_params"]) if size > limit]
    faster = [[r["ratios"][i] > 1 for i in beyond] for r in cross["routes"].values()]
    won = "; ".join(f"{name}, {_where(route)}" for name, route in cross["routes"].items())
    solved = all(s["converged"] for row in results["rows"] for s in row["status"].values())
    verdict = "holds" if all(map(all, faster)) else "mixed" if any(map(any, faster)) else "fails"
    return [
        KERNEL.judge(
            "faster",
            verdict if beyond and solved else "not resolved",
            f"Linearised network on digits, {limit} retained outputs, one removal to the same "
            f"residual, CPU, float64, up to {max(cross['num_params'])} parameters. The dual route "
            f"is the faster: {won}.",
        ),
    ]


def _where(route: Mapping[str, Any]) -> str:
    if all(value > 1 for value in route["ratios"]):
        return "at every size"
    found = route["crossover"]
    return "nowhere" if found is None else f"from {found:.2g} parameters on"


def headline(content: Mapping[str, Any]) -> list[str]:
    """Primal over dual seconds by parameters, for docstrings and README, from the JSON."""
    cross = content["results"]["crossings"]
    told = ["parameters  " + "  ".join(str(size) for size in cross["num_params"])]
    for name, route in cross["routes"].items():
        ratios = "  ".join(f"{value:.2g}" for value in route["ratios"])
        told.append(f"primal / dual, {name}  {ratios}  faster {_where(route)}")
    return told


def page(content: Mapping[str, Any]) -> Page:
    """Seconds of the routes and their ratios by parameters, and a table of every case."""
    results = content["results"]
    rows = results["rows"]
    parts = [Grid(_charts(results), width=420), _table(rows)]
    return Page(
        "Which route to removal is faster?",
        f"One removal from a linearised network on {number(results['num_train'])} digits, by "
        "conjugate gradients to the same residual; median of "
        f"{len(rows[0]['seconds']['primal'])} interleaved rounds, compilation apart.",
        [Section("Time against parameters", parts)],
    )


def _charts(results):
    rows, cross = results["rows"], results["crossings"]
    limit = rows[0]["retained_outputs"]
    seconds = [
        {"parameters": size, "route": title, "value": np.median(row["seconds"][route])}
        for route, title in NAMES.items()
        for size, row in sorted(_by_size(rows).items())
    ]
    ratios = [
        {"parameters": size, "route": f"dual, {name}", "value": ratio}
        for name, route in cross["routes"].items()
        for size, ratio in zip(cross["num_params"], route["ratios"], strict=True)
    ]
    words = "above 1 the dual wins; upright: retained outputs"
    return [
        _chart("Seconds", "s a removal, half forgotten", seconds),
        _chart("Primal over dual", words, ratios, level=1.0, upright=limit),
    ]


def _chart(title, words, rows, level=None, upright=None):
    return lines(
        rows,
        *("parameters", "value", "route"),
        title=title,
        words=words,
        levels=[(level, "equally fast")] if level else (),
        x_levels=[(upright, f"{upright}")] if upright else (),
        log_x=True,
        log_y=True,
        colours=COLOURS,
        key=True,
    )


def _table(rows):
    shown = [
        {
            "Parameters": row["num_params"],
            "Forgotten": row["share"],
            "Retained outputs": row["retained_outputs"],
            **{title: float(np.median(row["seconds"][k])) for k, title in NAMES.items()},
            "Products, primal": row["status"]["primal"]["products"],
            "Products, dual": row["status"]["matrix-free"]["products"],
            "Largest error": max(row["error"].values()),
            "First calls": sum(row["first_call"].values()),
            "Form by cost": row["chosen"],
        }
        for row in rows
    ]
    return Table(shown, dict.fromkeys(shown[0]) | {"Forgotten": Column(unit="share")})


EXPERIMENT = Experiment(
    module="experiments.influence.dual_timing",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
)

if __name__ == "__main__":
    main(EXPERIMENT)
