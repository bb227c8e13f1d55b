"""First moments of per-example gradients: their mean, and the mean of their squares."""

from typing import Any

import jax
import jax.numpy as jnp

from famr_jax.curvature.batches import mean_of, one_each
from famr_jax.curvature.operators import LossFn
from famr_jax.types import Params


def mean_gradient(
    loss_fn: LossFn, params: Params, data: Any, *, batch_size: int | None = None
) -> Params:
    """The gradient of a mean loss over a data set, (1/N) sum_i g_i, in micro-batches.

    Args:
        loss_fn: `(params, data) -> [n]`, one value per example.
        params: The weights at which it is taken.
        data: The N examples.
        batch_size: Micro-batch; None for all at once.
    """

    def product(batch, weight):
        def total(params):
            return jnp.vdot(weight, one_each(loss_fn(params, batch), batch))

        return jax.grad(total)(params)

    return mean_of(product, data, batch_size)


def mean_square(
    loss_fn: LossFn, params: Params, data: Any, *, batch_size: int | None = 32
) -> Params:
    """The diagonal of the empirical Fisher information, (1/N) sum_i g_i^2, weight by weight.

    Each example's own gradient is squared. The square of a batch's mean gradient, which public
    codes take, is another number: smaller by the size of the batch where gradients are noise.

    Args:
        loss_fn: `(params, data) -> [n]`, one value per example.
        params: The weights at which it is taken.
        data: The N examples.
        batch_size: Examples whose gradients are in memory at a time; None for all.
    """

    def product(batch, weight):
        def one(example):
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            return jax.grad(lambda params: one_each(loss_fn(params, alone), alone)[0])(params)

        def total(leaf):
            return jnp.tensordot(weight.astype(leaf.dtype), leaf**2, axes=1)

        return jax.tree.map(total, jax.vmap(one)(batch))

    return mean_of(product, data, batch_size)
