"""Curvature of a mean loss over a data set: Hessian, Gauss-Newton matrix, Fisher information.

Means over the data run in micro-batches, every example weighted once, divided once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from famr_jax.curvature.algebra import operator, precise
from famr_jax.curvature.batches import (
    in_batches,
    mean_of,
    one_each,
    rows_of,
    size_of,
    some_each,
)
from famr_jax.types import Batch, Params, check_key, check_labels, static

LossFn: TypeAlias = Callable[[Params, Any], Array]
"""`loss_fn(params, data) -> [n]`: one value per example, entry i of example i alone."""

OutputsFn: TypeAlias = Callable[[Params, Any], Array]
"""`outputs_fn(params, data) -> [n, ...]`: a model's outputs, row i of example i alone."""

OutputLossFn: TypeAlias = Callable[[Array, Any], Array]
"""`loss_fn(outputs, data) -> [n]`: one value per example, convex in its outputs."""


def check_weights(*trees: Any) -> None:
    """Raises a `ValueError` unless all leaves are of a real floating-point type."""
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(tree)]
    types = {str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__ for leaf in leaves}
    wrong = sorted(t for t in types if "float" not in t)
    if wrong:
        rule = "must hold arrays of a real floating-point type"
        raise ValueError(f"`params` and vectors like them {rule}, got {', '.join(wrong)}.")


def check_data(data: Any) -> None:
    """Raises a `ValueError` if a `Batch` has labels that are no classes: no loss says so of -1."""
    if isinstance(data, Batch) and isinstance(data.labels, (Array, np.ndarray)):
        check_labels(data.labels)


def _spoilt(image, loss):
    """The product, or NaN where a loss is not finite: its slopes may well be, of a label >= C."""
    finite = jnp.all(jnp.isfinite(loss))
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), image)


def _of_classes(image, loss_fn, params, data, batch_size):
    """The product, if it is finite, or would not be with other labels.

    Raises:
        ValueError: A label that is no class, in a concrete product.
    """
    leaves = jax.tree.leaves((image, params, data))
    if not isinstance(data, Batch) or any(isinstance(leaf, Tracer) for leaf in leaves):
        return image
    if all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(image)):
        return image

    def losses(data):
        return rows_of(lambda batch: loss_fn(params, batch), data, batch_size)

    zeros = jnp.zeros_like(data.labels)
    wrong = ~jnp.isfinite(losses(data)) & jnp.isfinite(losses(Batch(data.x, zeros)))
    if bool(jnp.any(wrong)):
        row = int(jnp.argmax(wrong))
        told = f"got {int(data.labels[row])} on example {row}"
        raise ValueError(f"`labels` must be classes, whose loss is finite, {told}.")
    return image


@operator
class Hessian:
    """Hessian of a mean loss, (1/N) sum_i d^2 l_i / d params^2, by forward over reverse.

    Attributes:
        loss_fn: l_i, one value per example.
        params: The weights at which it is taken.
        data: The N examples that it is taken over.
        batch_size: Micro-batch, whose activations bound the memory; None for all at once.
    """

    loss_fn: LossFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(default=None)

    def __post_init__(self):
        check_data(self.data)

    def __call__(self, v: Params) -> Params:
        check_weights(self.params, v)

        def product(batch, weight):
            grad = jax.value_and_grad(lambda params: jnp.vdot(weight, self._losses(params, batch)))
            (loss, _), (_, image) = jax.jvp(grad, (self.params,), (v,))
            return _spoilt(image, loss)

        image = mean_of(product, self.data, self.batch_size)
        return _of_classes(image, self.loss_fn, self.params, self.data, self.batch_size)

    def linearized(self) -> Callable[[Params], Params]:
        check_weights(self.params)
        if in_batches(self.data, self.batch_size):
            return self
        grad = jax.value_and_grad(lambda params: jnp.mean(self._losses(params, self.data)))
        (loss, _), along = jax.linearize(grad, self.params)
        return lambda v: _spoilt(along(v)[1], loss)

    def _losses(self, params, batch):
        return one_each(self.loss_fn(params, batch), batch)


@operator
class GaussNewton:
    """Generalised Gauss-Newton matrix, (1/N) sum_i J_i^T (d^2 l_i / d outputs^2) J_i.

    Positive semidefinite where the loss is convex in the outputs. For cross-entropy on softmax
    logits it is the Fisher information.

    Attributes:
        outputs_fn: The model on the data.
        loss_fn: `(outputs, data) -> [n]`.
        params: The weights at which it is taken.
        data: The N examples that it is taken over.
        batch_size: Micro-batch; None for all at once.
    """

    outputs_fn: OutputsFn = static()
    loss_fn: OutputLossFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(default=None)

    def __post_init__(self):
        check_data(self.data)

    def __call__(self, v: Params) -> Params:
        check_weights(self.params, v)

        def product(batch, weight):
            return self._product(batch, weight)(v)

        image = mean_of(product, self.data, self.batch_size)
        return _of_classes(image, self._losses, self.params, self.data, self.batch_size)

    def linearized(self) -> Callable[[Params], Params]:
        check_weights(self.params)
        if in_batches(self.data, self.batch_size):
            return self
        n = size_of(self.data)
        return self._product(self.data, jnp.full(n, 1 / n))

    def _product(self, batch, weight):
        outputs, push = jax.linearize(
            lambda params: some_each(self.outputs_fn(params, batch), batch), self.params
        )
        pull = jax.linear_transpose(push, self.params)
        weight = weight.astype(outputs.dtype)

        def weighted(outputs):
            return jnp.vdot(weight, one_each(self.loss_fn(outputs, batch), batch))

        (loss, _), curve = jax.linearize(jax.value_and_grad(weighted), outputs)
        return lambda v: _spoilt(pull(curve(push(v))[1])[0], loss)

    def _losses(self, params, batch):
        return self.loss_fn(self.outputs_fn(params, batch), batch)


@operator
class EmpiricalFisher:
    """Second moment of the per-example gradients, (1/N) sum_i g_i g_i^T.

    Not the Fisher information: its labels are those of the data, not of the model.

    Attributes:
        loss_fn: l_i, whose gradients g_i are meant.
        params: The weights at which it is taken.
        data: The N examples that it is taken over.
        batch_size: Micro-batch; None for all at once.
    """

    loss_fn: LossFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(default=None)

    def __post_init__(self):
        check_data(self.data)

    def __call__(self, v: Params) -> Params:
        check_weights(self.params, v)

        def product(batch, weight):
            losses, push = self._push(batch)
            along = push(v)
            pull = jax.linear_transpose(push, self.params)
            return _spoilt(pull(weight.astype(along.dtype) * along)[0], losses)

        image = mean_of(product, self.data, self.batch_size)
        return _of_classes(image, self.loss_fn, self.params, self.data, self.batch_size)

    def linearized(self) -> Callable[[Params], Params]:
        check_weights(self.params)
        if in_batches(self.data, self.batch_size):
            return self
        losses, push = self._push(self.data)
        pull, n = jax.linear_transpose(push, self.params), size_of(self.data)
        return lambda v: _spoilt(pull(push(v) / n)[0], losses)

    def _push(self, batch):
        """The losses, `[n]`, and v -> g_i v of every example, `[n]`."""

        def losses(params):
            return one_each(self.loss_fn(params, batch), batch)

        return jax.linearize(losses, self.params)


def fisher(
    outputs_fn: OutputsFn, params: Params, data: Any, *, batch_size: int | None = None
) -> GaussNewton:
    """Exact Fisher information of a softmax classifier, (1/N) sum_i J_i^T (diag p - p p^T) J_i."""
    return GaussNewton(outputs_fn, _log_partition, params, data, batch_size)


def _log_partition(outputs, data):
    del data
    return jax.nn.logsumexp(outputs, axis=-1)


def sampled_fisher(
    outputs_fn: OutputsFn,
    params: Params,
    data: Any,
    *,
    key: Array,
    batch_size: int | None = None,
) -> EmpiricalFisher:
    """Fisher information with one label per example drawn from the model: unbiased, rank <= N.

    Its mean over keys is `fisher`; on the labels of the data it would be the empirical Fisher.
    """
    check_key(key)
    labels = _draw(params, data, key, outputs_fn=outputs_fn, batch_size=batch_size)
    return EmpiricalFisher(_LabelLoss(outputs_fn), params, (data, labels), batch_size)


@functools.partial(jax.jit, static_argnames=("outputs_fn", "batch_size"))
@precise
def _draw(params, data, key, *, outputs_fn, batch_size):
    logits = rows_of(lambda batch: some_each(outputs_fn(params, batch), batch), data, batch_size)
    return jax.random.categorical(key, logits)


@dataclasses.dataclass(frozen=True)
class _LabelLoss:
    """-log p(label), as a function that equals another of the same model: jit compares it."""

    outputs_fn: OutputsFn

    def __call__(self, params, pair):
        data, labels = pair
        log_p = jax.nn.log_softmax(self.outputs_fn(params, data))
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
