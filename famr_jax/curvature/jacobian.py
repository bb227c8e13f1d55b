"""The Jacobian of a model's outputs in its parameters, its transpose, and the tangent kernel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.curvature.algebra import operator
from famr_jax.curvature.batches import in_batches, rows_of, some_each, sum_of
from famr_jax.curvature.operators import OutputsFn
from famr_jax.types import Params, static


@operator
class Jacobian:
    """Jacobian of a model's outputs in its parameters: v -> J v, `[N, ...]`.

    Attributes:
        outputs_fn: The model on the data.
        params: The weights at which it is taken.
        data: The N examples that it is taken over.
        batch_size: Micro-batch; None for all at once.
    """

    outputs_fn: OutputsFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(default=None)

    def __call__(self, v: Params) -> Array:
        def product(batch):
            return jax.jvp(lambda params: self._outputs(params, batch), (self.params,), (v,))[1]

        return rows_of(product, self.data, self.batch_size)

    def linearized(self) -> Callable[[Params], Array]:
        if in_batches(self.data, self.batch_size):
            return self
        return jax.linearize(lambda params: self._outputs(params, self.data), self.params)[1]

    def _outputs(self, params, batch):
        return some_each(self.outputs_fn(params, batch), batch)

    def transpose(self) -> "JacobianTransposed":
        """J^T as an operator, u -> J^T u."""
        return JacobianTransposed(self)


@operator
class JacobianTransposed:
    """u -> J^T u = sum_i J_i^T u_i, for u shaped like the outputs; see `Jacobian.transpose`."""

    jacobian: Jacobian

    def __call__(self, u: Array) -> Params:
        jacobian = self.jacobian

        def product(pair, weight):
            batch, u = pair
            outputs, pull = jax.vjp(
                lambda params: jacobian._outputs(params, batch), jacobian.params
            )
            return pull((jax.vmap(jnp.multiply)(weight, u)).astype(outputs.dtype))[0]

        return sum_of(product, (jacobian.data, u), jacobian.batch_size)

    def linearized(self) -> Callable[[Array], Params]:
        if in_batches(self.jacobian.data, self.jacobian.batch_size):
            return self
        pull = jax.linear_transpose(self.jacobian.linearized(), self.jacobian.params)
        return lambda u: pull(u)[0]


@operator
class NTK:
    """Neural tangent kernel, u -> J J^T u, for u shaped like the outputs; see `Jacobian`."""

    outputs_fn: OutputsFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(default=None)

    def __call__(self, u: Array) -> Array:
        jacobian = Jacobian(self.outputs_fn, self.params, self.data, self.batch_size)
        return jacobian(jacobian.transpose()(u))

    def linearized(self) -> Callable[[Array], Array]:
        if in_batches(self.data, self.batch_size):
            return self
        push = Jacobian(self.outputs_fn, self.params, self.data).linearized()
        pull = jax.linear_transpose(push, self.params)
        return lambda u: push(pull(u)[0])
