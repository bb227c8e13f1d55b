"""Removal from a stored curvature and the forget set alone, by the damping that trust allows.

    inside(loss_fn, outputs_fn, params, forget, store, *, l2, curvature) -> StoredRemoval
    woodbury(loss_fn, outputs_fn, params, forget, store, *, l2, root) -> StoredRemoval

At the minimum of the training objective, grad L_all = 0, the retained gradient is known from the
forget set: `primal`'s step ("n-m", N = n - m) needs no other data for its right-hand side,

    b = (g_T + m l2 params) / (n - m),    M = (n A - m A_T) / (n - m),    step = (M + d)^-1 b

with A the mean curvature of all n examples that the store holds, A_T that of the m forgotten ones.
The damping d is at least l2, the ridge, where the step is Newton's; where the model is not linear
that far, `curvature.trust_damping` raises it.

The two differ in where they act. `inside` stays in the store's directions, where what is left of
the curvature is exact and semidefinite. `woodbury` (WIN-U) takes A for d outside of them and
subtracts the forget part everywhere, by an identity of the size of its outputs, m C: outside, that
part may exceed d, and the matrix is then indefinite, which is said. With a store of every direction
in which A or b is not zero both are the Newton step with the exact retained matrix; with m / n -> 0
both tend to the classical influence removal, which leaves A_T in.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import precise
from famr_jax.curvature.eigenspace import Eigenspace
from famr_jax.curvature.gradients import mean_gradient
from famr_jax.curvature.operators import LossFn, OutputsFn
from famr_jax.curvature.solve import CONVERGED, INDEFINITE, NOT_FINITE, STALLED, Solution
from famr_jax.curvature.spectrum import check_memory
from famr_jax.curvature.trust import HIGH, LOW, Trusted, divergence, trust_damping
from famr_jax.influence.primal import Curvature
from famr_jax.types import Params, check_number, pytree

SHARE = 3e-5
"""Of the trace of the retained curvature: the first damping that trust tries; the last is all."""


class StoredRemoval(NamedTuple):
    """The weights after a removal from a store, and what a judge needs.

    Attributes:
        params: Predicted weights; the trained ones if no damping was trusted.
        trusted: The damping, the step and how far it is trusted.
        outside: The share of b's norm outside the store's directions.
    """

    params: Params
    trusted: Trusted
    outside: Array

    @property
    def why(self) -> str:
        """How far the answer may be trusted, in words."""
        return f"{self.trusted.why}; {float(self.outside):.0%} of the gradient outside the store"


def inside(
    loss_fn: LossFn,
    outputs_fn: OutputsFn,
    params: Params,
    forget: Any,
    store: Eigenspace,
    *,
    l2: float | Array,
    curvature: Curvature,
    damping: float | Array | None = None,
    sample: Any = None,
    low: float | Array = LOW,
    high: float | Array = HIGH,
    batch_size: int | None = None,
) -> StoredRemoval:
    """Predicts the weights after removal by a step inside a curvature store; see above.

    Args:
        loss_fn: `(params, data) -> [n]`, one value per example.
        outputs_fn: The model's logits, whose KL decides about trust.
        params: The trained weights.
        forget: What is removed.
        store: The mean curvature of all data, the forget set among them, at `params`.
        l2: Ridge of the training objective, the least damping.
        curvature: `data -> operator`, the mean curvature that the store is of.
        damping: d; by trust if not given.
        sample: What the KL is a mean over; the forget set if not given, where the step moves most.
        low: KL below which trust tries a smaller damping.
        high: KL above which it does not trust the step.
        batch_size: Micro-batch of gradients and of the KL.

    Raises:
        ValueError: A number out of range, or what `Eigenspace.without` refuses.
    """
    b = _change(loss_fn, params, forget, store.size, l2, batch_size=batch_size)
    left = store.without(curvature(forget), float(_size(forget)), like=params)
    return _removal(
        left.steps(b), outputs_fn, params, b, store, l2, damping,
        forget if sample is None else sample, low, high, jnp.trace(left.matrix), batch_size,
    )  # fmt: skip


def woodbury(
    loss_fn: LossFn,
    outputs_fn: OutputsFn,
    params: Params,
    forget: Any,
    store: Eigenspace,
    *,
    l2: float | Array,
    root: Callable[[Array, Array], Array],
    damping: float | Array | None = None,
    sample: Any = None,
    low: float | Array = LOW,
    high: float | Array = HIGH,
    batch_size: int | None = None,
) -> StoredRemoval:
    """Predicts the weights after removal by WIN-U's identity on a stored Gauss-Newton matrix.

        x = H^-1 b + H^-1 R^T (I - R H^-1 R^T)^-1 R H^-1 b,    H = n A / (n-m) + d,   R = S^T J

    It forms R, `[m C, dim]`, J the outputs' Jacobian on the forget set, and S S^T = the loss's
    curvature over n - m, from `root`: `(outputs, v) -> S v`, as of `dual.CROSS_ENTROPY`. The other
    arguments, and what is raised, are those of `inside`, and a R that does not fit in memory.

    Source: WIN-U (arXiv 2604.13438), its abstract; the form with a root of the singular softmax
    curvature, the store of low rank plus d and the choice of d are ours.
    """
    check_memory(math.prod(jax.eval_shape(outputs_fn, params, forget).shape), params)
    b = _change(loss_fn, params, forget, store.size, l2, batch_size=batch_size)
    steps, size = _woodbury_steps(store, params, forget, b, outputs_fn=outputs_fn, root=root)
    return _removal(
        steps, outputs_fn, params, b, store, l2, damping,
        forget if sample is None else sample, low, high, size, batch_size,
    )  # fmt: skip


def _removal(steps, outputs_fn, params, b, store, l2, damping, sample, low, high, size, batch_size):
    check_number("l2", l2, least=0)
    if damping is None:
        tiny = jnp.finfo(size.dtype).tiny
        start = jnp.maximum(SHARE * size, tiny)
        trusted = trust_damping(
            steps, outputs_fn, params, sample,
            start=start, least=l2, most=size, low=low, high=high, batch_size=batch_size,
        )  # fmt: skip
    else:
        check_number("damping", damping, least=0)
        shift = jnp.maximum(damping, l2)
        solution = steps(shift)
        moved = divergence(outputs_fn, params, solution.value, sample, batch_size=batch_size)
        met = ~solution.negative_curvature
        trusted = Trusted(shift, solution, moved, met, jnp.zeros((), int), solution.num_steps)
    after = jax.tree.map(jnp.add, params, trusted.solution.value)
    return StoredRemoval(after, trusted, store.outside(b))


@partial(jax.jit, static_argnames=("loss_fn", "batch_size"))
@precise
def _change(loss_fn, params, forget, n, l2, *, batch_size):
    """b, the retained gradient with its sign turned, where the whole one is zero."""
    m = _size(forget)
    mean = mean_gradient(loss_fn, params, forget, batch_size=batch_size)
    return jax.tree.map(lambda g, w: (m / (n - m) * (g + l2 * w)).astype(w.dtype), mean, params)


@pytree
class Woodbury:
    """`damping -> solution` of WIN-U; its matrices are formed once."""

    rows: Array
    values: Array
    gram: Array
    coupling: Array
    jacobian: Array
    b: Any

    @precise
    def __call__(self, damping: float | Array) -> Solution:
        flat, unravel = ravel_pytree(self.b)
        # H^-1 = I / d + U^T diag(bend) U
        bend = 1 / (self.values + damping) - 1 / damping

        def inverse(v):
            return v / damping + (bend * (self.rows @ v)) @ self.rows

        core = jnp.eye(len(self.gram), dtype=flat.dtype) - self.gram / damping
        core = core - (self.coupling * bend) @ self.coupling.T
        values, turn = jnp.linalg.eigh(core)
        negative = ~(values[0] > 0)
        first = inverse(flat)
        push = turn.T @ (self.jacobian @ first)
        push = turn @ (push / jnp.where(values > 0, values, 1))
        x = jnp.where(negative, 0, first + inverse(push @ self.jacobian))
        left = self.rows.T @ (self.values * (self.rows @ x)) + damping * x
        left = left - self.jacobian.T @ (self.jacobian @ x)
        size = jnp.linalg.norm(flat)
        error = jnp.linalg.norm(flat - left) / jnp.where(size > 0, size, 1)
        reason = jnp.select(
            (~jnp.isfinite(error), negative & (size > 0), error <= 1e-3),
            (NOT_FINITE, INDEFINITE, CONVERGED),
            STALLED,
        )
        none = jnp.zeros((), int)
        return Solution(
            unravel(x.astype(flat.dtype)), error, none, reason == CONVERGED, negative, reason
        )


@partial(jax.jit, static_argnames=("outputs_fn", "root"))
@precise
def _woodbury_steps(store, params, forget, b, *, outputs_fn, root):
    m = _size(forget)
    by = store.size - m

    def rooted(example):
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        outputs, pull = jax.vjp(lambda params: outputs_fn(params, batch), params)
        columns = jax.vmap(lambda v: root(outputs, v[None]))(jnp.eye(outputs.shape[-1]))
        return jax.vmap(lambda u: ravel_pytree(pull(u.astype(outputs.dtype))[0])[0])(columns)

    jacobian = jax.lax.map(rooted, forget)
    jacobian = jacobian.reshape(-1, jacobian.shape[-1]) / jnp.sqrt(by)
    values, turn = jnp.linalg.eigh(store.matrix * store.size / by)
    rows = turn.T @ store.rows
    gram, coupling = jacobian @ jacobian.T, jacobian @ rows.T
    left = jnp.sum(values) - jnp.sum(jacobian**2)
    return Woodbury(rows, values, gram, coupling, jacobian, b), left


def _size(data):
    return jax.tree.leaves(data)[0].shape[0]
