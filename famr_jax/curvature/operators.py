"""Linear operators `v -> A v`: Hessian, Gauss-Newton, Fisher, Jacobian, NTK, and their algebra.

Each is a callable pytree: arrays are leaves and functions static, so that it enters jit as an
argument, and new weights or data of equal shape do not retrace. `A + B`, `c * A` and
`A + damping * Identity()` compose. A data set is any pytree of arrays with a common leading axis;
means over it run in micro-batches of bounded memory, every example weighted once, divided once.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.types import Params, pytree, static

LossFn: TypeAlias = Callable[[Params, Any], Array]
"""`loss_fn(params, data) -> [n]`: one value per example, entry i of example i alone."""

OutputsFn: TypeAlias = Callable[[Params, Any], Array]
"""`outputs_fn(params, data) -> [n, ...]`: a model's outputs, row i of example i alone."""

OutputLossFn: TypeAlias = Callable[[Array, Any], Array]
"""`loss_fn(outputs, data) -> [n]`: one value per example, convex in its outputs."""


def operator(cls: type) -> type:
    """Class decorator: a callable pytree dataclass that adds and scales."""
    cls.__add__ = lambda self, other: Sum((self, other))
    cls.__mul__ = cls.__rmul__ = lambda self, factor: Scaled(self, factor)
    return pytree(cls)


def linearized(matvec: Callable) -> Callable:
    """The product `v -> A v`, with all that does not depend on v computed once.

    Solvers call it before their loop. It holds the activations of one pass, so an operator that
    runs in micro-batches stays as it is.
    """
    return getattr(matvec, "linearized", lambda: matvec)()


@operator
class Identity:
    """v -> v."""

    def __call__(self, v):
        return v


@operator
class Sum:
    """v -> A v + B v + ..."""

    terms: tuple

    def __call__(self, v):
        return jax.tree.map(lambda *leaves: sum(leaves), *(term(v) for term in self.terms))

    def linearized(self):
        return Sum(tuple(jax.tree_util.Partial(linearized(term)) for term in self.terms))


@operator
class Scaled:
    """v -> c A v."""

    matvec: Callable
    factor: float

    def __call__(self, v):
        return jax.tree.map(lambda leaf: self.factor * leaf, self.matvec(v))

    def linearized(self):
        return Scaled(linearized(self.matvec), self.factor)


@operator
class Restricted:
    """A on some of the parameters, the others held: v -> P A P^T v.

    Attributes:
        matvec: A, on vectors shaped like `params`.
        params: Gives the structure.
        keep: `keep(path) -> bool` on paths such as "block_0/qkv/kernel". Vectors have `None` in the
            place of every leaf that is not kept; see `select`.
    """

    matvec: Callable
    params: Params
    keep: Callable[[str], bool] = static()

    def __call__(self, v):
        fill = lambda part, leaf: jnp.zeros_like(leaf) if part is None else part  # noqa: E731
        whole = jax.tree.map(fill, v, self.params, is_leaf=lambda part: part is None)
        return self.select(self.matvec(whole))

    def linearized(self):
        return Restricted(linearized(self.matvec), self.params, self.keep)

    def select(self, tree: Any) -> Any:
        """A tree like `params` with `None` for the leaves that are not kept."""
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
        pick = lambda path, leaf: leaf if self.keep(name(path)) else None  # noqa: E731
        return jax.tree_util.tree_map_with_path(pick, tree)


@operator
class Hessian:
    """Hessian of a mean loss, (1/N) sum_i d^2 l_i / d params^2, by forward over reverse.

    Attributes:
        loss_fn: l_i, one value per example.
        params: Where.
        data: Over what, N examples.
        batch_size: Micro-batch, whose activations bound the memory; None for all at once.
    """

    loss_fn: LossFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(None)

    def __call__(self, v):
        def product(batch, weight):
            grad = jax.grad(lambda params: jnp.vdot(weight, self.loss_fn(params, batch)))
            return jax.jvp(grad, (self.params,), (v,))[1]

        return _mean(product, self.data, self.batch_size)

    def linearized(self):
        if _in_batches(self.data, self.batch_size):
            return self
        mean = lambda params: jnp.mean(self.loss_fn(params, self.data))  # noqa: E731
        return jax.linearize(jax.grad(mean), self.params)[1]


@operator
class GaussNewton:
    """Generalised Gauss-Newton matrix, (1/N) sum_i J_i^T (d^2 l_i / d outputs^2) J_i.

    Positive semidefinite where the loss is convex in the outputs. For cross-entropy on softmax
    logits it is the Fisher information.

    Attributes:
        outputs_fn: The model on the data.
        loss_fn: `(outputs, data) -> [n]`.
        params: Where.
        data: Over what, N examples.
        batch_size: Micro-batch; None for all at once.
    """

    outputs_fn: OutputsFn = static()
    loss_fn: OutputLossFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(None)

    def __call__(self, v):
        product = lambda batch, weight: self._product(batch, weight)(v)  # noqa: E731
        return _mean(product, self.data, self.batch_size)

    def linearized(self):
        if _in_batches(self.data, self.batch_size):
            return self
        n = _size(self.data)
        return self._product(self.data, jnp.full(n, 1 / n))

    def _product(self, batch, weight):
        outputs, push = jax.linearize(lambda params: self.outputs_fn(params, batch), self.params)
        pull = jax.linear_transpose(push, self.params)
        weight = weight.astype(outputs.dtype)
        grad = jax.grad(lambda outputs: jnp.vdot(weight, self.loss_fn(outputs, batch)))
        curve = jax.linearize(grad, outputs)[1]
        return lambda v: pull(curve(push(v)))[0]


@operator
class EmpiricalFisher:
    """Second moment of the per-example gradients, (1/N) sum_i g_i g_i^T.

    Not the Fisher information: its labels are those of the data, not of the model.

    Attributes:
        loss_fn: l_i, whose gradients g_i are meant.
        params: Where.
        data: Over what, N examples.
        batch_size: Micro-batch; None for all at once.
    """

    loss_fn: LossFn = static()
    params: Params
    data: Any
    batch_size: int | None = static(None)

    def __call__(self, v):
        def product(batch, weight):
            push = jax.linearize(lambda params: self.loss_fn(params, batch), self.params)[1]
            along = push(v)
            return jax.linear_transpose(push, self.params)(weight.astype(along.dtype) * along)[0]

        return _mean(product, self.data, self.batch_size)


def fisher(
    outputs_fn: OutputsFn, params: Params, data: Any, *, batch_size: int | None = None
) -> GaussNewton:
    """Exact Fisher information of a softmax classifier, (1/N) sum_i J_i^T (diag p - p p^T) J_i."""
    return GaussNewton(outputs_fn, _log_partition, params, data, batch_size)


def _log_partition(outputs, data):
    del data
    return jax.nn.logsumexp(outputs, axis=-1)


def _size(data: Any) -> int:
    return jax.tree.leaves(data)[0].shape[0]


def _in_batches(data: Any, batch_size: int | None) -> bool:
    return batch_size is not None and batch_size < _size(data)


def _mean(product: Callable, data: Any, batch_size: int | None):
    """(1/N) times what `product(batch, weight)` sums over the examples of weight one."""
    n = _size(data)
    if not _in_batches(data, batch_size):
        return jax.tree.map(lambda leaf: leaf / n, product(data, jnp.ones(n)))

    def body(total, rows):
        batch = jax.tree.map(lambda leaf: leaf[jnp.minimum(rows, n - 1)], data)
        part = product(batch, (rows < n).astype(jnp.float32))
        return jax.tree.map(jnp.add, total, part), None

    num_steps = math.ceil(n / batch_size)
    rows = jnp.arange(num_steps * batch_size).reshape(num_steps, batch_size)
    like = jax.eval_shape(lambda: product(jax.tree.map(lambda a: a[:1], data), jnp.ones(1)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    total = jax.lax.scan(body, zeros, rows)[0]
    return jax.tree.map(lambda leaf: leaf / n, total)
