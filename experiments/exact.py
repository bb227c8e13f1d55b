"""Exact minimisers and dense derivatives of small models in float64, by damped Newton steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.operators import LossFn
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch, Objective, Pair, Params, pytree, static

NEWTON_STEPS, HALVINGS = 200, 30
FLOOR = 1e-10
"""Gradient norm, relative to that at the start, from which a minimiser counts as exact."""


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
        losses = loss_fn(self.apply_fn)(params, pair.retain)
        norm = jnp.sum(ravel_pytree(params)[0] ** 2)
        return jnp.sum(losses) / self.n + self.l2 / 2 * norm, {}


class Exact(NamedTuple):
    """A minimiser.

    Attributes:
        params: The point.
        grad_norm: Norm of the gradient there, relative to that at the start.
        num_steps: Newton steps taken.
        converged: Whether `grad_norm` is at most `FLOOR`.
    """

    params: Params
    grad_norm: Array
    num_steps: Array
    converged: Array


@jax.jit
def minimum(objective: Objective, params: Params, anchor: Params, pair: Pair) -> Exact:
    """The minimiser of a convex objective: Newton steps, halved until the objective falls enough.

    Goes on below `FLOOR` for as long as steps still halve the gradient. Float64 only.
    """
    flat, unravel = ravel_pytree(params)
    value = lambda flat: objective(unravel(flat), anchor, pair, None)[0]  # noqa: E731
    grad = jax.grad(value)
    norm = jnp.linalg.norm

    def going_on(carry):
        _, slope, before, count = carry
        far = (norm(slope) > FLOOR * start) | (norm(slope) < before / 2)
        return far & (norm(slope) > 0) & (count < NEWTON_STEPS)

    def body(carry):
        flat, slope, _, count = carry
        step = -jnp.linalg.solve(jax.jacfwd(grad)(flat), slope)
        here, fall = value(flat), jnp.vdot(slope, step)
        # Near the floor the fall drowns in the rounding of the value: a full step is right there.
        drowned = -fall < 1e-12 * jnp.abs(here)

        def too_long(carry):
            size, halvings = carry
            enough = value(flat + size * step) <= here + 1e-4 * size * fall
            return ~enough & ~drowned & (halvings < HALVINGS)

        half = lambda carry: (carry[0] / 2, carry[1] + 1)  # noqa: E731
        size, _ = jax.lax.while_loop(too_long, half, (1.0, 0))
        new = flat + size * step
        return new, grad(new), norm(slope), count + 1

    slope = grad(flat)
    start = norm(slope)
    carry = (flat, slope, jnp.inf, 0)
    flat, slope, _, count = jax.lax.while_loop(going_on, body, carry)
    relative = norm(slope) / start
    return Exact(unravel(flat), relative, count, relative <= FLOOR)


@jax.jit
def derivatives(
    objective: Objective, params: Params, anchor: Params, pair: Pair
) -> tuple[Array, Array]:
    """The flat gradient, `[dim]`, and the dense Hessian, `[dim, dim]`, of an objective."""
    flat, unravel = ravel_pytree(params)
    grad = jax.grad(lambda flat: objective(unravel(flat), anchor, pair, None)[0])
    return grad(flat), jax.jacfwd(grad)(flat)


@jax.jit
def along_path(objective: Objective, start: Params, step: Array, pair: Pair) -> Array:
    """H_path step, the Hessian averaged on the way by 20 Gauss-Legendre nodes; `step` is flat."""
    flat, unravel = ravel_pytree(start)
    grad = jax.grad(lambda flat: objective(unravel(flat), start, pair, None)[0])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    along = lambda t: jax.jvp(grad, (flat + t * step,), (step,))[1]  # noqa: E731
    products = jax.lax.map(along, jnp.asarray((1 + nodes) / 2))
    return jnp.asarray(weights / 2) @ products


@functools.cache
def loss_fn(apply_fn: ApplyFn) -> LossFn:
    """Cross-entropy of each example, as curvature wants it; one object a model, as jit wants it."""
    return lambda params, data: cross_entropy(apply_fn(params, data.x), data.labels)


def double(tree: Any) -> Any:
    """A copy with float64 in place of float32; needs `jax.enable_x64`."""
    cast = lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(cast(leaf)), tree)


def split(train: Batch, mask: np.ndarray) -> Pair:
    """Forget and retained rows of a training set."""
    return Pair(train[np.flatnonzero(mask)], train[np.flatnonzero(~mask)])
