"""Measures of conditioning: spectra by layer group, the exact rank, and gradient descent."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import curvature
from famr_jax.types import ApplyFn, Context, Objective, Pair, Params

FLOOR = 1e-6  # of the largest |e|, about ten roundings of float32: a smaller one has no sure sign
BEND = 0.01  # where the axis of a density turns from linear to logarithmic
AXIS = np.linspace(-5.5, 5.5, 89)  # that axis, in decades
SPREAD = 16  # points that stand for one spread node
RISE = 1e-5  # relative: more than the rounding of a float32 mean
LOOK_STEPS = 10  # Lanczos steps from the gradient, which leans towards the stiffest direction


WORDS = {
    "embedding": {"patches", "position", "class_token"},
    "attention": {"norm_attention", "qkv", "out"},
    "MLP": {"norm_mlp", "up", "down"},
    "head": {"norm", "head"},
}


def group_of(path: str) -> str:
    """The layer group of a parameter such as "block_0/qkv/kernel"; "body" in other models."""
    parts = set(path.split("/"))
    return next((name for name, words in WORDS.items() if words & parts), "body")


def _in_group(name: str, path: str) -> bool:
    return group_of(path) == name


# Built once: jit knows a predicate by identity.
GROUPS = {name: partial(_in_group, name) for name in (*WORDS, "body")}


def spectrum(
    matvec: Callable, like: Any, key: Array, *, lam: float, num_steps: int, num_probes: int
) -> dict[str, Any]:
    """Density, ends and counts of a symmetric operator, all from one set of Lanczos runs.

    The ends are Ritz values: the true lambda_max is at least the one, the true lambda_min at most
    the other; an eigenvalue lies within the error of each. `curvature.condition` would carry the
    ends further, at several times the products.

    Args:
        matvec: The operator.
        like: A pytree of arrays of the shapes that it acts on.
        key: PRNG key of the probes; one key for all epochs makes their differences paired.
        lam: Counts are of e < -t, |e| < t and e > t for t of `thresholds(lam)`.
        num_steps: Lanczos steps a probe.
        num_probes: Random probes, at least 2.
    """
    found = curvature.density(matvec, like, num_steps=num_steps, num_probes=num_probes, key=key)
    nodes = np.asarray(found.nodes)
    dim, floor = sum(leaf.size for leaf in jax.tree.leaves(like)), FLOOR * np.abs(nodes).max()
    ends = {"lambda_min": nodes.argmin(), "lambda_max": nodes.argmax()}
    scaled = lambda pair: [dim * np.asarray(part) for part in pair]  # noqa: E731
    return {
        "dim": dim,
        **{
            name: {"value": nodes.flat[i], "error": floor + np.asarray(found.residuals).flat[i]}
            for name, i in ends.items()
        },
        "trace": scaled(found.mean_of(lambda e: e)),
        "below": [scaled(found.count(-jnp.inf, -t)) for t in thresholds(lam)],
        "near_zero": [scaled(found.count(-t, t)) for t in thresholds(lam)],
        "above": [scaled(found.count(t, jnp.inf)) for t in thresholds(lam)],
        "per_decade": scaled(on_axis(found).smooth(AXIS, width=AXIS[1] - AXIS[0])),
    }


def thresholds(lam: float) -> list[float]:
    """Moduli at which eigenvalues are counted: near zero, Lanczos resolves only the larger."""
    return [lam, 10 * lam, 100 * lam]


def decades(eigenvalues: Any) -> np.ndarray:
    """The axis of a density, asinh(e / 2 BEND) / log 10: 1 at ten times BEND, -1 at minus that."""
    return np.arcsinh(np.asarray(eigenvalues) / (2 * BEND)) / math.log(10)


def on_axis(found: curvature.Density) -> curvature.Density:
    """A density on the axis of `decades`, each node spread over what its steps leave open.

    That is its cell, halfway to its neighbours, as far as its residual reaches: without it a single
    node near zero, where most eigenvalues are, would draw a peak and gaps that are not there.
    """
    nodes, residuals = np.asarray(found.nodes), np.asarray(found.residuals)
    at = decades(nodes)
    between = (at[:, 1:] + at[:, :-1]) / 2
    low = np.maximum(np.c_[at[:, :1], between], decades(nodes - residuals))
    high = np.minimum(np.c_[between, at[:, -1:]], decades(nodes + residuals))
    parts = (np.arange(SPREAD) + 0.5) / SPREAD
    spread = low[..., None] + (high - low)[..., None] * parts
    weights = np.repeat(np.asarray(found.weights) / SPREAD, SPREAD, axis=1)
    return curvature.Density(spread.reshape(len(at), -1), weights, residuals)


def gauss_newton(apply_fn: ApplyFn, params: Params, x: Array, *, lam: float) -> dict[str, Any]:
    """The exact nonzero spectrum of the forget loss's Gauss-Newton part, in float64.

        G = J^T (diag p - p p^T) J / N = A^T A,   A = S^T J / sqrt N,   S = diag sqrt p - p sqrt p^T

    A, with N C rows, has rank at most N (C - 1), since S^T sends equal logits to zero. Its singular
    values, by QR, are good to float64; the eigenvalues of A A^T would lose half of the digits.
    """
    with jax.enable_x64(True):
        wide = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64)  # noqa: E731
        root = _root(apply_fn, jax.tree.map(wide, params), wide(x))
    values = np.linalg.svd(np.linalg.qr(np.asarray(root).T, mode="r"), compute_uv=False)
    nonzero = values > max(root.shape) * np.finfo(np.float64).eps * values[0]
    positive = values[nonzero] ** 2
    one = curvature.Density(decades(positive)[None], np.ones((1, len(positive))), None)
    num_classes = len(values) // len(x)
    return {
        "n": len(x),
        "rank": len(positive),
        "bound_on_rank": len(x) * (num_classes - 1),
        "dim": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "above_floor": int((positive > FLOOR * positive[0]).sum()),
        "above": [int((positive > t).sum()) for t in thresholds(lam)],
        "effective_dimension": np.sum(positive / (positive + lam)),
        "trace": positive.sum(),
        "largest": positive[0],
        "smallest": positive[-1],
        "per_decade": one.smooth(AXIS, width=AXIS[1] - AXIS[0])[0],
    }


@partial(jax.jit, static_argnums=0)
def _root(apply_fn, params, x):
    """A of `gauss_newton`, `[N C, dim]`, one image at a time."""
    flat, unravel = ravel_pytree(params)

    def one(image):
        outputs = lambda flat: apply_fn(unravel(flat), image[None])[0]  # noqa: E731
        p = jax.nn.softmax(outputs(flat))
        jacobian, root = jax.jacrev(outputs)(flat), jnp.sqrt(p)
        return root[:, None] * jacobian - jnp.outer(root, p @ jacobian)

    return jax.lax.map(one, x).reshape(-1, flat.size) / math.sqrt(len(x))


def convexity(end: dict[str, float], *, lam: float = 0.0, weight: float = 1.0) -> str:
    """Whether w H + lam I is positive definite, from the lambda_min of H and its error.

    Lanczos bounds lambda_min from above: "not convex" is proved, "convex" is what was found.
    """
    lowest = weight * end["value"] + lam
    if abs(lowest) <= weight * end["error"]:
        return "not resolved"
    return "convex" if lowest > 0 else "not convex"


def bound(lam: float, grad_norm: float, lambda_min: float) -> float | None:
    """The paper's bound lam |g| / (lambda_min (lambda_min + lam)); None if vacuous.

    It needs a positive definite Hessian.
    """
    return lam * grad_norm / (lambda_min * (lambda_min + lam)) if lambda_min > 0 else None


def descent(
    objective: Objective,
    hessian: Callable[[Params], Callable],
    params: Params,
    pair: Pair,
    *,
    lr: float,
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
