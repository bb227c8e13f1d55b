"""Minima of whole objectives: by L-BFGS for networks, by Newton's method for small models."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.losses import cross_entropy
from famr_jax.types import (
    ApplyFn,
    Batch,
    Context,
    Objective,
    Pair,
    Params,
    as_pytree,
    check_key,
    check_number,
    pytree,
    static,
)

NEWTON_STEPS, HALVINGS = 200, 30
FLOOR = 1e-10
"""Gradient norm, relative to that at the start, from which a minimiser counts as exact."""


@pytree
class InBatches:
    """An objective on a whole forget set, in the memory of one micro-batch.

        J = sum_b (n_b / n) J_b

    Exact for an objective that averages losses over the forget set and adds terms in the weights.
    Its gradient costs one more forward pass.

    Attributes:
        objective: J_b, on the forget set alone.
        batch_size: Examples a micro-batch; the last may have fewer.
    """

    objective: Objective
    batch_size: int = static()

    def __call__(self, params, context, pair, key):
        n, size = len(pair.forget), min(self.batch_size, len(pair.forget))
        steps, rest = divmod(n, size)

        @jax.checkpoint
        def part(params, batch):
            value = self.objective(params, context, Pair(batch, None), key)
            return jax.tree.map(lambda leaf: len(batch) / n * leaf, value)

        def body(total, batch):
            return jax.tree.map(jnp.add, total, part(params, batch)), None

        whole = jax.tree.map(
            lambda leaf: leaf[: steps * size].reshape(steps, size, *leaf.shape[1:]), pair.forget
        )
        start = part(params, pair.forget[n - rest :]) if rest else None
        if start is None:
            like = jax.eval_shape(part, params, pair.forget[:size])
            start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return jax.lax.scan(body, start, whole)[0]


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

    def __call__(self, params, context, pair, key):
        del context, key
        losses = loss_fn(self.apply_fn)(params, pair.retain)
        norm = jnp.sum(ravel_pytree(params)[0] ** 2)
        return jnp.sum(losses) / self.n + self.l2 / 2 * norm, {}


@functools.cache
def loss_fn(apply_fn: ApplyFn) -> Callable[[Params, Batch], Array]:
    """Cross-entropy of each example, as curvature wants it; one object a model, as jit wants it."""

    def loss(params, data):
        return cross_entropy(apply_fn(params, data.x), data.labels)

    return loss


class Minimum(NamedTuple):
    """A point found by `minimise`: how good it is, and whether it is good enough.

    Attributes:
        params: The point.
        value: The objective there.
        grad_norm: Euclidean norm of its gradient there.
        num_steps: L-BFGS steps taken.
        converged: Whether `grad_norm` fell to `tol` times its value at the start.
    """

    params: Params
    value: Array
    grad_norm: Array
    num_steps: Array
    converged: Array


def minimise(
    objective: Objective | Callable,
    params: Params,
    context: Context,
    pair: Pair,
    *,
    key: Array,
    tol: float = 1e-3,
    max_steps: int = 1000,
) -> Minimum:
    """Carries an objective to its stationary point on the whole sets, by L-BFGS.

        ||grad J(params)|| <= tol ||grad J(start)||

    Args:
        objective: Pytree dataclass or function `(params, context, pair, key) -> (scalar, terms)`.
        params: The start.
        context: The trained weights, `Context(anchor)`, and what else the objective reads.
        pair: The whole sets.
        key: PRNG key, the same at every step.
        tol: Wanted decrease of the gradient norm; float32 seldom goes below 1e-4.
        max_steps: Steps after which to give up.

    Raises:
        ValueError: `tol` not positive.
    """
    check_key(key)
    check_number("tol", tol, above=0)
    _check_precision(params)
    return _minimise(as_pytree(objective), params, context, pair, key, tol, max_steps)


@jax.jit
def _minimise(objective, params, context, pair, key, tol, max_steps):
    optimizer = optax.lbfgs()
    value_fn = _value_fn(objective, context, pair, key)
    value, grad = jax.value_and_grad(value_fn)(params)
    target = tol * optax.tree.norm(grad)

    def going_on(carry):
        _, _, _, grad, num_steps = carry
        return (optax.tree.norm(grad) > target) & (num_steps < max_steps)

    def body(carry):
        params, opt_state, value, grad, num_steps = carry
        updates, opt_state = optimizer.update(
            grad, opt_state, params, value=value, grad=grad, value_fn=value_fn
        )
        # The line search has evaluated the new point: its value and gradient are in the state.
        value, grad = optax.tree.get(opt_state, "value"), optax.tree.get(opt_state, "grad")
        return optax.apply_updates(params, updates), opt_state, value, grad, num_steps + 1

    carry: Any = (params, optimizer.init(params), value, grad, 0)
    params, _, value, grad, num_steps = jax.lax.while_loop(going_on, body, carry)
    norm = optax.tree.norm(grad)
    return Minimum(params, value, norm, num_steps, norm <= target)


class Exact(NamedTuple):
    """A minimiser found by `newton`.

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
def newton(objective: Objective, params: Params, context: Context, pair: Pair) -> Exact:
    """The minimiser of a convex objective: Newton steps, halved until the objective falls enough.

    It goes on below `FLOOR` for as long as steps still halve the gradient. Float64 only.
    """
    value, flat, unravel = _flat_value_fn(objective, params, context, pair)
    grad = jax.grad(value)

    def move(flat, slope):
        step = -jnp.linalg.solve(jax.jacfwd(grad)(flat), slope)
        here, fall = value(flat), jnp.vdot(slope, step)
        # Near the floor the fall drowns in the rounding of the value: a full step is right there.
        drowned = -fall < 1e-12 * jnp.abs(here)

        def too_long(carry):
            size, halvings = carry
            enough = value(flat + size * step) <= here + 1e-4 * size * fall
            return ~enough & ~drowned & (halvings < HALVINGS)

        def halve(carry):
            size, halvings = carry
            return size / 2, halvings + 1

        size, _ = jax.lax.while_loop(too_long, halve, (1.0, 0))
        return flat + size * step

    start = jnp.linalg.norm(grad(flat))
    flat, slope, num_steps = repeat(
        grad, move, flat, target=FLOOR * start, max_steps=NEWTON_STEPS, to_rounding=True
    )
    relative = jnp.linalg.norm(slope) / start
    return Exact(unravel(flat), relative, num_steps, relative <= FLOOR)


def repeat(
    gradient: Callable,
    move: Callable,
    params: Params,
    *,
    target: float | Array,
    max_steps: int,
    to_rounding: bool = False,
) -> tuple[Params, Params, Array]:
    """Makes move after move until the gradient's norm is small: the loop of Newton's methods.

    Args:
        gradient: `params -> gradient`.
        move: `(params, gradient) -> params`, one step.
        params: The start.
        target: Gradient norm at which to stop.
        max_steps: Moves after which to give up.
        to_rounding: Goes on below `target` for as long as moves still halve the norm.

    Returns:
        The end, the gradient there, and how many moves were made.
    """

    def going_on(carry):
        _, grad, before, num_steps = carry
        norm = optax.tree.norm(grad)
        far = norm > target
        if to_rounding:
            far = (far | (norm < before / 2)) & (norm > 0)
        return far & (num_steps < max_steps)

    def body(carry):
        params, grad, _, num_steps = carry
        params = move(params, grad)
        return params, gradient(params), optax.tree.norm(grad), num_steps + 1

    first = gradient(params)
    before = jnp.full_like(optax.tree.norm(first), jnp.inf)
    carry: Any = (params, first, before, 0)
    params, grad, _, num_steps = jax.lax.while_loop(going_on, body, carry)
    return params, grad, num_steps


@jax.jit
def derivatives(
    objective: Objective, params: Params, context: Context, pair: Pair
) -> tuple[Array, Array]:
    """The flat gradient, `[dim]`, and the dense Hessian, `[dim, dim]`, of an objective."""
    value, flat, _ = _flat_value_fn(objective, params, context, pair)
    grad = jax.grad(value)
    return grad(flat), jax.jacfwd(grad)(flat)


@jax.jit
def along_path(objective: Objective, start: Params, step: Array, pair: Pair) -> Array:
    """H_path step, the Hessian averaged on the way by 20 Gauss-Legendre nodes; `step` is flat."""
    value, flat, _ = _flat_value_fn(objective, start, Context(start), pair)
    nodes, weights = np.polynomial.legendre.leggauss(20)

    def product(t):
        return jax.jvp(jax.grad(value), (flat + t * step,), (step,))[1]

    products = jax.lax.map(product, jnp.asarray((1 + nodes) / 2))
    return jnp.asarray(weights / 2) @ products


def double(tree: Any) -> Any:
    """A copy with float64 in place of float32; needs `jax.enable_x64`."""

    def cast(leaf):
        wide = np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf
        return jnp.asarray(wide)

    return jax.tree.map(cast, tree)


def split(train: Batch, mask: np.ndarray) -> Pair:
    """Forget and retained rows of a training set."""
    return Pair(train[np.flatnonzero(mask)], train[np.flatnonzero(~mask)])


def _value_fn(objective, context, pair, key):
    """`params -> scalar`: the objective with all but the weights held."""
    return lambda params: objective(params, context, pair, key)[0]


def _flat_value_fn(objective, params, context, pair):
    """The objective as a function of flat weights, the flat `params`, and what shapes them back."""
    _check_precision(params)
    flat, unravel = ravel_pytree(params)
    value = _value_fn(objective, context, pair, None)
    return lambda flat: value(unravel(flat)), flat, unravel


def _check_precision(params):
    """Raises a `ValueError` for weights in half precision: their factors have no routine."""
    for leaf in jax.tree.leaves(params):
        if jnp.finfo(leaf.dtype).bits < 32:
            rule = "must be of float32 or float64"
            raise ValueError(f"`params` {rule}, got {leaf.dtype}: cast the params first.")
