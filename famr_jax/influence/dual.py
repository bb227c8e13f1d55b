"""Influence in function space: fits and removals by the kernel of a linear or linearised model.

A model linear in its parameters, f = f0 + J (params - centre), that minimises

    (1/n) sum_i l(f_i, y_i) + l2/2 |params - centre|^2

has params = centre + J^T a with one *dual weight* a_ic = -(1/(n l2)) dl_i/df_ic for each output. So
all of it can be said with the kernel K = J J^T: removal, the change of outputs, and, where there
are parameters, the way back to them. An infinitely wide network has the kernel alone.

    kernel = TangentKernel(apply_fn, centre)          # or ReLUKernel(depth)
    gram = kernel.gram(x)                             # dense or matrix-free, whichever costs less
    found = remove(CROSS_ENTROPY, gram, outputs, labels, forget, l2=1e-2)
    found.converged, found.residual, found.why
    kernel.product(query, x, found.value)             # change of outputs
    kernel.to_params(x, found.value)                  # change of parameters
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax import losses
from famr_jax.curvature import Identity, Solution, linearized, solve
from famr_jax.curvature.algebra import operator, precise
from famr_jax.curvature.batches import one_each
from famr_jax.influence.kernels import Gram
from famr_jax.types import check_count, check_kept, check_labels, check_number, static

SHORTEST = 1e-6
"""Part of a Newton step below which a fit gives up."""


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


def _identity(outputs: Array, v: Array) -> Array:
    del outputs
    return v


CROSS_ENTROPY = Loss(losses.cross_entropy, _softmax_root)
SQUARED = Loss(squared_error, _identity)


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
    offset: Array,
    *,
    l2: float | Array,
    tol: float = 1e-5,
    max_steps: int = 50,
) -> Fit:
    """Minimises (1/n) sum_i l(f_i, y_i) + l2/2 a^T K a over f = f0 + K a, by Newton's method.

    Args:
        loss: `CROSS_ENTROPY`, `SQUARED` or another.
        gram: K of the training set.
        labels: Class indices, `[n]`.
        offset: f0, the outputs at the centre, `[n, C]`; zeros in infinite width.
        l2: Ridge of the training objective.
        tol: Wanted decrease of the gradient in function space.
        max_steps: Newton steps after which to give up.

    Raises:
        ValueError: A number or label out of range, or shapes that do not agree.
    """
    _check(l2, tol, max_steps)
    _check_labels(labels, offset)
    return _fit(loss, gram, labels, offset, l2, tol, max_steps)


@partial(jax.jit, static_argnames="loss")
def _fit(loss, gram, labels, offset, l2, tol, max_steps):
    n, product = len(labels), linearized(gram)

    def gradient(weights, image):
        return _slopes(loss, offset + image, labels) / n + l2 * weights

    def objective(weights, image):
        return jnp.mean(loss.value(offset + image, labels)) + l2 / 2 * jnp.vdot(weights, image)

    def body(carry):
        weights, image, slope, num_steps, _ = carry
        # Each step solves for half of the wanted digits: the next one makes good the rest.
        everything, enough = slice(None), jnp.sqrt(tol)
        found = _move(loss, gram, -slope, offset + image, everything, n, l2, enough, 1000)
        move = found.value
        along, now = product(move), objective(weights, image)
        least = now + 8 * jnp.finfo(now.dtype).eps * jnp.abs(now)

        def too_long(t):
            value = objective(weights + t * move, image + t * along)
            return (value > least) & (t > SHORTEST)

        t = jax.lax.while_loop(too_long, lambda t: t / 2, jnp.ones((), offset.dtype))
        weights, image = weights + t * move, image + t * along
        return weights, image, gradient(weights, image), num_steps + 1, t

    def going_on(carry):
        _, _, slope, num_steps, t = carry
        return (jnp.linalg.norm(slope) > target) & (num_steps < max_steps) & (t > SHORTEST)

    zeros = jnp.zeros_like(offset)
    start = gradient(zeros, zeros)
    target = tol * jnp.linalg.norm(start)
    carry = (zeros, zeros, start, jnp.asarray(0), jnp.ones((), offset.dtype))
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
    normaliser: Literal["n", "n-m"] = "n",
    tol: float = 1e-5,
    max_steps: int = 1000,
) -> Solution:
    """The change of all dual weights when examples are removed: a Newton step on the others.

        (l2 I + S^T K S) v = S^T K b,    change = (b - S v) / l2

    with S S^T the loss's curvature over N on retained outputs and b minus the retained gradient.
    Removed weights become 0. J^T change is the primal H^-1 g; for the squared loss, retraining.

    Args:
        loss: `CROSS_ENTROPY`, `SQUARED` or another.
        gram: K of the training set.
        outputs: What the model that minimises the objective gives on the training set, `[n, C]`.
        labels: Class indices, `[n]`.
        forget: What to remove, a mask `[n]`.
        l2: Ridge of the training objective.
        normaliser: N, which divides the retained losses: "n", as before, or "n-m", the number of
            them. At one l2 these are two different models.
        tol: Wanted relative residual of v; the difference b - S v may amplify it, by at most
            lambda_max / l2.
        max_steps: Products with K after which to give up.

    Returns:
        A solution whose value is the change, `[n, C]`, and whose residual is that of v.

    Raises:
        ValueError: A number or label out of range, shapes that do not agree, an unknown
            normaliser, or a mask that is none.

    Source: Sun and Valaee (arXiv 2605.11239), eq. 13, made symmetric, with one K less.
    """
    _check(l2, tol, max_steps)
    _check_labels(labels, outputs)
    if normaliser not in ("n", "n-m"):
        raise ValueError(f"`normaliser` must be 'n' or 'n-m', got {normaliser!r}.")
    forget = np.asarray(forget)
    if forget.dtype != bool or forget.shape != (len(labels),) or forget.all() or not forget.any():
        rule = f"a mask of {len(labels)} examples, some of them and not all"
        raise ValueError(
            f"`forget` must be {rule}, got {forget.sum()} of {forget.shape}, {forget.dtype}."
        )
    rows = np.flatnonzero(~forget)
    by = len(labels) if normaliser == "n" else len(rows)
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
    found = solve(whitened + l2 * Identity(), target, tol=tol, max_steps=max_steps)
    return found._replace(value=b.at[rows].add(-whitened.root(found.value)) / l2)


@operator
class Whitened:
    """v -> S^T K S v, the kernel seen through the curvature of the loss, A = S S^T / by."""

    loss: Loss = static()
    gram: Gram
    outputs: Array
    by: float

    def __call__(self, v: Array) -> Array:
        return self.linearized()(v)

    def linearized(self) -> Callable[[Array], Array]:
        product = linearized(self.gram)
        return lambda v: self.root_transposed(product(self.root(v)))

    def root(self, v: Array) -> Array:
        return self.loss.root(self.outputs, v) / jnp.sqrt(self.by)

    def root_transposed(self, v: Array) -> Array:
        return jax.linear_transpose(self.root, self.outputs)(v)[0]


def loss_changes(loss: Loss, outputs: Array, labels: Array, changes: Array) -> Array:
    """Change of each example's loss to first order in the change of its outputs, `[n]`."""
    return jnp.sum(_slopes(loss, outputs, labels) * changes, axis=-1)


def _check(l2, tol, max_steps):
    check_number("l2", l2, above=0)
    check_number("tol", tol, above=0)
    check_count("max_steps", max_steps)


def _check_labels(labels, outputs):
    # Neither loss would say so: out of range, its target is no class at all.
    check_kept("outputs", outputs)
    classes = outputs.shape[-1]
    if outputs.shape != (*np.shape(labels), classes):
        shapes = f"{outputs.shape} and {np.shape(labels)}"
        raise ValueError(f"outputs and `labels` must be [n, C] and [n], got {shapes}.")
    check_labels(labels, classes)


def _slopes(loss, outputs, labels):
    """dl_i/df_i, `[n, C]`."""
    check_labels(labels, outputs.shape[-1])
    return jax.grad(lambda outputs: jnp.sum(one_each(loss.value(outputs, labels), labels)))(outputs)
