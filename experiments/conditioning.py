"""Measures of conditioning: spectra by layer group, the exact rank, and gradient descent.

A spectrum is one set of Lanczos runs, which gives its density, both its ends and all its counts;
the epochs and layer groups of one Hessian share a compiled program.
"""

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
from famr_jax.curvature.spectrum import Lanczos
from famr_jax.types import ApplyFn, Objective, Pair, Params, pytree

GROUPS = ("embedding", "attention", "MLP", "head")
FLOOR = 1e-6  # of the largest |e|: about ten roundings of float32; a smaller sign means nothing
BEND = 0.01  # where the axis of a density turns from linear to logarithmic
GRID = np.linspace(-5.5, 5.5, 89)  # of that axis, in decades
WIDTH = 0.125
RISE = 1e-5  # relative: more than the rounding of a float32 mean
LOOK_STEPS = 10  # Lanczos steps from the gradient, which leans towards the stiffest direction


def group_of(path: str) -> str:
    """The layer group of a parameter such as "block_0/qkv/kernel"."""
    parts = path.split("/")
    if parts[0] in ("patches", "position"):
        return "embedding"
    if parts[0] in ("norm", "head"):
        return "head"
    return "attention" if {"norm_attention", "qkv", "out"} & set(parts) else "MLP"


def masks(params: Params) -> dict[str, Params]:
    """Masks of ones and zeros like `params`: of all weights, and of each layer group there is."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    groups = jax.tree_util.tree_map_with_path(lambda path, _: group_of(name(path)), params)
    found = {"all": jax.tree.map(jnp.ones_like, params)}
    for group in GROUPS:
        if group in jax.tree.leaves(groups):
            pick = lambda leaf, mine, group=group: jnp.full_like(leaf, mine == group)  # noqa: E731
            found[group] = jax.tree.map(pick, params, groups)
    return found


@pytree
class Masked:
    """A on the weights whose mask is one, v -> m A m v, in the space of all weights.

    Unlike the choice of `curvature.Restricted` the mask is a leaf: layer groups do not recompile.
    """

    matvec: Callable
    mask: Params

    def __call__(self, v):
        keep = partial(jax.tree.map, jnp.multiply, self.mask)
        return keep(self.matvec(keep(v)))

    def linearized(self):
        return Masked(jax.tree_util.Partial(curvature.linearized(self.matvec)), self.mask)


def spectrum(
    matvec: Callable, mask: Params, key: Array, *, lam: float, num_steps: int, num_probes: int
) -> dict[str, Any]:
    """Density, ends and counts of a symmetric operator on the weights of a mask.

    The ends are Ritz values: lambda_max is at least the one, lambda_min at most the other, and an
    eigenvalue lies within the recomputed residual of each. A count is followed by its standard
    error and by the same count after half of the steps, which shows whether it is resolved.

    Args:
        matvec: The operator, a callable pytree on trees like `mask`.
        mask: Ones and zeros.
        key: PRNG key of the probes; one key for all epochs makes their differences paired.
        lam: Eigenvalues of smaller modulus are counted.
        num_steps: Lanczos steps a probe.
        num_probes: Gaussian probes, at least 2 for an error.
    """
    flat, unravel = ravel_pytree(mask)
    dim, matvec = int(flat.sum()), Masked(matvec, mask)
    whole, half, ends = [], [], []
    for probe in jax.random.split(key, num_probes):
        start = unravel(flat * jax.random.normal(probe, flat.shape, flat.dtype))
        run = curvature.lanczos(matvec, start, num_steps=min(num_steps, dim))
        matrix = tridiagonal(run)
        nodes, vectors = np.linalg.eigh(matrix)
        whole.append((nodes, vectors[0] ** 2))
        half.append(_rule(matrix[: len(matrix) // 2, : len(matrix) // 2]))
        ends.append([(nodes[i], vectors[:, i] @ run.basis) for i in (0, -1)])
    least = min((low for low, _ in ends), key=lambda pair: pair[0])
    most = max((high for _, high in ends), key=lambda pair: pair[0])
    whole, half = (curvature.Density(*map(np.array, zip(*r, strict=True))) for r in (whole, half))
    floor = FLOOR * np.abs(whole.nodes).max()
    counted = {
        "below_lam": lambda e: np.abs(e) < lam,
        "zero": lambda e: np.abs(e) <= floor,
        "negative": lambda e: e < -floor,
    }
    counts = {}
    for name, test in counted.items():
        (value, error), (value_of_half, _) = whole.mean_of(test), half.mean_of(test)
        counts[name] = [dim * float(part) for part in (value, error, value_of_half)]
    on_axis = curvature.Density(decades(whole.nodes), whole.weights)
    height, error = on_axis.smooth(GRID, width=WIDTH)
    residual = lambda pair: _residual(matvec, mask, *pair)  # noqa: E731
    return {
        "dim": dim,
        "lambda_min": least[0],
        "lambda_max": most[0],
        "residual_min": float(residual(least)),
        "residual_max": float(residual(most)),
        "floor": floor,
        "trace": [dim * float(part) for part in whole.mean_of(lambda e: e)],
        "counts": counts,
        "density": {"mean": dim * np.asarray(height), "error": dim * np.asarray(error)},
    }


def decades(eigenvalues: np.ndarray) -> np.ndarray:
    """The axis of a density, asinh(e / 2 BEND) / log 10: 1 at ten times BEND, -1 at minus that."""
    return np.arcsinh(np.asarray(eigenvalues) / (2 * BEND)) / math.log(10)


def tridiagonal(run: Lanczos) -> np.ndarray:
    """The matrix of a Lanczos run in float64."""
    off = np.diag(np.asarray(run.offdiagonal, np.float64), 1)
    return np.diag(np.asarray(run.diagonal, np.float64)) + off + off.T


def _rule(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


@jax.jit
def _residual(matvec, like, value, vector):
    image = ravel_pytree(matvec(ravel_pytree(like)[1](vector)))[0]
    return jnp.linalg.norm(image - value * vector)


def gauss_newton(apply_fn: ApplyFn, params: Params, x: Array, *, lam: float) -> dict[str, Any]:
    """The exact nonzero spectrum of the forget loss's Gauss-Newton part, in float64.

        G = J^T (diag p - p p^T) J / N = A^T A,    A = S^T J / sqrt(N),  S = diag sqrt p - p sqrt p^T

    A A^T, of size N C, has the same nonzero eigenvalues; at most N (C - 1) of them, since S^T
    sends the constant logits to zero.
    """
    with jax.enable_x64(True):
        wide = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64)  # noqa: E731
        root = _root(apply_fn, jax.tree.map(wide, params), wide(x))
        values = np.linalg.eigvalsh(np.asarray(_gram(root)))[::-1]
    positive = values[values > len(values) * np.finfo(np.float64).eps * values[0]]
    shares = positive / (positive + lam)
    edges = np.linspace(GRID[0], GRID[-1], len(GRID))
    per_decade = np.histogram(decades(positive), edges)[0] / (edges[1] - edges[0])
    num_classes = len(values) // len(x)
    return {
        "n": len(x),
        "rank": len(positive),
        "bound": len(x) * (num_classes - 1),
        "dim": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "above_floor": int((positive > FLOOR * values[0]).sum()),
        "above_lam": int((positive >= lam).sum()),
        "effective_dimension": shares.sum(),
        "trace": positive.sum(),
        "largest": positive[0],
        "smallest": positive[-1],
        "per_decade": per_decade,
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


_gram = jax.jit(lambda root: root @ root.T)


def bound(lam: float, grad_norm: float, lambda_min: float) -> float | None:
    """The paper's bound lam |g| / (lambda_min (lambda_min + lam)); None where it is vacuous.

    It needs a positive definite Hessian: for lambda_min <= 0 it says nothing.
    """
    if lambda_min <= 0:
        return None
    return lam * grad_norm / (lambda_min * (lambda_min + lam))


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
        run = curvature.lanczos(hessian(params), grads, num_steps=LOOK_STEPS)
        curvatures.append(float(np.linalg.eigvalsh(tridiagonal(run))[-1]))
    return {"lr": lr, "objective": values, "curvature": curvatures, **outcome(values, turns)}


@partial(jax.jit, static_argnames="num_steps")
def _descend(objective, params, before, anchor, pair, lr, *, num_steps):
    def body(carry, _):
        params, before = carry
        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params, anchor, pair, None)
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
