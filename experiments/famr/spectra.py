"""Spectra of a symmetric operator: ends, counts and densities, by layer group, and exact ranks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import curvature
from famr_jax.types import ApplyFn, Params

FLOOR = 1e-6  # of the largest |e|, about ten roundings of float32: a smaller one has no sure sign
BEND = 0.01  # where the axis of a density turns from linear to logarithmic
AXIS = np.linspace(-5.5, 5.5, 89)  # that axis, in decades
SPREAD = 16  # points that stand for one spread node

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
    residuals = np.asarray(found.residuals)

    def end(i):
        return {"value": nodes.flat[i], "error": floor + residuals.flat[i]}

    def scaled(pair):
        return [dim * np.asarray(part) for part in pair]

    return {
        "dim": dim,
        "lambda_min": end(nodes.argmin()),
        "lambda_max": end(nodes.argmax()),
        "trace": scaled(found.mean_of(lambda e: e)),
        "below": [scaled(found.count(-jnp.inf, -t)) for t in thresholds(lam)],
        "near_zero": [scaled(found.count(-t, t)) for t in thresholds(lam)],
        "above": [scaled(found.count(t, jnp.inf)) for t in thresholds(lam)],
        "per_decade": scaled(on_axis(found).smooth(AXIS, width=AXIS[1] - AXIS[0])),
    }


def by_group(spectrum_of: Callable, matvec: Callable, params: Params) -> dict[str, Any]:
    """The spectrum on each layer group that there is: of its diagonal block, the others held."""
    found = {}
    for name, keep in GROUPS.items():
        part = curvature.Restricted(matvec, params, keep)
        if jax.tree.leaves(like := part.select(params)):
            found[name] = spectrum_of(part, like)
    return found


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

    def wide(leaf):
        return jnp.asarray(np.asarray(leaf), jnp.float64)

    with jax.enable_x64(True):
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
        def outputs(flat):
            return apply_fn(unravel(flat), image[None])[0]

        p = jax.nn.softmax(outputs(flat))
        jacobian, root = jax.jacrev(outputs)(flat), jnp.sqrt(p)
        return root[:, None] * jacobian - jnp.outer(root, p @ jacobian)

    return jax.lax.map(one, x).reshape(-1, flat.size) / math.sqrt(len(x))
