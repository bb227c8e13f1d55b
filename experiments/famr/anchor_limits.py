"""FAMR's stationary point against its linearisation, and how much of the way ten epochs go.

Claim: FAMR ends where grad L_forget + lam (params - anchor) = 0, of an objective that the anchor
makes locally strongly convex (FAMR, arXiv 2506.14515). In float64: the exact identity
(H_path + lam I)(end - anchor) = -g, and how fast -(H + lam I)^-1 g and -g/lam come near its
solution. On the demo's ViT: the steps of ten epochs along eigenvectors of the forget Hessian.

    python -m experiments.famr.anchor_limits

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np

from experiments.famr import FAMR, eigen_directions
from experiments.famr.over_lam import over_lam
from experiments.famr.steps import between, derivatives, distance
from experiments.harness.results import Page
from experiments.harness.run import Experiment, main
from famr_jax import minimise
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, NotNegative, Positive
from famr_jax.forget import ForgetSet
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.report import Drawing, Grid, Section, Table, Text
from famr_jax.types import Context, Pair

STILL = 1e-2
L2 = 1e-3
FITTED_FROM = 30
Strengths = Annotated[tuple[Positive, ...], Ascending(2)]


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "random:0.05")
    """What to forget, one case each."""
    models: tuple[str, ...] = ("logistic", "mlp_16")
    """Of the float64 part, trained with a ridge of 1e-3."""
    lams: Strengths = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
    """FAMR's anchor strengths in the float64 part, mean form."""
    lam: NotNegative = 0.1
    """That of the network's runs: the paper's."""
    epochs: Count = 10
    """Epochs of those."""
    lr: Positive = 1e-4
    """Step of those."""
    eigenvectors: Count = 40
    """How many at either end of the forget Hessian's spectrum."""
    bench: BenchFlags = field(default_factory=BenchFlags)


SMALL = Flags(
    forget=("class:2",),
    models=("mlp_4",),
    lams=(100.0, 1e3, 1e4),
    epochs=3,
    eigenvectors=8,
    bench=BenchFlags(classes=3, model="mlp_4", train_epochs=4, batch_size=64),
)
"""The configuration that the test suite runs."""


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """Measures the laws of small models in float64, and the bench's model by eigenvector."""
    cases = bench.forget_sets(flags.forget)
    small = {name: bench.on(name) for name in flags.models}
    original = bench.original()
    with jax.enable_x64(True):
        laws = [
            bench.clock.show(f"law {name} {gone.name}", partial(law, other, gone, flags.lams))
            for name, other in small.items()
            for gone in cases
        ]
    found = [
        eigen_directions.compare(
            bench,
            gone,
            original.params,
            lam=flags.lam,
            lr=flags.lr,
            epochs=flags.epochs,
            num_vectors=flags.eigenvectors,
        )
        for gone in cases
    ]
    return {**bench.describe(original), "laws": laws, "cases": found}


def law(bench: Bench, gone: ForgetSet, lams: Sequence[float]) -> dict[str, Any]:
    """Holds a model in float64 against the identity on the path and against both linearisations."""
    model, train = bench.model, minimise.double(bench.train)
    start = minimise.double(model.init(bench.keys.init))
    anchor = minimise.minimise(
        minimise.Ridge(model.apply, L2, float(len(train))),
        start,
        Context(start),
        Pair(None, train),
        key=bench.keys.train,
        tol=1e-3,
        max_steps=500,
    ).params
    pair = Pair(train[gone.mask], None)
    bare = AnchoredUniform(model.apply, 0.0)
    slope, curvature = derivatives(bare, anchor, pair)
    spectrum = np.linalg.eigvalsh(curvature)
    rows = []
    for lam in lams:
        end = minimise.newton(AnchoredUniform(model.apply, lam), anchor, Context(anchor), pair)
        step = between(anchor, end.params)
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
    far = [row for row in rows if row["lam"] >= FITTED_FROM * stiffest]
    return {
        "model": bench.flags.model,
        "forget": gone.spec,
        "num_params": len(slope),
        "lambda_min": float(spectrum[0]),
        "lambda_max": float(spectrum[-1]),
        "rows": rows,
        "orders": {kind: order(far, kind) for kind in ("linearised", "gradient")},
    }


def order(rows: Sequence[dict[str, Any]], kind: str) -> float | None:
    """Slope of log error over log lam, of errors that rounding leaves; None below two points."""
    kept = [row for row in rows if row["converged"] and row[kind] > 100 * row["identity"]]
    if len(kept) < 2:
        return None
    logs = [np.log([row[name] for row in kept]) for name in ("lam", kind)]
    return float(np.polyfit(*logs, 1)[0])


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
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
        made.append(FAMR.judge("stationary", verdict, words))
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
        made.append(FAMR.judge("convex", verdict, words))
    return made


def headline(content: Mapping[str, Any]) -> list[str]:
    """The laws, and for each case how much of the way the runs went, for the docstring."""
    lines = []
    for each in content["results"]["laws"]:
        found = {kind: value for kind, value in each["orders"].items() if value is not None}
        orders = "  ".join(f"{kind} {value:.2f}" for kind, value in found.items()) or "none"
        worst = max(row["identity"] for row in each["rows"])
        lines.append(f"{each['model']}  {each['forget']}  orders: {orders}  identity {worst:.0e}")
    for case in content["results"]["cases"]:
        name, runs = content["results"]["model"]["name"], case["runs"]
        parts = [f"{run.replace(',', '')} {found['covered']:.3f}" for run, found in runs.items()]
        ends = f"from {case['lambda_min']:.0f} to {case['lambda_max']:.0f}"
        lines.append(f"{name}  {case['forget']}  {ends}  way: {', '.join(parts)}")
    return lines


def page(content: Mapping[str, Any]) -> Page:
    """The laws in lam, then the way of each run."""
    results = content["results"]
    return Page(
        "FAMR's stationary point, its linearisation, and ten epochs",
        "FAMR's stationary point is a Newton step away, with the Hessian averaged on the way. A "
        "run of few epochs ends elsewhere: how far it gets depends on the curvature, direction by "
        "direction.",
        [
            Section(
                "Against both linearisations",
                [
                    Text(
                        "Float64. Relative error of the step that a linearisation predicts, with "
                        "the Hessian at the anchor and without any; and the residual of the exact "
                        "identity with the Hessian averaged on the path."
                    ),
                    Grid([_law(each) for each in results["laws"]], width=440),
                    Table(
                        [each | each["orders"] for each in results["laws"]],
                        {
                            "model": None,
                            "forget": None,
                            "num_params": "weights",
                            "lambda_min": "least",
                            "lambda_max": "largest eigenvalue",
                            "linearised": "order with H",
                            "gradient": "order without",
                        },
                        caption="Order: slope of the logarithm of the error over that of lam, "
                        f"where lam is at least {FITTED_FROM} times the largest |eigenvalue|; none "
                        "without two above rounding.",
                    ),
                ],
            ),
            *(eigen_directions.section(case, results["model"]) for case in results["cases"]),
        ],
    )


def _law(each: Mapping[str, Any]) -> Drawing:
    return over_lam(
        each["rows"],
        {
            "gradient": ("−g / lam", "grey"),
            "linearised": ("−(H + lam)⁻¹ g", "vermillion"),
            "identity": ("exact, on the path", "blue"),
        },
        title=f"{each['model']}, {each['forget']}",
        words="relative error of the step",
    )


EXPERIMENT = Experiment(
    module="experiments.famr.anchor_limits",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
)

if __name__ == "__main__":
    main(EXPERIMENT)
