"""Exact minimisers of small models in float64: L-BFGS comes near, Newton goes to the floor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch, Objective, Pair, Params, pytree, static
from famr_jax.unlearn import minimise

NEWTON_STEPS = 8
FLOOR = 1e-10
"""Gradient norm, relative to that at the start, below which a minimiser counts as exact."""


@pytree
class Ridge:
    """The training objective over `pair.retain`, (1/n) sum l + l2/2 ||params||^2.

    Attributes:
        apply_fn: The model.
        l2: Ridge, on all weights.
        n: The normaliser. Whether it falls to n - m when m examples go is a convention, and the two
            retrained models differ: state it.
    """

    apply_fn: ApplyFn = static()
    l2: float
    n: float

    def __call__(self, params, anchor, pair, key):
        del anchor, key
        losses = cross_entropy(self.apply_fn(params, pair.retain.x), pair.retain.labels)
        norm = jnp.sum(ravel_pytree(params)[0] ** 2)
        return jnp.sum(losses) / self.n + self.l2 / 2 * norm, {}


class Exact(NamedTuple):
    """A minimiser.

    Attributes:
        params: The point.
        grad_norm: Norm of the gradient there, relative to that at the start.
        converged: Whether `grad_norm` is at most `FLOOR`.
    """

    params: Params
    grad_norm: float
    converged: bool


def minimum(
    objective: Objective, params: Params, anchor: Params, pair: Pair, *, tol: float = 1e-6
) -> Exact:
    """The minimiser that L-BFGS reaches from `params`, polished by Newton steps: float64 only."""
    near = minimise(objective, params, anchor, pair, key=None, tol=tol, max_steps=20_000)
    point, norm = _polish(objective, near.params, anchor, pair)
    start = gradient(objective, params, anchor, pair)
    relative = float(norm / jnp.linalg.norm(start))
    return Exact(point, relative, relative <= FLOOR)


@jax.jit
def _polish(objective, params, anchor, pair):
    flat, unravel = ravel_pytree(params)
    grad = jax.grad(lambda flat: objective(unravel(flat), anchor, pair, None)[0])
    step = lambda _, flat: flat - jnp.linalg.solve(jax.jacfwd(grad)(flat), grad(flat))  # noqa: E731
    flat = jax.lax.fori_loop(0, NEWTON_STEPS, step, flat)
    return unravel(flat), jnp.linalg.norm(grad(flat))


@jax.jit
def gradient(objective: Objective, params: Params, anchor: Params, pair: Pair) -> jax.Array:
    """The flat gradient of an objective."""
    return ravel_pytree(jax.grad(lambda p: objective(p, anchor, pair, None)[0])(params))[0]


@jax.jit
def hessian(objective: Objective, params: Params, anchor: Params, pair: Pair) -> jax.Array:
    """The dense Hessian of an objective, `[dim, dim]`."""
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda flat: objective(unravel(flat), anchor, pair, None)[0])(flat)


@jax.jit
def hessian_on_path(objective: Objective, start: Params, end: Params, pair: Pair) -> jax.Array:
    """H_path (end - start), the Hessian averaged on the segment by 20 Gauss-Legendre nodes."""
    flat, unravel = ravel_pytree(start)
    step = ravel_pytree(end)[0] - flat
    grad = jax.grad(lambda flat: objective(unravel(flat), start, pair, None)[0])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    along = lambda t: jax.jvp(grad, (flat + t * step,), (step,))[1]  # noqa: E731
    products = jax.lax.map(along, jnp.asarray((1 + nodes) / 2))
    return jnp.asarray(weights / 2) @ products


def double(tree: Any) -> Any:
    """A copy with float64 in place of float32; needs `jax.enable_x64`."""
    cast = lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(cast(leaf)), tree)


def split(train: Batch, mask: np.ndarray) -> Pair:
    """Forget and retained rows of a training set."""
    return Pair(train[np.flatnonzero(mask)], train[np.flatnonzero(~mask)])
