"""The step rule eta <= 1/(L + lam) on trial: gradient descent at multiples of that limit."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famr_jax import curvature
from famr_jax.report import Badge, Column, Drawing, Grid, Section, Table, lines, number
from famr_jax.types import Context, Objective, Pair, Params

MULTIPLES = (0.5, 1.0, 1.5, 1.9, 2.2)
OUTCOMES = ("monotone", "oscillating", "divergent")
ZONES = ("<= 1", "1 to 2", "> 2")
ROUNDING = 1e-6
RISE = 1e-5  # relative: more than the rounding of a float32 mean
LOOK_STEPS = 10  # Lanczos steps from the gradient, which leans towards the stiffest direction
TONES = {"monotone": "good", "divergent": "bad"}
PLACES = {"anchor": "at the anchor", "path": "the largest met"}


def descents(
    descend: Callable[[float], dict[str, Any]], *, lam: float, curvatures: Sequence[float]
) -> list[dict[str, Any]]:
    """Gradient descent at multiples of 1/(L + lam), L at the anchor or the largest met.

    The largest is that of FAMR's path and of gradient descent at half of the anchor's limit.

    Args:
        descend: `descent` with everything but its step filled in.
        lam: The anchor's strength.
        curvatures: L along FAMR's path, that of the anchor first.
    """
    runs, at_anchor = [], curvatures[0]
    for name in ("anchor", "path"):
        largest = at_anchor if name == "anchor" else max(*curvatures, *runs[0]["curvature"])
        for multiple in MULTIPLES:
            run = descend(multiple / (largest + lam))
            run["curvature"] = [at_anchor, *run["curvature"]]
            times = {
                "anchor": run["lr"] * (at_anchor + lam),
                "own path": run["lr"] * (max(run["curvature"]) + lam),
            }
            runs.append({"L_of": name, "multiple": multiple, "L": largest, "times": times} | run)
    return runs


def tally(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often each outcome came where eta (L + lam) was at most 1, at most 2, and above."""
    table = {}
    for where in ("anchor", "own path"):
        table[where] = {zone: dict.fromkeys(OUTCOMES, 0) for zone in ZONES}
        for run in runs:
            zone = ZONES[int(np.searchsorted((1.0, 2.0), run["times"][where] * (1 - ROUNDING)))]
            table[where][zone][run["outcome"]] += 1
    return table


def descent(
    objective: Objective,
    hessian: Callable[[Params], Callable],
    params: Params,
    pair: Pair,
    lr: float,
    *,
    num_steps: int,
    look_every: int,
) -> dict[str, Any]:
    """Gradient descent from the anchor on whole sets, and the curvature it meets.

    Args:
        objective: Descended, its anchor being `params`.
        hessian: Gives the operator of the objective's forget term at some weights.
        params: The start.
        pair: The whole sets.
        lr: Step.
        num_steps: Steps in all.
        look_every: Steps between two looks at the largest curvature.
    """
    anchor, grads = params, jax.tree.map(jnp.zeros_like, params)
    values, turns, curvatures = [], [], []
    for _ in range(num_steps // look_every):
        params, grads, (value, turned) = _descend(
            objective, params, grads, anchor, pair, lr, num_steps=look_every
        )
        values += value.tolist()
        turns += turned.tolist()
        if not math.isfinite(optax.tree.norm(params)):
            break
        largest = largest_from(hessian(params), grads)
        if not math.isfinite(largest):
            break
        curvatures.append(largest)
    return {"lr": lr, "objective": values, "curvature": curvatures, **outcome(values, turns)}


def largest_from(matvec: Callable, start: Any) -> float:
    """Lower bound of the largest eigenvalue, by a few Lanczos steps from a chosen start."""
    dim = sum(leaf.size for leaf in jax.tree.leaves(start))
    run = curvature.lanczos(matvec, start, num_steps=min(LOOK_STEPS, dim))
    matrix = np.diag(run.diagonal) + np.diag(run.offdiagonal, 1) + np.diag(run.offdiagonal, -1)
    return float(np.linalg.eigvalsh(matrix)[-1]) if np.isfinite(matrix).all() else math.inf


@partial(jax.jit, static_argnames="num_steps")
def _descend(objective, params, before, anchor, pair, lr, *, num_steps):
    def body(carry, _):
        params, before = carry
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(
            params, Context(anchor), pair, None
        )
        turned = optax.tree.vdot(grads, before) < 0
        return (optax.tree.add_scale(params, -lr, grads), grads), (value, turned)

    carry, told = jax.lax.scan(body, (params, before), length=num_steps)
    return *carry, told


def outcome(values: Sequence[float], turns: Sequence[bool]) -> dict[str, Any]:
    """What became of a descent, in one word and two counts.

    A rise is a step that the objective is higher after; a turn, a gradient that points against the
    one before. "divergent" ended above its start or not finite; "oscillating" rose or turned, and
    yet ended lower; "monotone" did neither.
    """
    values = np.asarray(values, np.float64)
    rises = int((~(np.diff(values) <= RISE * np.abs(values[:-1]))).sum())
    count = {"rises": rises, "turns": int(np.sum(turns))}
    if not np.isfinite(values[-1]) or values[-1] > values[0]:
        return {"outcome": "divergent", **count}
    return {"outcome": "oscillating" if any(count.values()) else "monotone", **count}


def limits(results: dict[str, Any], flags: dict[str, Any]) -> Section:
    """The part of the page on the local limit 1/(L + lam) against the step used, by epoch."""
    rows = []
    for point in results["points"]:
        limit = point["limit"]
        row = point | {"L": point["forget"]["all"]["lambda_max"]["value"]}
        for form in ("mean", "sum"):
            row[f"Limit, {form} form"] = limit[form]
        for form in ("mean", "sum"):
            row[f"Step / limit, {form}"] = flags["lr"] / limit[form]
        rows.append(row)
    columns = {
        "epoch": "Epoch",
        "for_acc": Column("For-Acc, %", "share"),
        "ret_acc": Column("Ret-Acc, %", "share"),
        "forget_loss": Column("Forget loss, nats", "nats"),
        "grad_norm": "|g|",
        "distance": "Distance",
        "L": "L",
        "Limit, mean form": None,
        "Limit, sum form": None,
        "Step / limit, mean": None,
        "Step / limit, sum": None,
    }
    caption = (
        "L is the largest eigenvalue of the forget Hessian; the limit is 1/(L + lam) in the mean "
        f"form and 1/(|T| L + lam) in the sum form, |T| = {number(results['num_forget'])}. g is "
        "the gradient of the mean forget loss, the distance that from the anchor."
    )
    return Section("Local limit of the step", [Table(rows, columns, caption)])


def trial(results: dict[str, Any], flags: dict[str, Any]) -> Section:
    """The part of the page on gradient descent: curves, and what the rule foretold."""
    panels = [panel for place in PLACES for panel in _panels(results, flags, place)]
    counts = [
        {"Runs with eta (L + lam)": f"{zone.replace('<=', '≤')}, with L {where}"}
        | {outcome.capitalize(): count for outcome, count in found.items()}
        for of, where in (("anchor", "at the anchor"), ("own path", "on its own path"))
        for zone, found in results["tally"][of].items()
    ]
    runs = [
        {
            "Step": f"{run['multiple']:g} / (L + lam), L {PLACES[run['L_of']]}",
            "eta": run["lr"],
            "eta (L + lam), L at anchor": run["times"]["anchor"],
            "L on its own path": run["times"]["own path"],
            "Outcome": Badge(run["outcome"], TONES.get(run["outcome"])),
            "Rises": run["rises"],
            "Turns": run["turns"],
            "Objective at start": run["objective"][0],
            "At end": run["objective"][-1],
        }
        for run in results["descents"]
    ]
    caption = (
        f"Gradient descent of the mean form on {number(results['n_forget'])} images from the "
        f"anchor, {flags['descent_steps']} steps. The largest L met: on FAMR's path or by the run "
        "at half of the anchor's limit. L on its own path: the largest that the run itself met, "
        f"every {flags['look_every']} steps, by {results['look_steps']} Lanczos steps from the "
        "gradient: a lower bound. A rise: the objective is higher after a step. A turn: a gradient "
        "against the one before. Monotone: neither; divergent: ended higher than it began."
    )
    blocks = [Grid(panels, width=440), Table(counts), Table(runs, caption=caption)]
    return Section("Is eta ≤ 1/(L + lam) the rule?", blocks)


def _panels(results: dict[str, Any], flags: dict[str, Any], place: str) -> list[Drawing]:
    """Objective, and step times local L, of the runs whose L was taken in one place."""
    runs = [run for run in results["descents"] if run["L_of"] == place]
    objectives = [
        {"step": step, "multiple": run["multiple"], "objective": value}
        for run in runs
        for step, value in enumerate(run["objective"])
    ]
    times = [
        {
            "step": flags["look_every"] * look,
            "multiple": run["multiple"],
            "times": run["lr"] * (value + flags["lam"]),
        }
        for run in runs
        for look, value in enumerate(run["curvature"])
    ]
    return [
        lines(
            objectives,
            "step",
            "objective",
            by="multiple",
            title=f"L {PLACES[place]}: {number(runs[0]['L'])}",
            words="objective, nats; eta in units of 1/(L + lam)",
            x_words="step of gradient descent",
            log_y=True,
        ),
        lines(
            times,
            "step",
            "times",
            by="multiple",
            title=f"The same runs, L {PLACES[place]}",
            words="eta (L + lam), L where the run is",
            x_words="step of gradient descent",
            levels=[(1.0, "rule: 1"), (2.0, "quadratic: 2")],
            y_range=(0, None),
        ),
    ]
