"""The operations of automatic augmentation on one image of whole grey levels, as Pillow has them.

Each is `operation(image, magnitude) -> image` on int32 levels 0..255, `[height, width, channels]`
with 1 or 3 channels, and follows the Pillow call that torchvision's transforms make of it, with
their defaults: pixels from outside the image are black, and levels are cut, not rounded, where
Pillow cuts them. Operations without a magnitude take one and leave it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

FIXED = 1 << 16
"""Pillow's nearest neighbour has coordinates of 16 binary places; at ties that decides."""


def identity(image: Array, magnitude: Array) -> Array:
    """The image itself."""
    del magnitude
    return image


def shear_x(image: Array, magnitude: Array, *, bilinear: bool = False) -> Array:
    """Row y + 1/2 moves left by `magnitude` of its height; the upper edge stays."""
    return _warp(image, (1, magnitude, 0, 1), (0, 0), bilinear)


def shear_y(image: Array, magnitude: Array, *, bilinear: bool = False) -> Array:
    """Column x + 1/2 moves up by `magnitude` of its distance; the left edge stays."""
    return _warp(image, (1, 0, magnitude, 1), (0, 0), bilinear)


def translate_x(image: Array, magnitude: Array, *, bilinear: bool = False) -> Array:
    """Moves right by the whole pixels of `magnitude`, left where it is negative."""
    return _warp(image, (1, 0, 0, 1), (-jnp.trunc(magnitude), 0), bilinear)


def translate_y(image: Array, magnitude: Array, *, bilinear: bool = False) -> Array:
    """Moves down by the whole pixels of `magnitude`, up where it is negative."""
    return _warp(image, (1, 0, 0, 1), (0, -jnp.trunc(magnitude)), bilinear)


def rotate(image: Array, magnitude: Array, *, bilinear: bool = False) -> Array:
    """Turns about the middle by `magnitude` degrees, counter-clockwise; the corners are cut."""
    angle = jnp.deg2rad(magnitude)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    height, width = image.shape[:2]
    across, down = width / 2, height / 2
    shift = (across - cos * across + sin * down, down - sin * across - cos * down)
    return _warp(image, (cos, -sin, sin, cos), shift, bilinear)


def brightness(image: Array, magnitude: Array) -> Array:
    """Away from black: levels times 1 + `magnitude`."""
    return _blend(jnp.zeros_like(image), image, magnitude)


def colour(image: Array, magnitude: Array) -> Array:
    """Away from the grey image (ITU-R 601 luma): 0 leaves it, -1 takes the colour out."""
    return _blend(_grey(image), image, magnitude)


def contrast(image: Array, magnitude: Array) -> Array:
    """Away from the mean grey level: 0 leaves it, -1 gives an even grey."""
    grey = _grey(image)[..., 0]
    mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)
    return _blend(jnp.full_like(image, mean), image, magnitude)


def sharpness(image: Array, magnitude: Array) -> Array:
    """Away from the image smoothed by 3x3 weights, 5 in the middle and 1 around; edges stay."""
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return image
    rows = [slice(i, height - 2 + i) for i in range(3)]
    columns = [slice(i, width - 2 + i) for i in range(3)]
    total = 4 * image[1:-1, 1:-1] + sum(image[row, column] for row in rows for column in columns)
    smooth = image.at[1:-1, 1:-1].set((2 * total + 13) // 26)
    return _blend(smooth, image, magnitude)


def posterize(image: Array, magnitude: Array) -> Array:
    """Keeps the first bits of each level, `magnitude` rounded, of eight."""
    dropped = 8 - jnp.round(magnitude).astype(image.dtype)
    return (image >> dropped) << dropped


def solarize(image: Array, magnitude: Array) -> Array:
    """Inverts the levels of at least `magnitude`."""
    return jnp.where(image < magnitude, image, 255 - image)


def autocontrast(image: Array, magnitude: Array) -> Array:
    """Stretches each channel to 0..255; a channel of one level stays."""
    del magnitude
    low = jnp.min(image, axis=(0, 1))
    width = jnp.max(image, axis=(0, 1)) - low
    return jnp.where(width > 0, (image - low) * 255 // jnp.maximum(width, 1), image)


def equalize(image: Array, magnitude: Array) -> Array:
    """Makes each channel's histogram even; one of less than 255 pixels below its top stays."""
    del magnitude
    return jax.vmap(_equalized, in_axes=-1, out_axes=-1)(image)


def invert(image: Array, magnitude: Array) -> Array:
    """The negative: 255 less each level."""
    del magnitude
    return 255 - image


def _equalized(channel):
    counts = jnp.zeros(256, channel.dtype).at[channel].add(1)
    step = (channel.size - counts[jnp.max(channel)]) // 255
    below = jnp.cumsum(counts) - counts
    levels = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, levels[channel], channel)


def _grey(image):
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.moveaxis(image, -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return jnp.broadcast_to(luma[..., None], image.shape)


def _blend(plain, image, magnitude):
    moved = plain + (1 + magnitude) * (image - plain)
    return jnp.clip(moved, 0, 255).astype(image.dtype)


def _warp(image, matrix, shift, bilinear):
    """Pixel (x, y) is that at `matrix` (x, y) + `shift` of the image, black outside it."""
    height, width = image.shape[:2]
    rows = jnp.asarray(matrix, jnp.float32).reshape(2, 2)
    shift = jnp.asarray(shift, jnp.float32)
    y, x = jnp.mgrid[:height, :width]
    if bilinear:
        # No matrix product: on an accelerator its default precision would move pixels.
        across, down = (rows[i, 0] * (x + 0.5) + rows[i, 1] * (y + 0.5) + shift[i] for i in (0, 1))
        return _between(image, across, down)
    first, fixed = (
        jnp.floor(each * FIXED + 0.5).astype(jnp.int32)
        for each in (shift + rows.sum(axis=1) / 2, rows)
    )
    across, down = (first[i] + fixed[i, 0] * x + fixed[i, 1] * y >> 16 for i in (0, 1))
    return _pixels(image, across, down)


def _pixels(image, across, down):
    height, width = image.shape[:2]
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    found = image[jnp.clip(down, 0, height - 1), jnp.clip(across, 0, width - 1)]
    return jnp.where(inside[..., None], found, 0)


def _between(image, across, down):
    """Bilinear interpolation with the edge's pixels repeated, black outside the image."""
    height, width = image.shape[:2]
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    left, upper = jnp.floor(across - 0.5), jnp.floor(down - 0.5)
    part, share = (across - 0.5 - left)[..., None], (down - 0.5 - upper)[..., None]
    columns = [jnp.clip(left + i, 0, width - 1).astype(jnp.int32) for i in (0, 1)]
    rows = [jnp.clip(upper + i, 0, height - 1).astype(jnp.int32) for i in (0, 1)]
    corners = [[image[row, column] for column in columns] for row in rows]
    above, below = (first + (second - first) * part for first, second in corners)
    mixed = above + (below - above) * share  # equal pixels stay so, however this is compiled
    return jnp.where(inside[..., None], mixed, 0).astype(image.dtype)


SMOOTH = {
    each: partial(each, bilinear=True)
    for each in (shear_x, shear_y, translate_x, translate_y, rotate)
}
"""The operations that move pixels, with bilinear interpolation in place of the nearest pixel."""
