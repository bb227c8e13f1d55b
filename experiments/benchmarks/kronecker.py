"""Kronecker factors of a Gauss-Newton matrix as preconditioners of CG: K-FAC and EK-FAC.

    block of a dense layer ~ A (x) G,   A = mean a a^T,   G = mean g g^T,

a its input with a one behind it for the bias, g the gradient in its output at a label drawn from
the model: here the mean over all labels, weighed by p, not a draw. Where a layer sees several
tokens of an image, A is a mean over them and G a sum ("expand" of arXiv 2311.00636). EK-FAC keeps
the eigenvectors of both and takes the diagonal in that basis exactly, over whole images.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from famr_jax import anchors
from famr_jax.curvature.algebra import precise
from famr_jax.curvature.batches import mean_of
from famr_jax.types import ApplyFn, Batch, Params, pytree

BATCH = 25
"""Images whose gradients in a layer's weights, one a label, are in memory at a time."""


class Layer(NamedTuple):
    """A dense layer's eigenvectors, and the eigenvalues of its block in their basis.

    Attributes:
        left: Of A, as columns, `[in + 1, in + 1]`.
        right: Of G, as columns, `[out, out]`.
        values: Of the block, `[in + 1, out]`.
    """

    left: Array
    right: Array
    values: Array


@pytree
class Kronecker:
    """r -> (B + damping I)^-1 r, B block by block: symmetric positive definite if damping > 0.

    Attributes:
        layers: The blocks of the dense layers, by path.
        diagonal: The diagonal of B of what is in no dense layer, by path.
        damping: The solver's shift.
    """

    layers: dict[tuple, Layer]
    diagonal: dict[tuple, Array]
    damping: float

    def __call__(self, r: Params) -> Params:
        flat = flatten_dict(r)
        out = {path: flat[path] / (f + self.damping) for path, f in self.diagonal.items()}
        for path, (left, right, values) in self.layers.items():
            kernel, bias = (*path, "kernel"), (*path, "bias")
            block = jnp.concatenate([flat[kernel], flat[bias][None]])
            block = left @ ((left.T @ block @ right) / (values + self.damping)) @ right.T
            out |= {kernel: block[:-1], bias: block[-1]}
        return unflatten_dict({path: out[path] for path in flat})


def captured(apply_fn: ApplyFn, params: Params, x: Array) -> dict[tuple, tuple[Array, Array]]:
    """Inputs and output gradients of the dense layers of a Linen model, each called once, by path.

    The gradients are those in a zero that is added to the output. Their outer products, summed
    over the labels, give the Gauss-Newton matrix: label c's are sqrt(p_c) d log p_c.

    Returns:
        a, `[n, tokens, in + 1]`, and g, `[C, n, tokens, out]`.
    """
    inputs: dict[tuple, Array] = {}

    def logits(added):
        def through(following, args, kwargs, context):
            out = following(*args, **kwargs)
            if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
                return out
            path = context.module.path
            inputs[path] = args[0]
            return out + added[path] if added else out

        with nn.intercept_methods(through):
            return apply_fn(params, x)

    def outputs():
        logits({})
        kernels = {path: flatten_dict(params)[*path, "kernel"] for path in inputs}
        return {path: inputs[path] @ kernels[path] for path in inputs}

    zeros = {path: jnp.zeros(s.shape, s.dtype) for path, s in jax.eval_shape(outputs).items()}

    def with_inputs(added):
        z = logits(added)
        return z, dict(inputs)

    z, pull, seen = jax.vjp(with_inputs, zeros, has_aux=True)
    p = jax.nn.softmax(z)
    rows = jnp.eye(z.shape[-1], dtype=z.dtype)[:, None] - p
    [gradients] = jax.vmap(pull)(jnp.sqrt(p.T)[..., None] * rows)

    def of_images(a, g):
        ones = jnp.ones((*a.shape[:-1], 1), a.dtype)
        a = jnp.concatenate([a, ones], axis=-1).reshape(len(x), -1, a.shape[-1] + 1)
        return a, g.reshape(len(z.T), len(x), -1, g.shape[-1])

    return {path: of_images(seen[path], gradients[path]) for path in seen}


@partial(jax.jit, static_argnames="apply_fn")
@precise
def factors(apply_fn: ApplyFn, params: Params, data: Batch) -> dict[tuple, tuple[Array, Array]]:
    """A and G of every dense layer, by path."""

    def moments(batch, weight):
        def both(a, g):
            w = weight.astype(a.dtype)
            left = jnp.einsum("n,nti,ntj->ij", w, a, a) / a.shape[1]
            return left, jnp.einsum("n,cnti,cntj->ij", w, g, g)

        seen = captured(apply_fn, params, batch.x)
        return {path: both(a, g) for path, (a, g) in seen.items()}

    return mean_of(moments, data, BATCH)


@jax.jit
@precise
def kfac(found: dict[tuple, tuple[Array, Array]]) -> dict[tuple, Layer]:
    """The eigenvectors of A (x) G, and its eigenvalues: products of those of A and G."""

    def layer(left, right):
        (a, u), (g, v) = jnp.linalg.eigh(left), jnp.linalg.eigh(right)
        return Layer(u, v, jnp.maximum(a, 0)[:, None] * jnp.maximum(g, 0))

    return {path: layer(*both) for path, both in found.items()}


@partial(jax.jit, static_argnames="apply_fn")
@precise
def ekfac(
    apply_fn: ApplyFn, params: Params, data: Batch, layers: dict[tuple, Layer]
) -> dict[tuple, Layer]:
    """The same eigenvectors with the diagonal of the Gauss-Newton matrix itself in their basis.

    Source: George and others (arXiv 1806.03884), equation 7.
    """

    def squares(batch, weight):
        def one(path, a, g):
            left, right, _ = layers[path]
            turned = jnp.einsum("nti,cnto->cnio", a @ left, g @ right)
            return jnp.einsum("n,cnio->io", weight.astype(a.dtype), turned**2)

        seen = captured(apply_fn, params, batch.x)
        return {path: one(path, a, g) for path, (a, g) in seen.items()}

    values = mean_of(squares, data, BATCH)
    return {path: layers[path]._replace(values=values[path]) for path in layers}


def preconditioner(
    apply_fn: ApplyFn, params: Params, data: Batch, *, rescaled: bool
) -> tuple[int, Callable[[float], Kronecker]]:
    """K-FAC, or EK-FAC if `rescaled`: its cost, and what makes it at a damping.

    The cost is in passes backwards over the data, one for each label: one for the factors, one
    for the diagonal of what is in no dense layer, and one for rescaling. A product with the
    Gauss-Newton matrix has one such pass, and one forwards.
    """
    layers = kfac(factors(apply_fn, params, data))
    if rescaled:
        layers = ekfac(apply_fn, params, data, layers)
    flat = flatten_dict(params)
    others = {path: leaf for path, leaf in flat.items() if path[:-1] not in layers}
    diagonal = _rest(apply_fn, params, others, data) if others else {}
    passes = 1 + bool(others) + rescaled
    num_classes = jax.eval_shape(apply_fn, params, data.x[:1]).shape[-1]
    return passes * num_classes, partial(Kronecker, layers, diagonal)


@partial(jax.jit, static_argnames="apply_fn")
@precise
def _rest(apply_fn: ApplyFn, params: Params, others: dict[tuple, Array], data: Batch) -> Any:
    def moved(others, x):
        return apply_fn(unflatten_dict({**flatten_dict(params), **others}), x)

    return anchors.diagonal(moved, others, data).fisher
