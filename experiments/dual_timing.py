"""Which route to removal is faster, as parameters grow: parameter space or function space?

Claim (Extending Kernel Trick to Influence Functions, arXiv 2605.11239): the dual form is faster
where parameters outnumber retained outputs. Conjugate gradients solve both to the same residual;
the dual one with its kernel matrix kept from an earlier removal, built for this one, or as
products. Compilation is apart; routes take turns.

    python -m experiments.dual_timing

Three minutes on two quiet CPU cores. Expect (seconds of the parameter route over those of the
kernel route, by parameters, and from where on the kernel is the faster):

    parameters  610  2410  9610  38410  153610  307210
    primal / dual, kernel kept  0.31  0.41  1  1  11  10  faster from 9.1e+03 parameters on
    primal / dual, kernel built each time  0.052  0.028  0.025  0.032  0.034  0.026  faster nowhere
    primal / dual, matrix-free  1.7  1.4  0.97  1.4  1.9  1.1  faster from 1.1e+04 parameters on
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import common, dual_report, dual_routes
from experiments.dual_routes import (
    SOURCE,
    TIGHT,
    Ridge,
    by_dual,
    error,
    gauss_newton,
    init,
    load_digits,
    network,
    newton,
    random_mask,
    status,
)
from famr_jax.influence import dual, kernels
from famr_jax.types import Batch, check_count

CLASSES, HALF = 10, 0.5
ROUTES = {
    "kernel kept": ("dense",),
    "kernel built each time": ("dense", "kernel"),
    "matrix-free": ("matrix-free",),
}


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    num_train: int = 200
    """Training images."""
    widths: tuple[int, ...] = (8, 32, 128, 512, 2048, 4096)
    """Hidden units of the linearised networks, half of the images forgotten."""
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares to forget, at one width."""
    width: int = 512
    """That width."""
    l2: float = 1e-2
    """Ridge, for cross-entropy."""
    rounds: int = 5
    """Interleaved rounds."""
    seed: int = 0
    """Of everything random."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path = Path("runs/dual_timing")
    """Directory of the results."""


SMALL = Flags(num_train=24, widths=(2, 8), shares=(), width=8, rounds=1)
"""The configuration that the test suite runs."""


def one_case(flags: Flags, train: Batch, width: int, share: float) -> dict[str, Any]:
    """Warm seconds of every route in turns, and the true error of each answer."""
    loss, l2, how = dual.CROSS_ENTROPY, flags.l2, {"tol": 1e-8, "max_steps": 5000}
    centre = init(jax.random.key(flags.seed), train.x[0].size, width, CLASSES)
    kernel = kernels.TangentKernel(network, centre)
    grams = {form: kernel.gram(train.x, form=form) for form in ("dense", "matrix-free")}
    ridge = Ridge(loss, kernels.linearize_model(network, centre), l2)
    fit = dual.fit(
        loss, grams["matrix-free"], train.labels, network(centre, train.x), l2=l2, tol=TIGHT["tol"]
    )
    params = optax.tree.add(centre, kernel.to_params(train.x, fit.weights))
    mask = random_mask(share, len(train), flags.seed)
    kept = np.flatnonzero(~mask)
    retain = train[kept]

    def primal(**how):
        slope = ridge.value_and_grad(params, centre, retain)[1]
        return newton(gauss_newton(loss, centre, retain, fit.outputs[kept]), slope, l2, **how)

    def by_form(form, **how):
        return by_dual(loss, kernel, train, fit.outputs, mask, l2, gram=grams[form], **how)

    routes = {
        "primal": partial(primal, **how),
        **{form: partial(by_form, form, **how) for form in grams},
        "kernel": partial(kernel.gram, train.x, form="dense"),
    }
    first, seconds = {}, {name: [] for name in routes}
    for name, route in routes.items():
        first[name], answer = timed(route)
    for _ in range(flags.rounds):
        for name, route in routes.items():
            seconds[name].append(timed(route)[0])
    exact = primal(**TIGHT).value
    answers = {"primal": (answer := routes["primal"]()).value, **{f: routes[f]()[0] for f in grams}}
    solutions = {"primal": answer, **{form: routes[form]()[1] for form in grams}}
    return {
        "width": width,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(centre)),
        "share": share,
        "retained_outputs": len(kept) * CLASSES,
        "seconds": seconds,
        "first_call": first,
        "error": {name: error(move, exact) for name, move in answers.items()},
        "status": {name: status(found) for name, found in solutions.items()},
        "chosen": "dense" if isinstance(kernel.gram(train.x), kernels.Dense) else "matrix-free",
    }


def timed(route: Callable) -> tuple[float, Any]:
    """Wall seconds until the answer is ready, and the answer."""
    began = time.perf_counter()
    answer = jax.block_until_ready(route())
    return time.perf_counter() - began, answer


def crossings(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Primal over dual seconds by width, and the parameters from which on each dual route wins.

    The ratio is the median over rounds; a route that never wins has no crossover.
    """
    by_size = {row["num_params"]: row for row in reversed(rows) if row["share"] == HALF}
    sizes, found = sorted(by_size), {}
    for name, parts in ROUTES.items():
        ratios = []
        for size in sizes:
            seconds = by_size[size]["seconds"]
            together = np.sum([seconds[part] for part in parts], axis=0)
            ratios.append(float(np.median(np.asarray(seconds["primal"]) / together)))
        found[name] = {"ratios": ratios, "crossover": crossover(sizes, ratios)}
    return {"num_params": sizes, "routes": found}


def crossover(sizes: list[int], ratios: list[float]) -> float | None:
    """Where the ratio exceeds 1 for good, interpolated between logarithms; None if nowhere."""
    below = [i for i, value in enumerate(ratios) if value <= 1]
    if not below:
        return float(sizes[0])
    last = below[-1]
    if last == len(sizes) - 1:
        return None
    ends = slice(last, last + 2)
    return float(np.exp(np.interp(0, np.log(ratios[ends]), np.log(sizes[ends]))))


def claims(results: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's claim, judged at every width whose parameters outnumber the retained outputs."""
    cross, limit = results["crossings"], results["rows"][0]["retained_outputs"]
    beyond = [i for i, size in enumerate(cross["num_params"]) if size > limit]
    faster = [[r["ratios"][i] > 1 for i in beyond] for r in cross["routes"].values()]
    won = "; ".join(f"{name}, {_where(route)}" for name, route in cross["routes"].items())
    solved = all(s["converged"] for row in results["rows"] for s in row["status"].values())
    verdict = "holds" if all(map(all, faster)) else "mixed" if any(map(any, faster)) else "fails"
    if not (beyond and solved):
        verdict = "not resolved"
    return [
        common.claim(
            "The dual form is faster where parameters outnumber retained outputs.",
            SOURCE,
            verdict,
            f"Linearised network on digits, {limit} retained outputs, one removal to the same "
            f"residual, CPU, float64, up to {max(cross['num_params'])} parameters. The dual route "
            f"is the faster: {won}.",
        ),
    ]


def _where(route: dict[str, Any]) -> str:
    if all(value > 1 for value in route["ratios"]):
        return "at every size"
    found = route["crossover"]
    return "nowhere" if found is None else f"from {found:.2g} parameters on"


def headline(content: dict[str, Any]) -> list[str]:
    """Primal over dual seconds by parameters, for docstrings and README, from the JSON."""
    cross = content["results"]["crossings"]
    lines = ["parameters  " + "  ".join(str(size) for size in cross["num_params"])]
    for name, route in cross["routes"].items():
        ratios = "  ".join(f"{value:.2g}" for value in route["ratios"])
        lines.append(f"primal / dual, {name}  {ratios}  faster {_where(route)}")
    return lines


def measure(flags: Flags, clock: common.Clock) -> tuple[list, dict[str, Any]]:
    """One row for each width and share, and the verdict."""
    train = load_digits(flags.data_dir)[0][: flags.num_train]
    cases = [(width, HALF) for width in flags.widths]
    cases += [(flags.width, share) for share in flags.shares if (flags.width, share) not in cases]
    rows = [
        clock.show(f"width {width}, {share:.0%}", partial(one_case, flags, train, width, share))
        for width, share in cases
    ]
    results = {"num_train": len(train), "rows": rows, "crossings": crossings(rows)}
    return claims(results), results


def run(flags: Flags) -> None:
    """The whole experiment: writes metrics.json and report.html."""
    for name in ("num_train", "width", "rounds"):
        check_count(name, getattr(flags, name))
    dual_routes.run("dual_timing", flags, measure, dual_report.timing, headline)


if __name__ == "__main__":
    common.main(Flags, run)
