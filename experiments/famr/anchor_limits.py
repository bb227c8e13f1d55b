"""FAMR's stationary point against its linearisation, and how much of the way ten epochs go.

Claim: FAMR ends where grad L_forget + lam (params - anchor) = 0, of an objective that the anchor
makes locally strongly convex (FAMR, arXiv 2506.14515). In float64: the exact identity
(H_path + lam I)(end - anchor) = -g, and how fast -(H + lam I)^-1 g and -g/lam come near its
solution. On the demo's ViT: the steps of ten epochs along eigenvectors of the forget Hessian.

    python -m experiments.anchor_limits

Three minutes on two busy CPU cores. Expect (the order in lam of each prediction's relative error,
and the largest error of the identity; then the ends of the forget Hessian at the trained weights,
and which share of the way to the converged stationary point each run goes in ten epochs):

    logistic  class:3  orders: linearised -2.00  gradient -1.01  identity 1e-11
    logistic  random:0.05  orders: linearised -1.99  gradient -1.00  identity 5e-11
    mlp_16  class:3  orders: linearised -2.01  gradient -1.00  identity 9e-12
    mlp_16  random:0.05  orders: linearised -2.01  gradient -1.00  identity 4e-11
    vit_mu/2  class:3  from -328 to 106  way: sgd mean 0.010, sgd sum 0.149, adam mean 0.046
    vit_mu/2  random:0.05  from -221 to 17  way: sgd mean 0.000, sgd sum 0.130, adam mean 0.011
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments import anchor_report, anchor_way, common, workbench
from experiments.gap_softmax import distance
from experiments.workbench import Case, Workbench, make_optimizer
from famr_jax import minimise
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.types import Context, Pair, check_count, check_number

SOURCE = "FAMR (arXiv 2506.14515)"
STATIONARY = "FAMR ends at the stationary point grad L_forget + lam (params - anchor) = 0."
CONVEX = "The anchor makes the objective locally strongly convex around the trained weights."
STILL = 1e-2
L2 = 1e-3
FITTED_FROM = 30


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "random:0.05")
    """What to forget, one case each."""
    models: tuple[str, ...] = ("logistic", "mlp_16")
    """Of the float64 part, trained with a ridge of 1e-3."""
    lams: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
    """FAMR's anchor strengths in the float64 part, mean form."""
    lam: float = 0.1
    """That of the network's runs: the paper's."""
    epochs: int = 10
    """Epochs of those."""
    lr: float = 1e-4
    """Step of those."""
    eigenvectors: int = 40
    """How many at either end of the forget Hessian's spectrum."""
    bench: workbench.Flags = field(default_factory=workbench.Flags)


SMALL = Flags(
    forget=("class:2",),
    models=("mlp_4",),
    lams=(100.0, 1e3, 1e4),
    epochs=3,
    eigenvectors=8,
    bench=workbench.Flags(classes=3, model="mlp_4", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


def law(bench: Workbench, name: str, case: Case, lams: Sequence[float]) -> dict[str, Any]:
    """One model in float64: identity on the path, errors of both linearisations, their orders."""
    model = bench.on(name).model
    train = minimise.double(bench.train)
    start = minimise.double(model.init(bench.key("init")))
    ridge, everything = minimise.Ridge(model.apply, L2, float(len(train))), Pair(None, train)
    settings = {"key": bench.key("train"), "tol": 1e-3, "max_steps": 500}
    anchor = minimise.minimise(ridge, start, Context(start), everything, **settings).params
    pair = Pair(minimise.split(train, case.mask).forget, None)
    bare = AnchoredUniform(model.apply, 0.0)
    slope, curvature = (
        np.asarray(d) for d in minimise.derivatives(bare, anchor, Context(anchor), pair)
    )
    spectrum = np.linalg.eigvalsh(curvature)
    rows = []
    for lam in lams:
        end = minimise.newton(AnchoredUniform(model.apply, lam), anchor, Context(anchor), pair)
        step = np.asarray(ravel_pytree(end.params)[0] - ravel_pytree(anchor)[0])
        averaged = np.asarray(minimise.along_path(bare, anchor, step, pair))
        newton = -np.linalg.solve(curvature + lam * np.eye(len(step)), slope)
        rows.append(
            {
                "lam": lam,
                "converged": bool(end.converged),
                "identity": distance(averaged + lam * step, -slope),
                "linearised": distance(newton, step),
                "gradient": distance(-slope / lam, step),
            }
        )
    stiffest = float(np.max(np.abs(spectrum)))
    return {
        "model": name,
        "forget": case.spec,
        "num_params": len(slope),
        "lambda_min": float(spectrum[0]),
        "lambda_max": float(spectrum[-1]),
        "rows": rows,
        "orders": {
            kind: order([row for row in rows if row["lam"] >= FITTED_FROM * stiffest], kind)
            for kind in ("linearised", "gradient")
        },
    }


def order(rows: Sequence[dict[str, Any]], kind: str) -> float | None:
    """Slope of log error over log lam, of errors that rounding leaves; None below two points."""
    kept = [row for row in rows if row["converged"] and row[kind] > 100 * row["identity"]]
    if len(kept) < 2:
        return None
    logs = [np.log([row[name] for row in kept]) for name in ("lam", kind)]
    return float(np.polyfit(*logs, 1)[0])


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's sentences, judged by thresholds fixed here."""
    where = f"{results['model']['name']} on {results['dataset']['name']}"
    made = []
    for case in results["cases"]:
        left = {n: run["grad_at_end"] / run["grad_at_anchor"] for n, run in case["runs"].items()}
        still = [value <= STILL for value in left.values()]
        parts = [
            f"{name} {left[name]:.2g} of the gradient left, {run['covered']:.1%} of the way"
            for name, run in case["runs"].items()
        ]
        words = f"{where}, {case['forget']} (N={case['num_forget']}): after {flags['epochs']} "
        words += f"epochs at lr {flags['lr']:g} and lam {flags['lam']:g}: {'; '.join(parts)}."
        verdict = "holds" if all(still) else "mixed" if any(still) else "fails"
        made.append(common.claim(STATIONARY, SOURCE, verdict, words))
        least, lam = case["lambda_min"], flags["lam"]
        needed = {"mean": -least, "sum": -least * case["num_forget"]}
        convex = [lam > bound for bound in needed.values()]
        verdict = "holds" if all(convex) else "mixed" if any(convex) else "fails"
        words = (
            f"{where}, {case['forget']}: at the trained weights the Hessian of the forget loss has "
            f"eigenvalues from {least:.3g} to {case['lambda_max']:.3g} (mean form), so the anchor "
            f"convexifies from lam {needed['mean']:.3g}, in the paper's sum {needed['sum']:.3g}; "
            f"the paper's is {lam:g}. {case['gradient_below']:.0%} of the squared gradient lies "
            f"along the {flags['eigenvectors']} lowest eigenvectors."
        )
        if not case["converged"]:
            verdict = "not resolved"
        made.append(common.claim(CONVEX, SOURCE, verdict, words))
    return made


def headline(content: dict[str, Any]) -> list[str]:
    """The laws, and for each case how much of the way the runs went, for the docstring."""
    lines = []
    for each in content["results"]["laws"]:
        found = {kind: value for kind, value in each["orders"].items() if value is not None}
        orders = "  ".join(f"{kind} {value:.2f}" for kind, value in found.items()) or "none"
        worst = max(row["identity"] for row in each["rows"])
        lines.append(f"{each['model']}  {each['forget']}  orders: {orders}  identity {worst:.0e}")
    for case in content["results"]["cases"]:
        name = content["results"]["model"]["name"]
        parts = [
            f"{run.replace(',', '')} {found['covered']:.3f}" for run, found in case["runs"].items()
        ]
        ends = f"from {case['lambda_min']:.0f} to {case['lambda_max']:.0f}"
        lines.append(f"{name}  {case['forget']}  {ends}  way: {', '.join(parts)}")
    return lines


def check(flags: Flags) -> None:
    """Refuses what cannot be run, before anything is."""
    if len(flags.lams) < 2 or list(flags.lams) != sorted(set(flags.lams)):
        raise ValueError(f"`lams` must be ascending, at least two, got {flags.lams}.")
    for lam in flags.lams:
        check_number("lams", lam, above=0)
    check_number("lam", flags.lam, least=0)
    for name in ("epochs", "eigenvectors"):
        check_count(name, getattr(flags, name))
    make_optimizer("sgd", flags.lr)


def run(flags: Flags) -> None:
    """The whole experiment: writes metrics.json and report.html."""
    check(flags)
    with common.console.status("loading data"):
        bench = workbench.open_workbench(flags.bench)
    cases = workbench.parse_cases(flags.forget, bench.dataset, seed=flags.bench.seed)
    out = common.usable_directory("out", flags.bench.out or Path("runs/anchor_limits"))
    common.usable_directory("cache", flags.bench.cache)
    config = common.describe("anchor_limits", flags)
    original = bench.original()
    laws = []
    with jax.enable_x64(True):
        for name in flags.models:
            for case in cases:
                made = partial(law, bench, name, case, flags.lams)
                laws.append(bench.clock.show(f"law {name} {case.name}", made))
    settings = {"lam": flags.lam, "lr": flags.lr, "epochs": flags.epochs}
    settings["num_vectors"] = flags.eigenvectors
    found = [anchor_way.compare(bench, case, original.params, **settings) for case in cases]
    results = common.plain({**bench.describe(original), "laws": laws, "cases": found})
    config["seconds"] = bench.clock.seconds()
    made = claims(results, config["flags"])
    content = common.plain({"claims": made, "config": config, "results": results})
    common.write_json(out / "metrics.json", content)
    common.write_text(out / "report.html", anchor_report.report(content))
    print("\n".join([*headline(content), f"report: {out / 'report.html'}"]))


if __name__ == "__main__":
    common.main(Flags, run)
