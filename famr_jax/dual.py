"""Influence in function space: removal by the kernel of a linear or linearised model.

A model linear in its parameters, f = f0 + J (params - centre), that minimises

    (1/n) sum_i l(f_i, y_i) + l2/2 |params - centre|^2

has params = centre + J^T a with one *dual weight* a_ic = -(1/(n l2)) dl_i/df_ic for each output. So
all of it can be said with the kernel K = J J^T: removal, the change of outputs, and, where there
are parameters, the way back to them. An infinitely wide network has the kernel alone.

Every function of a training set takes its `Gram` matrix, kept in memory or not; see `gram`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax import losses
from famr_jax.curvature import NTK, Identity, Jacobian, Solution, linearized, solve
from famr_jax.curvature.algebra import operator, precise
from famr_jax.curvature.solve import CONVERGED, INDEFINITE, STALLED
from famr_jax.types import ApplyFn, Params, check_count, check_number, pytree, static

BLOCK_BYTES = 2**28
"""Memory for the Jacobian's rows while a kernel matrix is built, block by block."""


@pytree
class Linearized:
    """The linearised model, an `ApplyFn`; built by `linearize_model`."""

    apply_fn: ApplyFn = static()
    centre: Params

    # Compared by identity, so that it may be a static function; its arrays enter jit as arguments
    # where it is one itself.
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __call__(self, params: Params, x: Array) -> Array:
        along = jax.tree.map(jnp.subtract, params, self.centre)
        outputs, change = jax.jvp(lambda p: self.apply_fn(p, x), (self.centre,), (along,))
        return outputs + change


def linearize_model(apply_fn: ApplyFn, params: Params) -> Linearized:
    """The model linear in its parameters that touches `apply_fn` at `params`.

        f_lin(new, x) = f(params, x) + J(params, x) (new - params)
    """
    return Linearized(apply_fn, params)


@pytree
class TangentKernel:
    """Tangent kernel of a finite network, K(x, x') = J(x) J(x')^T, J at `params`.

    Attributes:
        apply_fn: The model, linear or to be linearised.
        params: Where; of a linear model any.
        batch_size: Micro-batch of the products; None for all at once.
    """

    apply_fn: ApplyFn = static()
    params: Params
    batch_size: int | None = static(None)

    @jax.jit
    def product(self, x: Array, other: Array, weights: Array) -> Array:
        """K(x, other) weights, `[n, C]`, from weights `[m, C]`."""
        return self._jacobian(x)(self.to_params(other, weights))

    @jax.jit
    def to_params(self, x: Array, weights: Array) -> Params:
        """J(x)^T weights: the move of the parameters that dual weights stand for."""
        return self._jacobian(x).transpose()(weights)

    def operator(self, x: Array) -> NTK:
        """K(x, x) as products, 2 passes over n examples each."""
        return NTK(self.apply_fn, self.params, x, self.batch_size)

    @jax.jit
    def matrix(self, x: Array) -> Array:
        """K(x, x), `[n, C, n, C]`, from blocks of Jacobian rows of bounded memory."""
        push = linearized(self._jacobian(x))
        rows = jax.jacrev(lambda params, one: self.apply_fn(params, one[None])[0])
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.params))
        block = max(1, min(x.shape[0], BLOCK_BYTES // (self.num_outputs(x) * size)))
        return jax.lax.map(lambda one: jax.vmap(push)(rows(self.params, one)), x, batch_size=block)

    def num_outputs(self, x: Array) -> int:
        """C."""
        return jax.eval_shape(self.apply_fn, self.params, x).shape[-1]

    def flops(self, x: Array) -> float:
        """Of one product with K(x, x): two passes forward and two backward."""
        return 12.0 * x.shape[0] * sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def _jacobian(self, x):
        return Jacobian(self.apply_fn, self.params, x, self.batch_size)


@operator
class SharedKernel:
    """K (x) I_C: one `[n, n]` kernel for each of C outputs."""

    matrix: Array

    def __call__(self, weights):
        return self.matrix @ weights


@pytree
class ReLUKernel:
    """Tangent kernel of an infinitely wide, fully connected ReLU network, the same for each output.

        S_0 = s_w^2 <x, x'>/d + s_b^2,                            T_0 = S_0
        S_l = s_w^2 r (sin t + (pi - t) cos t)/(2 pi) + s_b^2,    T_l = S_l + s_w^2 T (pi - t)/(2 pi)

    with r = sqrt(S(x,x) S(x',x')) and r cos t = S(x,x') of the layer below. The network's weights
    are s_w/sqrt(fan-in) and its biases s_b times standard normals; its mean output is 0.

    Attributes:
        num_classes: C.
        depth: Hidden layers.
        weight_std: s_w.
        bias_std: s_b.

    Source: Cho and Saul (2009), eq. 4 and 6; Jacot et al. (arXiv 1806.07572), theorem 1.
    """

    num_classes: int = static()
    depth: int = static(1)
    weight_std: float = math.sqrt(2)
    bias_std: float = 0.0

    @jax.jit
    def __call__(self, x: Array, other: Array) -> Array:
        """T(x, other), `[n, m]`, of inputs `[n, ...]` and `[m, ...]`."""
        x, other = x.reshape(len(x), -1), other.reshape(len(other), -1)
        scale, shift = self.weight_std**2, self.bias_std**2
        first = lambda products: scale * products / x.shape[1] + shift  # noqa: E731
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
        """K(x, other) weights, `[n, C]`, from weights `[m, C]`."""
        return SharedKernel(self(x, other))(weights)

    def operator(self, x: Array) -> SharedKernel:
        """K(x, x) as products with its `[n, n]` matrix."""
        return SharedKernel(self(x, x))

    @jax.jit
    def matrix(self, x: Array) -> Array:
        """K(x, x), `[n, C, n, C]`."""
        return jnp.einsum("nm,cd->ncmd", self(x, x), jnp.eye(self.num_classes, dtype=x.dtype))

    def num_outputs(self, x: Array) -> int:
        """C."""
        del x
        return self.num_classes

    def flops(self, x: Array) -> float:
        """Of one product with K(x, x)."""
        return 2.0 * x.shape[0] ** 2 * self.num_classes


Kernel = TangentKernel | ReLUKernel


@operator
class Gram:
    """The kernel of a training set as an operator on dual weights `[n, C]`; built by `gram`.

    Attributes:
        kernel: K.
        x: The n inputs.
        matrix: K(x, x), `[n, C, n, C]`, in the dense form; None in the matrix-free one.
    """

    kernel: Kernel
    x: Array
    matrix: Array | None = None

    def __call__(self, weights):
        return self.linearized()(weights)

    def linearized(self):
        if self.matrix is None:
            return linearized(self.kernel.operator(self.x))
        return lambda weights: jnp.tensordot(self.matrix, weights, 2)

    def among(self, rows: Array) -> "Gram":
        """That of some of the inputs."""
        matrix = self.matrix if self.matrix is None else self.matrix[rows][:, :, rows]
        return Gram(self.kernel, self.x[rows], matrix)


def gram(
    kernel: Kernel, x: Array, *, form: Literal["dense", "matrix-free"] | None = None
) -> Gram:
    """The kernel of a training set, in the form that costs less for one removal unless told.

    Dense costs its matrix once and a Cholesky factor for each removal; matrix-free costs a product
    for each step of conjugate gradients. One dense matrix serves any number of removals.

    Args:
        kernel: K.
        x: Inputs, `[n, ...]`.
        form: "dense" or "matrix-free"; None for the cheaper by `flops`.

    Raises:
        ValueError: An unknown form.
    """
    if form not in ("dense", "matrix-free", None):
        raise ValueError(f"`form` must be 'dense', 'matrix-free' or None, got {form!r}.")
    costs = flops(kernel, x)
    form = form or min(costs, key=costs.get)
    return Gram(kernel, x, kernel.matrix(x) if form == "dense" else None)


def flops(kernel: Kernel, x: Array) -> dict[str, float]:
    """Floating-point operations of one removal in either form, as `gram` weighs them.

        dense:       (n C)/3 products' worth to build, and (n C)^3 / 3
        matrix-free: min(n C, 100) products
    """
    size, product = x.shape[0] * kernel.num_outputs(x), kernel.flops(x)
    dense = size * product / 3 + size**3 / 3
    return {"dense": dense, "matrix-free": min(size, 100) * product}


class Loss(NamedTuple):
    """A convex loss of the outputs, with a root of its curvature.

    Attributes:
        value: `(outputs, labels) -> [n]`.
        root: `(outputs, v) -> S v`, linear in v, S S^T = d^2 value / d outputs^2 for each example.
    """

    value: Callable[[Array, Array], Array]
    root: Callable[[Array, Array], Array]


def squared_error(outputs: Array, labels: Array) -> Array:
    """Half the squared distance of each output to its one-hot label, `[n]`."""
    return jnp.sum((outputs - jax.nn.one_hot(labels, outputs.shape[-1])) ** 2, axis=-1) / 2


def _softmax_root(outputs: Array, v: Array) -> Array:
    """S v with S = diag(sqrt p) - p sqrt(p)^T, so that S S^T = diag(p) - p p^T."""
    p = jax.nn.softmax(outputs)
    root = jnp.sqrt(p)
    return root * v - p * jnp.sum(root * v, axis=-1, keepdims=True)


CROSS_ENTROPY = Loss(losses.cross_entropy, _softmax_root)
SQUARED = Loss(squared_error, lambda outputs, v: v)


def dual_weights(loss: Loss, outputs: Array, labels: Array, *, l2: float | Array) -> Array:
    """The dual weights of a minimiser from its outputs, -(1/(n l2)) dl_i/df_i, `[n, C]`.

    They represent it: its parameters are centre + J^T weights, its outputs f0 + K weights.
    """
    check_number("l2", l2, above=0)
    return -_slopes(loss, outputs, labels) / (len(labels) * l2)


class Fit(NamedTuple):
    """A minimiser in function space, and how good it is.

    Attributes:
        weights: Dual weights a, `[n, C]`.
        outputs: f0 + K a, `[n, C]`.
        residual: |dl/df / n + l2 a|, the gradient in function space, over its value at a = 0.
        num_steps: Newton steps taken.
        converged: Whether `residual` fell to `tol`.
    """

    weights: Array
    outputs: Array
    residual: Array
    num_steps: Array
    converged: Array


@precise
def fit(
    loss: Loss,
    gram: Gram,
    labels: Array,
    *,
    l2: float | Array,
    offset: Array | None = None,
    tol: float = 1e-5,
    max_steps: int = 50,
) -> Fit:
    """Minimises (1/n) sum_i l(f_i, y_i) + l2/2 a^T K a over f = f0 + K a, by Newton's method.

    Args:
        loss: `CROSS_ENTROPY`, `SQUARED` or another.
        gram: K of the training set.
        labels: Class indices, `[n]`.
        l2: Ridge of the training objective.
        offset: f0, the outputs at the centre, `[n, C]`; 0 if not given, as in infinite width.
        tol: Wanted decrease of the gradient in function space.
        max_steps: Newton steps after which to give up.

    Raises:
        ValueError: A number out of range.
    """
    check_number("l2", l2, above=0)
    check_number("tol", tol, above=0)
    check_count("max_steps", max_steps)
    if offset is None:
        shape = (len(labels), gram.kernel.num_outputs(gram.x))
        offset = jnp.zeros(shape, jnp.result_type(gram.x, float))
    return _fit(loss, gram, labels, l2, offset, tol, max_steps)


@partial(jax.jit, static_argnames="loss")
def _fit(loss, gram, labels, l2, offset, tol, max_steps):
    n, product = len(labels), linearized(gram)

    def gradient(weights, image):
        return _slopes(loss, offset + image, labels) / n + l2 * weights

    def objective(weights, image):
        return jnp.mean(loss.value(offset + image, labels)) + l2 / 2 * jnp.vdot(weights, image)

    def body(carry):
        weights, image, gradient_now, num_steps, _ = carry
        # Newton's steps are exact enough when each gains half of the wanted digits.
        every, inner = slice(None), jnp.sqrt(tol)
        found = _move(loss, gram, -gradient_now, offset + image, every, n, l2, inner, 1000)
        move = found.value
        along, now = product(move), objective(weights, image)
        worse = lambda t: (objective(weights + t * move, image + t * along) > now) & (t > 1e-6)  # noqa: E731
        t = jax.lax.while_loop(worse, lambda t: t / 2, jnp.ones((), offset.dtype))
        weights, image = weights + t * move, image + t * along
        return weights, image, gradient(weights, image), num_steps + 1, t

    def going_on(carry):
        _, _, gradient_now, num_steps, t = carry
        return (jnp.linalg.norm(gradient_now) > target) & (num_steps < max_steps) & (t > 1e-6)

    zeros = jnp.zeros_like(offset)
    start = gradient(zeros, zeros)
    target = tol * jnp.linalg.norm(start)
    carry = (zeros, zeros, start, 0, jnp.ones((), offset.dtype))
    weights, image, end, num_steps, _ = jax.lax.while_loop(going_on, body, carry)
    norm, first = jnp.linalg.norm(end), jnp.linalg.norm(start)
    residual = norm / jnp.where(first > 0, first, 1)
    return Fit(weights, offset + image, residual, num_steps, norm <= target)


@precise
def remove(
    loss: Loss,
    gram: Gram,
    outputs: Array,
    labels: Array,
    forget: np.ndarray,
    *,
    l2: float | Array,
    normaliser: Literal["all", "retained"] = "all",
    tol: float = 1e-5,
    max_steps: int = 1000,
) -> Solution:
    """The change of the dual weights when examples are removed: one Newton step on the others.

        K and A = S S^T, the loss's curvature over N, on retained outputs; b the retained gradient
        (l2 I + S^T K S) v = S^T (K b),    u = S v,    change = (b - u) / l2

    so that removed weights become 0. It is exact for the squared loss. The move of parameters is
    J^T change, that of outputs K change, and both equal those of the primal H^-1 g.

    Args:
        loss: `CROSS_ENTROPY`, `SQUARED` or another.
        gram: K of the training set.
        outputs: Of the model that minimises the objective over the training set, `[n, C]`.
        labels: Class indices, `[n]`.
        forget: What to remove, a mask `[n]`.
        l2: Ridge of the training objective.
        normaliser: What the retained sum of losses is divided by: N = n for "all", the number of
            retained examples for "retained". With the same l2 these are two different models.
        tol: Wanted relative residual of v. The difference b - u can lose a factor of up to
            lambda_max / l2 where the removed examples resemble the retained ones.
        max_steps: Products with K after which to give up; matrix-free only.

    Returns:
        A solution whose value is the change, `[n, C]`; its residual is that of v.

    Raises:
        ValueError: A number out of range, an unknown normaliser, a mask of another length or one
            that is empty or everything.

    Source: Sun and Valaee (arXiv 2605.11239), eq. 8 and 13, in a symmetric form that multiplies by
        K once less.
    """
    check_number("l2", l2, above=0)
    check_number("tol", tol, above=0)
    check_count("max_steps", max_steps)
    if normaliser not in ("all", "retained"):
        raise ValueError(f"`normaliser` must be 'all' or 'retained', got {normaliser!r}.")
    forget = np.asarray(forget)
    if forget.dtype != bool or forget.shape != (len(labels),) or forget.all() or not forget.any():
        rule = f"a mask of {len(labels)} examples, some of them and not all"
        raise ValueError(
            f"`forget` must be {rule}, got {forget.sum()} of {forget.shape}, {forget.dtype}."
        )
    rows = np.flatnonzero(~forget)
    by = len(labels) if normaliser == "all" else len(rows)
    return _remove(loss, gram, outputs, labels, rows, by, l2, tol, max_steps)


@partial(jax.jit, static_argnames="loss")
def _remove(loss, gram, outputs, labels, rows, by, l2, tol, max_steps):
    slopes, n = _slopes(loss, outputs, labels), len(labels)
    # The new gradient with the removed weights still in it: l2 w = -slopes/n at the minimum.
    b = (slopes / n).at[rows].add(-slopes[rows] / by)
    return _move(loss, gram, b, outputs, rows, by, l2, tol, max_steps)


def _move(loss, gram, b, outputs, rows, by, l2, tol, max_steps):
    """One Newton step on the rows: the change of all dual weights along b, minus the gradient."""
    whitened = Whitened(loss, gram.among(rows), outputs[rows], by)
    target = whitened.root_transposed(gram(b)[rows])
    if gram.matrix is None:
        found = solve(whitened + l2 * Identity(), target, tol=tol, max_steps=max_steps)
    else:
        found = _cholesky(whitened, target, l2, tol)
    return found._replace(value=b.at[rows].add(-whitened.root(found.value)) / l2)


@operator
class Whitened:
    """v -> S^T K S v, the kernel seen through the curvature of the loss, A = S S^T / by."""

    loss: Loss = static()
    gram: Gram
    outputs: Array
    by: float

    def __call__(self, v):
        return self.linearized()(v)

    def linearized(self):
        product = linearized(self.gram)
        return lambda v: self.root_transposed(product(self.root(v)))

    def root(self, v):
        return self.loss.root(self.outputs, v) / jnp.sqrt(self.by)

    def root_transposed(self, v):
        return jax.linear_transpose(self.root, self.outputs)(v)[0]

    def matrix(self):
        """It as a matrix, `[n C, n C]`, from a dense Gram matrix."""
        each = jax.vmap(self.root_transposed)
        size = self.outputs.size
        half = each(self.gram.matrix.reshape(size, *self.outputs.shape)).reshape(size, size)
        return each(half.T.reshape(size, *self.outputs.shape)).reshape(size, size)


def _cholesky(whitened, target, l2, tol):
    """The solution by a Cholesky factor, judged like one of `curvature.solve`."""
    matrix = whitened.matrix() + l2 * jnp.eye(target.size, dtype=target.dtype)
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    flat = jax.scipy.linalg.cho_solve(factor, target.ravel())
    norm = jnp.linalg.norm(target)
    residual = jnp.linalg.norm(target.ravel() - matrix @ flat) / jnp.where(norm > 0, norm, 1)
    broken = ~jnp.all(jnp.isfinite(factor[0]))
    converged = residual <= tol
    reason = jnp.where(converged, CONVERGED, jnp.where(broken, INDEFINITE, STALLED))
    return Solution(flat.reshape(target.shape), residual, jnp.asarray(1), converged, broken, reason)


def loss_changes(loss: Loss, outputs: Array, labels: Array, changes: Array) -> Array:
    """Change of each example's loss to first order in the change of its outputs, `[n]`."""
    return jnp.sum(_slopes(loss, outputs, labels) * changes, axis=-1)


def _slopes(loss, outputs, labels):
    """dl_i/df_i, `[n, C]`."""
    return jax.grad(lambda outputs: jnp.sum(loss.value(outputs, labels)))(outputs)
