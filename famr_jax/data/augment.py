"""Augmentations: pure `augment(key, x) -> x` on a batch of images, for use under jit."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.types import check_key


def crop_and_flip(key: Array, x: Array) -> Array:
    """Random crop from a reflected border, and a horizontal flip of every other image or so.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images, `[n, height, width, channels]`.
    """
    check_key(key)
    crop_key, flip_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
    return crop(crop_key, jnp.where(flip, x[:, :, ::-1], x))


def crop(key: Array, x: Array) -> Array:
    """Random crop from a reflected border of an eighth of each side; keeps left and right.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images, `[n, height, width, channels]`.
    """
    check_key(key)
    n, height, width, channels = x.shape
    down, across = max(1, height // 8), max(1, width // 8)
    padded = jnp.pad(x, ((0, 0), (down, down), (across, across), (0, 0)), mode="reflect")
    corners = jax.random.randint(key, (n, 2), 0, jnp.array([2 * down + 1, 2 * across + 1]))
    cut = partial(jax.lax.dynamic_slice, slice_sizes=(height, width, channels))
    return jax.vmap(lambda image, corner: cut(image, (corner[0], corner[1], 0)))(padded, corners)
