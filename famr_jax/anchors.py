"""Anchors: what holds unlearned weights near the trained ones, and in which metric.

An anchor is any `distance(params, anchor) -> scalar`. `losses.l2_anchor` is the one of identity
metric; `diagonal` measures one that knows which weights the retained data need, and `eigenspace` is
that of a curvature store, which knows how they interact.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature import Eigenspace
from famr_jax.curvature.gradients import mean_square
from famr_jax.types import ApplyFn, Params, check_number, pytree


@pytree
class Diagonal:
    """Half the squared distance to the anchor, each weight weighed by its Fisher information.

        1/2 sum_j f_j (params_j - anchor_j)^2

    To second order the mean KL(p(anchor) || p(params)) over the data of f, if weights did not
    interact.

    Attributes:
        fisher: f, the shape of the weights.
        size: How many examples it is a mean over.
    """

    fisher: Params
    size: float

    def __call__(self, params: Params, anchor: Params) -> Any:
        def half(f, leaf, start):
            return jnp.sum(f * (leaf - start) ** 2) / 2

        return sum(jax.tree.leaves(jax.tree.map(half, self.fisher, params, anchor)))

    def without(self, part: "Diagonal") -> "Diagonal":
        """The anchor of the other examples: sums are subtracted, so that it is exact.

        Args:
            part: That of some of the examples, as the forget set, at the same weights.
        """
        left = self.size - part.size

        def rest(whole, gone):
            return jnp.maximum(self.size * whole - part.size * gone, 0) / left

        return Diagonal(jax.tree.map(rest, self.fisher, part.fisher), left)


def diagonal(
    apply_fn: ApplyFn, params: Params, data: Any, *, batch_size: int | None = 32
) -> Diagonal:
    """The anchor of the diagonal of the exact Fisher information over a data set.

        f_j = mean_x sum_c p_c(x) (d log p_c(x) / d params_j)^2

    Its labels are the model's, not those of the data, whose gradients vanish on saturated nets. One
    pass backwards for each class and example; under jit, or once.

    Args:
        apply_fn: The model.
        params: The trained weights.
        data: The examples, with `x`.
        batch_size: Examples whose gradients are in memory at a time.

    Source: the diagonal of EWC (arXiv 1612.00796), its expectation over labels taken exactly.
    """
    num_classes = jax.eval_shape(apply_fn, params, data.x[:1]).shape[-1]

    def body(total, label):
        def losses(params, batch):
            log_p = jax.nn.log_softmax(apply_fn(params, batch.x))[:, label]
            return jnp.exp(jax.lax.stop_gradient(log_p) / 2) * log_p

        part = mean_square(losses, params, data, batch_size=batch_size)
        return jax.tree.map(jnp.add, total, part), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    fisher, _ = jax.lax.scan(body, zeros, jnp.arange(num_classes))
    return Diagonal(fisher, float(len(data)))


@pytree
class InEigenspace:
    """Half the squared distance to the anchor in the metric of a curvature store.

        1/2 D^T U^T S U D + r/2 ||D - U^T U D||^2,    D = params - anchor

    To second order the mean KL(p(anchor) || p(params)) over the data of S, if that is a Fisher
    information, and r is small.

    Attributes:
        store: U and S.
        outside: r, the curvature outside the store's directions.
    """

    store: Eigenspace
    outside: float | Array

    def __call__(self, params: Params, anchor: Params) -> Array:
        delta, _ = ravel_pytree(jax.tree.map(jnp.subtract, params, anchor))
        inner = self.store.rows @ delta
        rest = jnp.vdot(delta, delta) - jnp.vdot(inner, inner)
        return (jnp.vdot(inner, self.store.matrix @ inner) + self.outside * rest) / 2

    def without(self, part: Eigenspace) -> "InEigenspace":
        """The anchor of the other examples: sums are subtracted, so that it is exact.

        Args:
            part: That of some of the examples, as the forget set, in the same directions:
                `curvature.on_rows(fisher of them, params, store.rows, size=m)`.
        """
        return InEigenspace(self.store.minus(part), self.outside)


def eigenspace(store: Eigenspace, *, outside: float | Array) -> InEigenspace:
    """The anchor in the metric of a curvature store, such as `curvature.keep` makes.

    Args:
        store: Of the Fisher information at the trained weights.
        outside: Curvature of all directions that it does not hold, such as its least eigenvalue.

    Raises:
        ValueError: An `outside` below zero.
    """
    check_number("outside", outside, least=0)
    return InEigenspace(store, outside)
