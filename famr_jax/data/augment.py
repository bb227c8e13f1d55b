"""Augmentations as pure functions `augment(key, x) -> x` on a batch of images, for use under jit."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def crop_and_flip(key: Array, x: Array) -> Array:
    """Random crop from a reflected border of an eighth of the image, and a horizontal flip.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images, `[n, height, width, channels]`.
    """
    crop_key, flip_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
    return crop(crop_key, jnp.where(flip, x[:, :, ::-1], x))


def crop(key: Array, x: Array) -> Array:
    """Random crop from a reflected border of an eighth of the image; keeps left and right."""
    n, height, width, channels = x.shape
    pad = max(1, height // 8)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    corners = jax.random.randint(key, (n, 2), 0, 2 * pad + 1)
    cut = partial(jax.lax.dynamic_slice, slice_sizes=(height, width, channels))
    return jax.vmap(lambda image, corner: cut(image, (corner[0], corner[1], 0)))(padded, corners)
