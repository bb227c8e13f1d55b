"""Kernels of linear(ised) models and of infinitely wide networks, and their Gram matrices."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.curvature import NTK, Jacobian, linearized
from famr_jax.curvature.algebra import operator
from famr_jax.types import ApplyFn, Params, check_count, pytree, static

BLOCK_BYTES = 2**26
"""Memory for the Jacobian's rows while a kernel matrix is built, block by block."""


@pytree
class Linearized:
    """The linearised model, an `ApplyFn`; built by `linearize_model`."""

    apply_fn: ApplyFn = static()
    centre: Params

    # Compared by identity, so that it may be a static function; its arrays enter jit as arguments
    # where it is one itself.
    __eq__, __hash__ = object.__eq__, object.__hash__

    @jax.jit
    def __call__(self, params: Params, x: Array) -> Array:
        along = jax.tree.map(jnp.subtract, params, self.centre)
        outputs, change = jax.jvp(lambda p: self.apply_fn(p, x), (self.centre,), (along,))
        return outputs + change


def linearize_model(apply_fn: ApplyFn, params: Params) -> Linearized:
    """The model linear in its parameters that touches `apply_fn` at `params`.

        f_lin(new, x) = f(params, x) + J(params, x) (new - params)

    One object serves as a static function of an operator and as an argument of jit.
    """
    return Linearized(apply_fn, params)


@operator
class Dense:
    """A Gram matrix in memory: `[n, C, n, C]`, or `[n, n]` where all outputs share it."""

    matrix: Array

    def __call__(self, weights: Array) -> Array:
        return jnp.tensordot(self.matrix, weights, self.matrix.ndim // 2)

    def among(self, rows: Array) -> "Dense":
        """The Gram matrix of some of the examples."""
        pick = (rows, slice(None))[: self.matrix.ndim // 2]
        return Dense(self.matrix[pick][(slice(None),) * len(pick) + pick])


@operator
class MatrixFree:
    """A Gram matrix as products, J J^T of two passes over the examples `x`."""

    kernel: "TangentKernel"
    x: Array

    def __call__(self, weights: Array) -> Array:
        return self._products()(weights)

    def linearized(self) -> Callable[[Array], Array]:
        return linearized(self._products())

    def among(self, rows: Array) -> "MatrixFree":
        """The Gram matrix of some of the examples."""
        return MatrixFree(self.kernel, self.x[rows])

    def _products(self):
        return NTK(self.kernel.apply_fn, self.kernel.params, self.x, self.kernel.batch_size)


Gram: TypeAlias = Dense | MatrixFree
"""K(x, x) of a training set, an operator on dual weights `[n, C]`."""


@pytree
class TangentKernel:
    """Tangent kernel of a finite network, K(x, x') = J(x) J(x')^T, J at `params`.

    Attributes:
        apply_fn: The model, linear or to be linearised.
        params: The weights of J; any, if the model is linear.
        batch_size: Micro-batch of the products; None for all at once.
    """

    apply_fn: ApplyFn = static()
    params: Params
    batch_size: int | None = static(default=None)

    @jax.jit
    def product(self, x: Array, other: Array, weights: Array) -> Array:
        """K(x, other) weights, `[n, C]`, from weights `[m, C]`: the outputs' move at x."""
        return self._jacobian(x)(self.to_params(other, weights))

    @jax.jit
    def to_params(self, x: Array, weights: Array) -> Params:
        """J(x)^T weights: the parameters' move that dual weights stand for."""
        return self._jacobian(x).transpose()(weights)

    def gram(self, x: Array, *, form: Literal["dense", "matrix-free"] | None = None) -> Gram:
        """K(x, x) in the form that costs less for one removal, by `flops`, unless told.

        One dense matrix serves any number of removals and fits: whoever wants many asks for it.

        Args:
            x: The training set's inputs, `[n, ...]`.
            form: "dense" or "matrix-free".

        Raises:
            ValueError: An unknown form.
        """
        if form not in ("dense", "matrix-free", None):
            raise ValueError(f"`form` must be 'dense', 'matrix-free' or None, got {form!r}.")
        costs = self.flops(x)
        cheapest = min(costs, key=costs.__getitem__)
        return Dense(self._matrix(x)) if (form or cheapest) == "dense" else MatrixFree(self, x)

    def flops(self, x: Array, *, num_steps: int = 100) -> dict[str, float]:
        """Floating-point operations of one removal from n examples, by the form of the matrix.

            matrix-free: num_steps products of 12 n P, with P parameters
            dense:       num_steps products of 2 (n C)^2, and n C / 3 of the others to build it

        The steps are those of conjugate gradients; 20 to 300 are common.
        """
        size = math.prod(jax.eval_shape(self.apply_fn, self.params, x).shape)
        product = 12.0 * x.shape[0] * sum(leaf.size for leaf in jax.tree.leaves(self.params))
        dense = num_steps * 2.0 * size**2 + size / 3 * product
        return {"matrix-free": num_steps * product, "dense": dense}

    @jax.jit
    def _matrix(self, x):
        """The dense kernel matrix, built from blocks of Jacobian rows of bounded memory."""
        push = linearized(self._jacobian(x))
        rows = jax.jacrev(lambda params, one: self.apply_fn(params, one[None])[0])
        like = jax.eval_shape(lambda: rows(self.params, x[0]))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
        block = max(1, min(x.shape[0], BLOCK_BYTES // size))
        return jax.lax.map(lambda one: jax.vmap(push)(rows(self.params, one)), x, batch_size=block)

    def _jacobian(self, x):
        return Jacobian(self.apply_fn, self.params, x, self.batch_size)


@pytree
class ReLUKernel:
    """Tangent kernel of an infinitely wide, fully connected ReLU network, the same for each output.

        S_0 = s_w^2 <x, x'>/d + s_b^2,                            T_0 = S_0
        S_l = s_w^2 r (sin t + (pi - t) cos t) / (2 pi) + s_b^2
        T_l = S_l + s_w^2 T_{l-1} (pi - t) / (2 pi)

    with r = sqrt(S(x,x) S(x',x')) and r cos t = S(x,x') of the layer below. The network's weights
    are s_w/sqrt(fan-in) and its biases s_b times standard normals; its mean output is 0.

    Attributes:
        depth: Hidden layers.
        weight_std: s_w.
        bias_std: s_b.

    Raises:
        ValueError: `depth` below one.

    Source: Cho and Saul (2009), eq. 4 and 6; Jacot et al. (arXiv 1806.07572), theorem 1.
    """

    depth: int = static(default=1)
    weight_std: float = math.sqrt(2)
    bias_std: float = 0.0

    def __post_init__(self):
        check_count("depth", self.depth)

    @jax.jit
    def __call__(self, x: Array, other: Array) -> Array:
        """T(x, other), `[n, m]`, of inputs `[n, ...]` and `[m, ...]`."""
        x, other = x.reshape(len(x), -1), other.reshape(len(other), -1)
        scale, shift = self.weight_std**2, self.bias_std**2

        def first(products):
            return scale * products / x.shape[1] + shift

        size, other_size = first(jnp.sum(x**2, 1)), first(jnp.sum(other**2, 1))
        tangent = covariance = first(jnp.matmul(x, other.T, precision="highest"))
        for _ in range(self.depth):
            radius = jnp.sqrt(size[:, None] * other_size)
            cos = jnp.clip(covariance / jnp.where(radius > 0, radius, 1), -1, 1)
            # Near 1 the rounding of the cosine would turn an angle of 0 into one of sqrt(eps).
            same = 1 - cos < 8 * jnp.finfo(x.dtype).eps
            angle = jnp.where(same, 0, jnp.arccos(jnp.where(same, 0, cos)))
            sin, rest = jnp.sin(angle), (jnp.pi - angle) / (2 * jnp.pi)
            covariance = scale * radius * (sin / (2 * jnp.pi) + rest * jnp.cos(angle)) + shift
            tangent = covariance + scale * rest * tangent
            size, other_size = scale * size / 2 + shift, scale * other_size / 2 + shift
        return tangent

    @jax.jit
    def product(self, x: Array, other: Array, weights: Array) -> Array:
        """K(x, other) weights, `[n, C]`, from weights `[m, C]`: the outputs' move at x."""
        return Dense(self(x, other))(weights)

    def gram(self, x: Array) -> Dense:
        """K(x, x), one `[n, n]` matrix for all outputs."""
        return Dense(self(x, x))
