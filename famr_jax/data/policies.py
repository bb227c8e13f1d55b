"""Automatic augmentation: TrivialAugment Wide, RandAugment, AugMix, and random erasing.

Each is a pure `augment(key, x) -> x` on images `[n, height, width, channels]` in [-1, 1] with 1 or
3 channels, for use under jit; operations, ranges and defaults are torchvision's, and every image
has its own draws. Images are rounded to the 256 grey levels first, as torchvision's are stored.

On a CPU the images are taken one after another, and each pays for its own operation alone. On an
accelerator all are taken at once, and under `vmap` a `lax.switch` is a select: each pays for every
operation of the list. `python -m experiments.benchmarks.augment` times both.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax.data import operations as ops
from famr_jax.data.crops import ATTEMPTS
from famr_jax.data.stream import scaled
from famr_jax.types import check_key

Space = tuple[tuple[Callable, float, float, bool], ...]
"""Operations, each with its magnitude in the first and last bin, and whether the sign is drawn."""

BLACK = -1.0


def _space(*, shear, across, down, degrees, enhance, bits) -> Space:
    """The operations that the three policies share, in torchvision's order."""
    return (
        (ops.identity, 0, 0, False),
        (ops.shear_x, 0, shear, True),
        (ops.shear_y, 0, shear, True),
        (ops.translate_x, 0, across, True),
        (ops.translate_y, 0, down, True),
        (ops.rotate, 0, degrees, True),
        (ops.brightness, 0, enhance, True),
        (ops.colour, 0, enhance, True),
        (ops.contrast, 0, enhance, True),
        (ops.sharpness, 0, enhance, True),
        (ops.posterize, *bits, False),
        (ops.solarize, 255, 0, False),
        (ops.autocontrast, 0, 0, False),
        (ops.equalize, 0, 0, False),
    )


def trivial_space() -> Space:
    """The operations of TrivialAugment Wide, in 31 bins; it moves by 32 pixels at any size."""
    return _space(shear=0.99, across=32, down=32, degrees=135, enhance=0.99, bits=(8, 2))


def rand_space(height: int, width: int) -> Space:
    """The operations of RandAugment, in 31 bins, of images of this size in pixels."""
    across, down = 150 / 331 * width, 150 / 331 * height
    return _space(shear=0.3, across=across, down=down, degrees=30, enhance=0.9, bits=(8, 4))


def augmix_space(height: int, width: int) -> Space:
    """The operations of AugMix, in 10 bins; the identity, its first, ends a chain and is not drawn.

    Pixels are moved with bilinear interpolation, as torchvision's AugMix does by default.

    Args:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    across, down = width / 3, height / 3
    space = _space(shear=0.3, across=across, down=down, degrees=30, enhance=0.9, bits=(4, 0))
    return tuple((ops.SMOOTH.get(op, op), first, last, signed) for op, first, last, signed in space)


def magnitudes(space: Space, num_bins: int) -> np.ndarray:
    """The magnitude of each operation in each bin, without sign: `[operations, num_bins]`."""
    return np.array([np.linspace(first, last, num_bins) for _, first, last, _ in space], np.float32)


def trivial_augment(key: Array, x: Array) -> Array:
    """One random operation at a random strength on each image: TrivialAugment Wide.

    Müller and Hutter, arXiv 2103.10158, as torchvision's `TrivialAugmentWide()`.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images in [-1, 1], `[n, height, width, channels]`, 1 or 3 channels.
    """
    levels = _levels(key, x)
    bins, key = jax.random.split(key)
    chosen = jax.random.randint(bins, (len(x),), 0, 31)
    return _images(_operated(key, levels, trivial_space(), 31, chosen), x)


def rand_augment(key: Array, x: Array) -> Array:
    """Two random operations of strength 9 of 30 on each image: RandAugment.

    Cubuk et al., arXiv 1909.13719, as torchvision's `RandAugment()`.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images in [-1, 1], `[n, height, width, channels]`, 1 or 3 channels.
    """
    levels, space = _levels(key, x), rand_space(*x.shape[1:3])
    chosen = jnp.full(len(x), 9)

    def body(levels, key):
        return _operated(key, levels, space, 31, chosen), None

    return _images(jax.lax.scan(body, levels, jax.random.split(key))[0], x)


def augmix(key: Array, x: Array) -> Array:
    """Mixes each image with three chains of one to three random operations: AugMix.

    m x + (1 - m) sum_i w_i chain_i(x), w and (m, 1 - m) from a flat Dirichlet distribution; the
    strength is one of the lowest three of ten. Hendrycks et al., arXiv 1912.02781, as torchvision's
    `AugMix()`, which cuts the mixture to whole grey levels where this one keeps the fraction. The
    loss that compares several mixtures (the paper's Jensen-Shannon term) is not part of it.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images in [-1, 1], `[n, height, width, channels]`, 1 or 3 channels.
    """
    levels, space = _levels(key, x), augmix_space(*x.shape[1:3])
    share_key, weight_key, depth_key, chain_key = jax.random.split(key, 4)
    n, chains = len(x), 3 * len(x)
    kept = jax.random.uniform(share_key, (n, 1, 1, 1))
    weights = jax.random.dirichlet(weight_key, jnp.ones(3), (n,))
    depth = jax.random.randint(depth_key, (chains,), 1, 4)

    def body(levels, step):
        position, key = step
        bins, key = jax.random.split(key)
        chosen = jax.random.randint(bins, (chains,), 0, 3)
        going = position < depth
        return _operated(key, levels, space, 10, chosen, first=1, going=going), None

    steps = (jnp.arange(3), jax.random.split(chain_key, 3))
    ends, _ = jax.lax.scan(body, jnp.repeat(levels, 3, axis=0), steps)
    mixed = jnp.einsum("ni,nihwc->nhwc", weights, ends.reshape(n, 3, *x.shape[1:]))
    found = (kept * levels + (1 - kept) * mixed) / 127.5 - 1
    return jnp.clip(found, -1, 1).astype(x.dtype)


def random_erasing(key: Array, x: Array) -> Array:
    """Blackens a random box in every other image or so: random erasing.

    The box has .02 to .33 of the area (uniform) and a height / width of .3 to 3.3 (uniform
    logarithm); the first of ten draws that is smaller than the image is taken, and if none is, the
    image stays. Zhong et al., arXiv 1708.04896, as torchvision's `RandomErasing()` on images in
    [0, 1], where its value 0 is black.

    Args:
        key: PRNG key; every image gets its own draw.
        x: Images in [-1, 1], `[n, height, width, channels]`.
    """
    check_key(key)
    n, height, width, _ = x.shape
    erase_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    draws = (n, ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, draws, minval=0.02, maxval=0.33)
    low, high = math.log(0.3), math.log(3.3)
    ratio = jnp.exp(jax.random.uniform(ratio_key, draws, minval=low, maxval=high))
    sides = jnp.round(jnp.stack([jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)], -1))
    whole = jnp.array([height, width])
    fits = jnp.all(sides < whole, axis=-1)
    side = jnp.take_along_axis(sides, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
    room = whole - side + 1
    corner = jnp.minimum(jnp.floor(room * jax.random.uniform(place_key, (n, 2))), room - 1)
    gone = jax.random.bernoulli(erase_key, shape=(n,)) & jnp.any(fits, axis=1)
    rows, columns = (
        (corner[:, i, None] <= jnp.arange(length))
        & (jnp.arange(length) < (corner + side)[:, i, None])
        for i, length in enumerate((height, width))
    )
    box = gone[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return jnp.where(box[..., None], jnp.asarray(BLACK, x.dtype), x)


@functools.cache
def in_turn(first: Callable, then: Callable) -> Callable[[Array, Array], Array]:
    """The augmentation that applies one and then another; the same two give the same object.

    Args:
        first: `augment(key, x) -> x`, such as `crop_and_flip`.
        then: `augment(key, x) -> x` of what comes out.
    """

    def augment(key, x):
        check_key(key)
        first_key, then_key = jax.random.split(key)
        return then(then_key, first(first_key, x))

    augment.__name__ = f"{first.__name__}_then_{then.__name__}"
    return augment


def _operated(key, levels, space, num_bins, bins, *, first=0, going=None):
    """One drawn operation on each image, the bin of its strength given."""
    operation_key, sign_key = jax.random.split(key)
    drawn = jax.random.randint(operation_key, (len(levels),), first, len(space))
    drawn = drawn if going is None else jnp.where(going, drawn, 0)
    signed = jnp.array([signed for *_, signed in space])[drawn]
    sign = jnp.where(signed & jax.random.bernoulli(sign_key, shape=drawn.shape), -1, 1)
    strength = jnp.asarray(magnitudes(space, num_bins))[drawn, bins] * sign
    branches = [operation for operation, *_ in space]

    def one(drawn):
        return jax.lax.switch(drawn[0], branches, *drawn[1:])

    def in_sequence(*drawn):
        return jax.lax.map(one, drawn)

    def at_once(*drawn):
        return jax.vmap(lambda *each: one(each))(*drawn)

    return jax.lax.platform_dependent(drawn, levels, strength, cpu=in_sequence, default=at_once)


def _levels(key, x):
    """The images as whole grey levels, int32 in 0..255."""
    check_key(key)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"`x` must be [n, height, width, 1 or 3], got {list(x.shape)}.")
    return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.int32)


def _images(levels, like):
    """Whole grey levels in [-1, 1], as `like` has them: the very bits of stored images."""
    # A table, because a compiled division by 127.5 may become a product, and then end in 1.0000001.
    table = jnp.asarray(scaled(np.arange(256, dtype=np.uint8)), like.dtype)
    return table[levels]
