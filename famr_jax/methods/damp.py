"""DAMP: project what only the forgotten classes have out of the input of every layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from famr_jax.curvature.batches import sum_of
from famr_jax.types import ApplyFn, Batch, Params, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory, subtree

BATCH = 256
"""Micro-batch of the pass over both sets."""
SHRINKAGE = 1e-3
"""Of the mean variance, what is added to every direction's: a layer may be wider than the sets."""
NOTHING_OWN = 1e-4
"""Share of a prototype's norm below which what the retained ones leave of it is rounding."""

Path = tuple[str, ...]


class Moments(NamedTuple):
    """Sums over a set of what enters a layer: by class `[C, dim]`, their counts, and h h^T."""

    sums: Array
    counts: Array
    squares: Array

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
        return self.squares - self.counts.sum() * jnp.outer(self.mean, self.mean)


def layer_inputs(apply_fn: ApplyFn, params: Params, x: Array) -> dict[Path, Array]:
    """What enters each dense and convolutional layer, the mean over positions, `[n, dim]`.

    In the order of the forward pass, by the layer's path in the weights; at least float32.
    """
    found: dict[Path, Array] = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, (nn.Dense, nn.Conv)) and context.method_name == "__call__":
            h = args[0].reshape(len(x), -1, args[0].shape[-1])
            found[context.module.path] = h.mean(1, dtype=jnp.promote_types(h.dtype, jnp.float32))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        apply_fn(params, x)
    return found


def moments(apply_fn: ApplyFn, params: Params, data: Batch) -> dict[Path, Moments]:
    """Those of every layer over a set."""
    num_classes = jax.eval_shape(apply_fn, params, data.x[:1]).shape[-1]

    def product(batch, weight):
        inputs = layer_inputs(apply_fn, params, batch.x)
        dtype = next(iter(inputs.values())).dtype if inputs else weight.dtype
        own = jax.nn.one_hot(batch.labels, num_classes, dtype=dtype)
        own = own * weight.astype(dtype)[:, None]
        return {
            path: Moments(own.T @ h, own.sum(0), (own.sum(1)[:, None] * h).T @ h)
            for path, h in inputs.items()
        }

    return sum_of(product, data, BATCH)


def separability(gone: Moments, kept: Moments) -> Array:
    """How well a linear probe tells both sets in a layer, 0 to 1: 2 Phi(d / 2) - 1.

    That is twice a linear discriminant's balanced accuracy, less one, of two normal distributions
    of one covariance S, d^2 = (mean_F - mean_R)^T S^-1 (mean_F - mean_R).
    """
    n = gone.counts.sum() + kept.counts.sum()
    within = (gone.scatter + kept.scatter) / n
    dim = len(within)
    ridge = SHRINKAGE * jnp.trace(within) / dim + jnp.finfo(within.dtype).tiny
    apart = gone.mean - kept.mean
    solved = jnp.linalg.solve(within + ridge * jnp.eye(dim, dtype=within.dtype), apart)
    return jax.scipy.special.erf(jnp.sqrt(jnp.maximum(apart @ solved, 0) / 8))


def own_directions(gone: Moments, kept: Moments) -> Array:
    """The projector on what retained prototypes leave of the forgotten ones, `[dim, dim]`."""
    forget, retain = gone.prototypes, kept.prototypes
    residual = forget - forget @ jnp.linalg.pinv(retain) @ retain
    sizes = jnp.linalg.norm(forget, axis=1, keepdims=True)
    far = jnp.linalg.norm(residual, axis=1, keepdims=True) > NOTHING_OWN * sizes
    residual = jnp.where(far, residual, 0)
    return jnp.linalg.pinv(residual) @ residual


@pytree
class Projecting:
    """The edit of `damp`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    strength: float = 1.0

    def __call__(self, params, forget, retain, key):
        del key
        gone, kept = (
            moments(self.apply_fn, params, in_memory(name, data))
            for name, data in (("forget", forget), ("retain", retain))
        )
        if not gone:
            raise ValueError(
                "`apply_fn` must call flax.linen layers, dense or convolutional, got none."
            )
        edited, shares = params, []
        for depth, path in enumerate(gone, 1):
            share = separability(gone[path], kept[path])
            alpha = self.strength * share * depth / len(gone)
            edited = _projected(edited, path, alpha * own_directions(gone[path], kept[path]))
            shares.append(share)
        return edited, {"separability": jnp.mean(jnp.stack(shares))}


def _projected(params: Any, path: Path, projector: Array) -> Any:
    """The weights with `kernel - projector kernel` in one layer, over its input's channels."""
    kernel = subtree(params, (*path, "kernel"))
    if kernel.shape[-2] != len(projector):
        rule = f"must have the input's {len(projector)} channels, no groups"
        raise ValueError(f"`params` {'/'.join(path)} {rule}, got {list(kernel.shape)}.")
    changed = kernel - jnp.einsum("ij,...jk->...ik", projector.astype(kernel.dtype), kernel)

    def put(tree, names):
        if not names:
            return changed
        return {**tree, names[0]: put(tree[names[0]], names[1:])}

    return put(params, (*path, "kernel"))


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
        apply_fn: The model; no layer inside a scan.
        strength: 0 for no edit; at 1 the last layer of a separable class loses its direction whole.
        optimizer: Not used.

    Raises:
        ValueError: A negative strength; in `init` a model without such layers.

    Source: DAMP (arXiv 2604.15166), by accounts of it. The residual, the projection, statistics of
        the trained model alone, and an alpha that grows with depth and with a linear probe's
        separability are its; how these make alpha, and the probe (`separability`), are ours.
    """
    del optimizer
    check_number("strength", strength, least=0)
    return OneShot(Projecting(apply_fn, strength), epoch_over="retain")
