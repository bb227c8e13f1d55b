"""Both sides of every certificate of `famr_jax.certify`, measured on one trained model."""

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.famr.bound_problem import (
    Shared,
    apart,
    ends,
    gradient,
    loss_and_gradient,
    norm,
    outputs,
    solved,
)
from famr_jax import certify, minimise, report
from famr_jax.certify import Certificate, segment
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.report import Badge, Cell, Facts, Section, Table, number
from famr_jax.types import Context, Pair, Params

PAPERS_STEP, RATE_STEPS, STATIONARY = 1e-4, 20, 1e-3
SLOPE, CHAIN = "output divergence", "output divergence, paper's"
INFLUENCE, OF_FORGET = "distance to influence", "distance to influence, H of forget"
STATEMENTS = {
    "stationarity": "|grad J(end)| ≤ 0.001 |g|",
    "strong convexity": "−lambda_min ≤ lam, along the way from anchor to end",
    "step rule": "0.0001, the paper's step, ≤ 1/(L + lam)",
    "linear rate": "each step of descent comes nearer by 1 − step (lam + lambda_min)",
    "distance, as if convex": "|end − anchor| ≤ |g|/lam, the paper's",
    "distance, convex": "|end − anchor| ≤ |g|/(lam + lambda_min)",
    "distance, descent": "|end − anchor| ≤ √(2 (L(anchor) − L(end))/lam), needs no convexity",
    "Newton step": "|end − damped Newton step| ≤ drift |end − anchor|/(lam + lambda_min)",
    "resolvent": "|(H + lam)⁻¹g − H⁻¹g| ≤ lam |g|/(m (m + lam)), H of the retained data, m least",
    INFLUENCE: "|end − w*| ≤ lam |g|/m², the paper's, H of the retained data",
    OF_FORGET: "the same with the forget loss's Hessian",
    "distance, gradients": "|end − w*| ≤ (|grad J(end)| + |grad J(w*)|)/(lam + lambda_min)",
    SLOPE: "rms |f(end) − f(w*)| ≤ |Jacobian|/√N |end − w*|",
    CHAIN: "the same with the paper's bound on |end − w*|",
}
"""What each certificate compares; lambda_min and L are of the forget loss's Hessian."""


class End(NamedTuple):
    """Where FAMR ends at one lam, and the norm of the gradient that is left there."""

    lam: float
    objective: AnchoredUniform
    params: Params
    residual: float


def measure(shared: Shared, lam: float) -> tuple[Params, list[dict[str, Any]]]:
    """Where FAMR ends at one lam, and a row for every certificate there."""
    problem, anchor, forget = shared.problem, shared.problem.anchor, shared.pair.forget
    objective = AnchoredUniform(problem.model.apply, jnp.asarray(lam))
    context, pair = Context(anchor), Pair(forget, None)
    found = minimise.minimise(
        objective, anchor, context, pair, key=shared.key, tol=problem.tol, max_steps=3000
    )
    residual = float(found.grad_norm)
    end = End(lam, objective, found.params, residual)
    start, distance = norm(shared.grad), apart(end.params, anchor)
    loss, _ = loss_and_gradient(shared.hessian.loss_fn, end.params, forget)
    low, high = curvature_between(shared, anchor, end.params)
    as_if_convex = certify.anchor_distance(distance, start, lam, residual=residual)
    judged = [
        certify.stationarity(residual, start, tol=STATIONARY),
        certify.strong_convexity(low.low, lam),
        certify.step_rule(PAPERS_STEP, high.high, lam),
        rate(shared, end, (low.low, high.high)),
        as_if_convex._replace(name="distance, as if convex"),
        certify.anchor_distance(distance, start, lam, lowest=low.mean, residual=residual),
        certify.descent_distance(distance, shared.loss, float(loss), lam),
        newton(shared, end),
        *influences(shared, end),
    ]
    rows = [
        {"lam": lam, "certificate": each.name, **each._asdict(), "ratio": each.ratio}
        for each in judged
    ]
    return end.params, rows


def rate(shared: Shared, end: End, from_anchor: tuple[float, float]) -> Certificate:
    """Gradient descent at 1/(L + lam) from the anchor; curvatures from three iterates on."""
    lam, anchor, step = end.lam, shared.problem.anchor, 1 / (from_anchor[1] + end.lam)
    iterates, distances = _descend(end.objective, anchor, end.params, shared.pair.forget, step)
    ranges = [from_anchor]
    if from_anchor[0] + lam > 0:
        along = [curvature_between(shared, iterate, end.params) for iterate in iterates]
        ranges += [(low.low, high.high) for low, high in along]
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    error = end.residual / (lowest + lam) if lowest + lam > 0 else 0.0
    return certify.linear_rate(distances, step, lowest, highest, lam, error=error)


def newton(shared: Shared, end: End) -> Certificate:
    """FAMR's step beside the damped Newton step on the forget loss."""
    anchor, lowest, hessian = shared.problem.anchor, shared.lowest_forget, shared.hessian
    moved = optax.tree.sub(end.params, anchor)
    distance = norm(moved)
    if lowest + end.lam <= 0:
        return certify.newton_gap(None, 0.0, distance, lowest, end.lam)
    step = solved(hessian, shared.grad, end.lam)
    gap = norm(optax.tree.add(moved, step.value))
    # What the solve leaves counts like a gradient that is left.
    residual = end.residual + float(step.residual * optax.tree.norm(shared.grad))

    def drift(params):
        if not apart(params, anchor):  # Lanczos finds no end of the zero operator
            return 0.0
        change = replace(hessian, params=params) + (-1.0) * hessian
        return max(map(abs, ends(change, anchor, shared.key)))

    (drifted,) = segment.along(drift, anchor, end.params, points=shared.problem.points)
    return certify.newton_gap(gap, drifted.mean, distance, lowest, end.lam, residual=residual)


def influences(shared: Shared, end: End) -> list[Certificate]:
    """FAMR's end beside the influence estimate: weights, and outputs on the test images."""
    problem, lam, lowest = shared.problem, end.lam, shared.lowest_retained
    length, distance = norm(shared.influence_grad), apart(end.params, shared.influence)
    damped = solved(shared.retained, shared.influence_grad, lam)
    gap = apart(damped.value, shared.step.value)
    resolvent = certify.resolvent(gap, length, lowest, lam)
    weights = certify.influence_distance(distance, length, lowest, lam)
    weights = if_solved(weights, bool(shared.step.converged))
    of_forget = certify.influence_distance(distance, norm(shared.grad), shared.lowest_forget, lam)
    low, _ = curvature_between(shared, end.params, shared.influence)
    forget = Pair(shared.pair.forget, None)
    there = norm(gradient(end.objective, shared.influence, problem.anchor, forget))
    outputs_fn = outputs(problem.model.apply)

    def slope(params):
        return segment.output_slope(outputs_fn, params, shared.test, key=shared.key)

    (slopes,) = segment.along(slope, end.params, shared.influence, points=problem.points)
    logits = [outputs_fn(params, shared.test) for params in (end.params, shared.influence)]
    divergence = certify.output_divergence(segment.output_gap(*logits), slopes.mean, distance)
    return [
        if_solved(resolvent, bool(shared.step.converged) and bool(damped.converged)),
        weights,
        of_forget._replace(name=OF_FORGET),
        certify.minimum_distance(distance, (end.residual, there), low.mean + lam),
        divergence,
        chained(weights, divergence, slopes.mean),
    ]


def if_solved(certificate: Certificate, solved: bool) -> Certificate:
    """The certificate, vacuous where what it measures is not what it speaks of."""
    if solved or certificate.verdict == "vacuous":
        return certificate
    why = "the influence step was not solved to its tolerance"
    return certificate._replace(bound=None, verdict="vacuous", why=why)


def chained(weights: Certificate, outputs: Certificate, slope: float) -> Certificate:
    """The paper's bound on the outputs: the Jacobian norm times its bound on the weights."""
    if weights.bound is None:
        return weights._replace(name=CHAIN, measured=outputs.measured)
    bound = slope * weights.bound
    verdict = "holds" if outputs.measured <= bound else "violated"
    return Certificate(CHAIN, outputs.measured, bound, verdict)


def curvature_between(
    shared: Shared, start: Params, end: Params
) -> tuple[segment.Along, segment.Along]:
    """Least and largest eigenvalue of the forget loss's Hessian, along the segment."""

    def at(params):
        return ends(replace(shared.hessian, params=params), params, shared.key)

    low, high = segment.along(at, start, end, points=shared.problem.points)
    return (segment.Along(0.0, 0.0, 0.0) if shared.problem.convex else low), high


def section(case: Mapping[str, Any]) -> Section:
    """The table of one problem and forget set, and the paper's bound against what it bounds."""
    ordered = sorted(case["rows"], key=lambda row: row["lam"])
    rows: dict[str, dict[str, Any]] = {}
    for row in ordered:
        name = row["certificate"]
        rows.setdefault(name, {"certificate": Cell(name, note=STATEMENTS[name])})
        rows[name][f"lam {row['lam']:g}"] = cell(row)
    facts = {
        "weights": number(case["num_params"]),
        "forgotten, retained": f"{case['num_forget']}, {case['num_retain']}",
        "least eigenvalue, forget loss": number(case["lowest_forget"]),
        "least eigenvalue, retained": number(case["lowest_retained"]),
        "length of the influence step": number(case["influence_step"]),
    }
    if to := case.get("to_oracle"):
        facts["do nothing to oracle"] = number(to["do_nothing"])
        facts["influence to oracle"] = number(to["influence"])
        facts |= {f"FAMR, lam {lam}": number(distance) for lam, distance in to["famr"].items()}
    parts = [Facts(facts), Table(list(rows.values()))]
    weights = [row for row in ordered if row["certificate"] == INFLUENCE]
    if len(weights) > 1:
        parts.append(_chart(weights))
    reasons = sorted({f"{row['certificate']}: {row['why']}" for row in ordered if row["why"]})
    note = f"Vacuous: {'; '.join(reasons)}." if reasons else None
    return Section(f"{case['problem']}, {case['forget']} ({case['model']})", parts, note)


def cell(row: Mapping[str, Any]) -> str | Badge:
    """A ratio, coloured where the statement is broken."""
    if row["verdict"] == "vacuous":
        return "vacuous"
    told = "0 to bound" if row["ratio"] is None else number(row["ratio"])
    return Badge(told, "bad") if row["verdict"] == "violated" else told


def _chart(weights):
    colours = {"measured": "vermillion", "paper's bound": "grey"}
    sides = zip(("measured", "bound"), colours, strict=True)
    told = "The bound falls with lam and the distance does not: they solve different equations."
    return report.lines(
        [row | {"norm": row[side], "of": name} for side, name in sides for row in weights],
        *("lam", "norm", "of"),
        title="FAMR's distance to influence",
        words="norm over all weights",
        log_x=True,
        log_y=True,
        colours=colours,
        key=True,
        caption=told,
        width=520,
    )


@jax.jit
def _descend(objective, anchor, end, forget, step):
    """Middle and last iterate of plain descent from the anchor, and every distance to the end."""

    def body(params, _):
        grad = gradient(objective, params, anchor, Pair(forget, None))
        moved = optax.tree.add_scale(params, -step, grad)
        return moved, moved

    _, later = jax.lax.scan(body, anchor, length=RATE_STEPS)
    path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), anchor, later)
    gaps = jax.vmap(lambda params: optax.tree.norm(optax.tree.sub(params, end)))(path)
    middle, last = (jax.tree.map(itemgetter(i), path) for i in (RATE_STEPS // 2, RATE_STEPS))
    return [middle, last], gaps
