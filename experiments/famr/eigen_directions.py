"""A network's runs beside its stationary point, along eigenvectors of the forget Hessian."""

import functools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.famr.over_lam import over_lam
from experiments.famr.steps import cosine
from famr_jax import losses, minimise, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.curvature import Hessian, eigenvalues, linearized
from famr_jax.forget import ForgetSet
from famr_jax.methods import famr
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.report import Column, Drawing, Grid, Section, Table, Text, number
from famr_jax.types import Context, Pair, Params

CONVERGED_TO, CONVERGED_STEPS = 1e-3, 1000
TONES = {"sgd, mean": "vermillion", "sgd, sum": "purple", "adam, mean": "green"}


def compare(
    bench: Bench,
    gone: ForgetSet,
    original: Params,
    *,
    lam: float,
    lr: float,
    epochs: int,
    num_vectors: int,
) -> dict[str, Any]:
    """Runs FAMR by plain descent in both forms and by Adam, and splits each step by eigenvalue."""
    apply_fn, forget, size = bench.model.apply, bench.train[gone.mask], bench.flags.batch_size
    curvature = Hessian(_uniform_of(apply_fn), original, forget)
    top, low = (
        bench.clock.show(
            f"{which} eigenvalues {gone.name}",
            partial(
                eigenvalues,
                curvature,
                original,
                k=num_vectors,
                which=which,
                key=bench.keys.unlearn_again,
            ),
        )
        for which in ("largest", "smallest")
    )
    values = np.concatenate([top.values, low.values]).astype(np.float64)
    vectors = np.concatenate([top.vectors, low.vectors]).astype(np.float64)
    anchor, m = _flat(original), len(forget)
    slope = _flat(_gradient(AnchoredUniform(apply_fn, 0.0), original, forget, original))
    rest = slope - vectors.T @ (vectors @ slope)

    runs, stationary = {}, {}
    for name in TONES:
        optimizer, form = name.split(", ")
        weight = {"mean": 1.0, "sum": float(m)}[form]
        dynamics = Dynamics(lr, weight, lam, num_steps=epochs * -(-m // size))
        transform = make_optimizer(optimizer, lr)
        method = famr(apply_fn, lam=lam, forget_weight=weight, optimizer=transform)
        done = unlearn.run(
            method, original, forget, epochs=epochs, batch_size=size, key=bench.keys.unlearn
        )
        if form not in stationary:
            stationary[form] = minimise.minimise(
                method.objective,
                original,
                Context(original),
                Pair(forget, None),
                key=bench.keys.unlearn,
                tol=CONVERGED_TO,
                max_steps=CONVERGED_STEPS,
            )
        found = stationary[form]
        step, goal = _flat(done.params) - anchor, _flat(found.params) - anchor
        bulk = np.asarray(_in_bulk(curvature, original, rest, vectors, dynamics), np.float64)
        at_anchor, at_end = (
            float(np.linalg.norm(_flat(_gradient(method.objective, params, forget, original))))
            for params in (original, done.params)
        )
        runs[name] = {
            "num_steps": dynamics.num_steps,
            "grad_at_anchor": at_anchor,
            "grad_at_end": at_end,
            "moved": float(np.linalg.norm(step)),
            "stationary": float(np.linalg.norm(goal)),
            "stationary_converged": bool(found.converged),
            "covered": covered(step, goal),
            "cos": cosine(step, goal),
            "groups": groups(values, vectors, slope, step, goal, dynamics, bulk),
        }
    return {
        "forget": gone.spec,
        "num_forget": m,
        "lambda_max": float(top.values[0]),
        "lambda_min": float(low.values[0]),
        "converged": bool(np.all(top.converged) and np.all(low.converged)),
        "eigenvalues": {"largest": top.values, "smallest": low.values},
        "residual": float(max(np.max(top.residuals), np.max(low.residuals))),
        "gradient_below": float(np.sum((low.vectors @ slope) ** 2 / np.sum(slope**2))),
        "runs": runs,
    }


class Dynamics(NamedTuple):
    """Full-batch descent of the quadratic model of w L_forget + lam/2 ||.||^2 at the anchor."""

    lr: float
    weight: float
    lam: float
    num_steps: int

    def rate(self, values: np.ndarray) -> np.ndarray:
        """h = w e + lam, the objective's curvature along an eigenvector of eigenvalue e."""
        return self.weight * values + self.lam

    def share(self, values: np.ndarray) -> np.ndarray:
        """1 - (1 - lr h)^k, of the way to the linearised stationary point after k steps."""
        return 1 - (1 - self.lr * self.rate(values)) ** self.num_steps

    def target(self, values: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """-w g / h, the linearised stationary point; a minimum only where h > 0."""
        return -self.weight * slopes / self.rate(values)


def groups(
    values: np.ndarray,
    vectors: np.ndarray,
    slope: np.ndarray,
    step: np.ndarray,
    goal: np.ndarray,
    dynamics: Dynamics,
    bulk: np.ndarray,
) -> list[dict[str, Any]]:
    """Splits a step by eigenvalue: octaves of positive ones, the negative ones, and the bulk.

    `covered` is the step's share of the way to the converged point; `of_linearised` that to the
    linearised one, beside what it should be, `predicted`, where that point is a minimum. `over` is
    the step in units of the quadratic model's, which may also run away from a saddle; in the
    bulk that is `bulk`.
    """
    g, s, c = (vectors @ vector for vector in (slope, step, goal))
    rows = []
    octaves = np.where(values > 0, np.floor(np.log2(np.maximum(values, 1e-12))), -np.inf)
    for octave in np.unique(octaves)[::-1]:
        inside = octaves == octave
        row = {
            "kind": "positive" if octave > -np.inf else "negative",
            "count": int(inside.sum()),
            "from": float(values[inside].min()),
            "to": float(values[inside].max()),
            "of_gradient": float(np.sum(g[inside] ** 2) / np.sum(slope**2)),
            "of_way": float(np.sum(c[inside] ** 2) / np.sum(goal**2)),
            "covered": covered(s[inside], c[inside]),
        }
        target, share = dynamics.target(values[inside], g[inside]), dynamics.share(values[inside])
        row["over"] = covered(s[inside], share * target)
        if np.all(dynamics.rate(values[inside]) > 0):
            row["predicted"] = covered(share * target, target)
            row["of_linearised"] = covered(s[inside], target)
        rows.append(row)
    rest = [v - vectors.T @ part for v, part in ((slope, g), (step, s), (goal, c))]
    rows.append(
        {
            "kind": "bulk",
            "count": len(slope) - len(values),
            "of_gradient": float(np.sum(rest[0] ** 2) / np.sum(slope**2)),
            "of_way": float(np.sum(rest[2] ** 2) / np.sum(goal**2)),
            "covered": covered(rest[1], rest[2]),
            "over": covered(rest[1], bulk),
        }
    )
    return rows


def covered(step: np.ndarray, goal: np.ndarray) -> float:
    """How much of the way to `goal` a step goes, <step, goal> / |goal|^2."""
    return float(np.vdot(step, goal) / np.vdot(goal, goal))


@jax.jit
def _gradient(objective, params, forget, anchor):
    return jax.grad(lambda p: objective(p, Context(anchor), Pair(forget, None), None)[0])(params)


@jax.jit
def _in_bulk(matvec, like, slope, vectors, dynamics):
    """The quadratic model's step outside the span of `vectors`, by products with the Hessian."""
    flat, unravel = ravel_pytree(like)
    slope, vectors = slope.astype(flat.dtype), vectors.astype(flat.dtype)
    product = linearized(matvec)

    def body(_, step):
        curved = ravel_pytree(product(unravel(step)))[0]
        pull = dynamics.weight * (curved - (vectors @ curved) @ vectors + slope)
        return step - dynamics.lr * (pull + dynamics.lam * step)

    return jax.lax.fori_loop(0, dynamics.num_steps, body, jnp.zeros_like(flat))


@functools.cache
def _uniform_of(apply_fn):
    """The forget loss of each example, as curvature wants it; one object a model."""

    def loss(params, data):
        return losses.uniform_kl(apply_fn(params, data.x))

    return loss


def _flat(params):
    return np.asarray(ravel_pytree(params)[0], np.float64)


def section(case: Mapping[str, Any], model: Mapping[str, Any]) -> Section:
    """What the page shows of one forget set."""
    runs = case["runs"]
    left = {name: run["grad_at_end"] / run["grad_at_anchor"] for name, run in runs.items()}
    return Section(
        f"{model['name']}, {case['forget']}",
        [
            Text(
                "The forget Hessian at the trained weights reaches from "
                f"{number(case['lambda_min'])} to {number(case['lambda_max'])}; "
                f"{number(case['gradient_below'], 'share')} % of the squared gradient lies along "
                "its lowest eigenvectors that were computed."
            ),
            Table(
                [{"run": name, "left": left[name]} | run for name, run in runs.items()],
                {
                    "run": None,
                    "num_steps": "steps",
                    "moved": None,
                    "stationary": "to stationary",
                    "covered": _percent("of the way, %", "covered"),
                    "cos": "cosine",
                    "left": "gradient left",
                },
            ),
            Grid([_shares(run, name) for name, run in runs.items()], width=440),
            *(_groups(run, name) for name, run in runs.items()),
        ],
    )


def _percent(title: str, name: str) -> Column:
    """Shares in per cent, to three digits: they span orders of magnitude."""
    return Column(title, of=lambda row: 100 * row[name] if name in row else None)


def _shares(run: Mapping[str, Any], name: str) -> Drawing:
    positive = [g for g in run["groups"] if "predicted" in g and g["kind"] == "positive"][::-1]
    rows = [group | {"middle": (group["from"] * group["to"]) ** 0.5} for group in positive]
    return over_lam(
        rows,
        {"predicted": ("descent predicts", "blue"), "of_linearised": ("measured", TONES[name])},
        title=name,
        words="share of the way to the linearised point",
        log_y=False,
        x="middle",
        x_words="eigenvalue of the forget Hessian (an octave each)",
    )


def _groups(run: Mapping[str, Any], name: str) -> Table:
    rows = [
        {"range": f"{number(g['from'])} to {number(g['to'])}" if "from" in g else "between"} | g
        for g in run["groups"]
    ]
    return Table(
        rows,
        {
            "kind": "",
            "range": "eigenvalues",
            "count": "number",
            "of_gradient": _percent("of |g|², %", "of_gradient"),
            "of_way": _percent("of the way², %", "of_way"),
            "covered": _percent("covered, %", "covered"),
            "predicted": _percent("linearised: predicted, %", "predicted"),
            "of_linearised": _percent("measured, %", "of_linearised"),
            "over": "over quadratic model",
        },
        caption=f"{name}. Covered: share of the way to the converged stationary point. Linearised: "
        "share of the way to −(H + lam)⁻¹ g, which is no minimum along negative eigenvalues.",
    )
