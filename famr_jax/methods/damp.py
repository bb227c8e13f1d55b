"""DAMP: project what only the forgotten classes have out of the input of every layer."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from famr_jax.curvature.algebra import precise
from famr_jax.curvature.batches import sum_of
from famr_jax.types import ApplyFn, Batch, Params, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory, subtree, with_subtree

BATCH = 256
"""Micro-batch of the pass over both sets."""
SHRINKAGE = 1e-3
"""Of the mean variance, what the probe adds to every direction's: some hardly vary."""
NOTHING_OWN = 1e-3
"""Share of a prototype's norm below which what the retained ones leave of it is rounding."""

Path = tuple[str, ...]


class Moments(NamedTuple):
    """Sums over a set of what enters a layer.

    Attributes:
        sums: By class, `[C, dim]`.
        counts: By class, `[C]`.
        squares: Of (h - center) (h - center)^T, `[dim, dim]`.
        center: Any point near the data, so that squares lose no digits, `[dim]`.
    """

    sums: Array
    counts: Array
    squares: Array
    center: Array

    @property
    def prototypes(self) -> Array:
        """The mean of each class, `[C, dim]`; zero for one that is not there."""
        return self.sums / jnp.maximum(self.counts, 1)[:, None]

    @property
    def mean(self) -> Array:
        return self.sums.sum(0) / self.counts.sum()

    @property
    def scatter(self) -> Array:
        """sum_i (h_i - mean) (h_i - mean)^T."""
        off = self.mean - self.center
        return self.squares - self.counts.sum() * jnp.outer(off, off)


def layer_inputs(apply_fn: ApplyFn, params: Params, x: Array) -> dict[Path, Array]:
    """What enters each dense and convolutional layer, the mean over positions, `[n, dim]`.

    In the order of the forward pass, by the layer's path in the weights; at least float32.

    Raises:
        ValueError: A layer that is called twice, or no such layer.
    """
    found: dict[Path, Array] = {}

    def note(call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, (nn.Dense, nn.Conv)) and context.method_name == "__call__":
            if layer.path in found:
                name = "/".join(layer.path)
                raise ValueError(f"`apply_fn` must call every layer once, got {name} again.")
            h = args[0].reshape(len(x), -1, args[0].shape[-1])
            found[layer.path] = h.mean(1, dtype=jnp.promote_types(h.dtype, jnp.float32))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        apply_fn(params, x)
    if not found:
        rule = "must call dense or convolutional layers of flax.linen, and not be jitted"
        raise ValueError(f"`apply_fn` {rule}, got none of them.")
    return found


def moments(
    apply_fn: ApplyFn, params: Params, data: Batch, center: Mapping[Path, Array]
) -> dict[Path, Moments]:
    """Those of every layer over a set, about the points of `center`."""
    num_classes = jax.eval_shape(apply_fn, params, data.x[:1]).shape[-1]

    def product(batch, weight):
        found = {}
        for path, h in layer_inputs(apply_fn, params, batch.x).items():
            own = jax.nn.one_hot(batch.labels, num_classes, dtype=h.dtype)
            own, far = own * weight.astype(h.dtype)[:, None], h - center[path]
            squares = (own.sum(1)[:, None] * far).T @ far
            found[path] = (own.T @ h, own.sum(0), squares)
        return found

    summed = sum_of(product, data, BATCH)
    found = {}
    for path, point in center.items():
        sums, counts, squares = summed[path]
        found[path] = Moments(sums, counts, squares, point)
    return found


def separability(gone: Moments, kept: Moments) -> Array:
    """How well a linear probe tells both sets in a layer, 0 to 1: 2 Phi(d / 2) - 1.

        w = delta / v,    d = (w . delta - noise) / sqrt(w^T S w)

    That is twice the balanced accuracy, less one, of a linear discriminant of independent features
    on two normal distributions of one covariance S of diagonal v, delta the difference of their
    means. The noise is what w . delta would be of one distribution, sum_j (1 / n_F + 1 / n_R).
    """
    sizes = gone.counts.sum(), kept.counts.sum()
    within = (gone.scatter + kept.scatter) / (sizes[0] + sizes[1])
    own = jnp.diagonal(within)
    variance = own + SHRINKAGE * own.mean() + jnp.finfo(own.dtype).tiny
    apart = gone.mean - kept.mean
    probe = apart / variance
    noise = (own / variance).sum() * (1 / sizes[0] + 1 / sizes[1])
    spread = jnp.sqrt(jnp.maximum(probe @ within @ probe, jnp.finfo(own.dtype).tiny))
    return jax.scipy.special.erf(jnp.maximum(probe @ apart - noise, 0) / spread / math.sqrt(8))


def own_directions(gone: Moments, kept: Moments) -> Array:
    """The projector on what retained prototypes leave of the forgotten ones, `[dim, dim]`."""
    forget = gone.prototypes
    shared = forget @ _span(kept.prototypes)
    residual = forget - shared
    sizes = jnp.linalg.norm(forget, axis=1, keepdims=True)
    far = jnp.linalg.norm(residual, axis=1, keepdims=True) > NOTHING_OWN * sizes
    return _span(jnp.where(far, residual, 0))


def _span(rows):
    """The projector on the span of some rows, those of rounding left out."""
    _, sizes, basis = jnp.linalg.svd(rows, full_matrices=False)
    least = max(rows.shape) * jnp.finfo(rows.dtype).eps * sizes[0]
    basis = jnp.where((sizes > least)[:, None], basis, 0)
    return basis.T @ basis


@pytree
class Projecting:
    """The edit of `damp`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    strength: float = 1.0

    @precise
    def __call__(self, params, forget, retain, key):
        del key
        forget, retain = in_memory("forget", forget), in_memory("retain", retain)
        # Its order is that of the forward pass; what comes out of a loop is sorted by name.
        seen = layer_inputs(self.apply_fn, params, forget.x[:BATCH])
        center = {path: h.mean(0) for path, h in seen.items()}
        gone, kept = (moments(self.apply_fn, params, data, center) for data in (forget, retain))
        edited, shares = params, []
        for depth, path in enumerate(center, 1):
            share = separability(gone[path], kept[path])
            alpha = self.strength * share * depth / len(center)
            edited = _projected(edited, path, alpha * own_directions(gone[path], kept[path]))
            shares.append(share)
        return edited, {"separability": jnp.mean(jnp.stack(shares))}


def _projected(params: Params, path: Path, projector: Array) -> Params:
    """The weights with `kernel - projector kernel` in one layer, over its input's channels."""
    kernel = subtree(params, (*path, "kernel"))
    if kernel.shape[-2] != len(projector):
        rule = f"must have the input's {len(projector)} channels, no groups"
        raise ValueError(f"`params` {'/'.join(path)} {rule}, got {list(kernel.shape)}.")
    changed = kernel - jnp.einsum("ij,...jk->...ik", projector, kernel)
    return with_subtree(params, (*path, "kernel"), changed.astype(kernel.dtype))


def damp(
    apply_fn: ApplyFn,
    *,
    strength: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Makes every layer blind, once, to what only the forgotten classes send into it: no descent.

        W_l <- W_l (I - alpha_l P_l),    alpha_l = strength s_l l / L
        P_l projects on the span of    mu_f - R R^+ mu_f,    R = [mu_r of each retained class]

    with mu the class means of what enters layer l of L, averaged over positions. What it sends on
    of a retained class's mean does not change; biases stay. For classes: of random samples hardly
    more than noise is left of mu_f, and that is projected out.
    Dense and convolutional layers of flax.linen are edited, others stay as they are.

    Args:
        apply_fn: The model, not jitted, no layer inside a scan, none called twice.
        strength: 0 for no edit; at 1 the last layer of a separable class loses its direction whole.
        optimizer: Not used.

    Raises:
        ValueError: A negative strength; in `init` a model without such layers, one that is called
            twice, or a convolution in groups.

    Source: DAMP (arXiv 2604.15166), by accounts of it. The residual, the projection, statistics of
        the trained model alone, and an alpha that grows with depth and with a linear probe's
        separability are its; how these make alpha, and the probe (`separability`), are ours.
    """
    del optimizer
    check_number("strength", strength, least=0)
    return OneShot(Projecting(apply_fn, strength), epoch_over="retain")
