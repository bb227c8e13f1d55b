"""Random resized crops and centre crops: what images larger than the model's input need."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.types import check_count, check_key

ATTEMPTS = 10


@functools.cache
def random_resized_crop(size: int, *, flip: bool = True) -> Callable[[Array, Array], Array]:
    """The augmentation `(key, x) -> x` that resizes a random box of each image to `size` a side.

    Boxes as in Inception (Szegedy et al., arXiv 1409.4842): see `random_boxes`. The images may be
    of any size. The same arguments give the same object, which jit relies on.

    Args:
        size: Side of the images that come out, in pixels.
        flip: Mirror every other image or so.

    Raises:
        ValueError: `size` below one.
    """
    check_count("size", size)

    def augment(key, x):
        check_key(key)
        box_key, flip_key = jax.random.split(key)
        boxes = random_boxes(box_key, x.shape[0], x.shape[1:3])
        out = resized_boxes(x, boxes, size)
        if not flip:
            return out
        mirrored = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
        return jnp.where(mirrored, out[:, :, ::-1], out)

    augment.__name__ = f"random_resized_crop_{size}" + ("_flip" if flip else "")
    return augment


@functools.cache
def centre_crop(size: int) -> Callable[[Array], Array]:
    """The function `x -> x` that cuts the middle `size` by `size` pixels out of each image.

    Images that have this size stay as they are. The same size gives the same object.

    Raises:
        ValueError: `size` below one; when called, images that are smaller.
    """
    check_count("size", size)

    def cut(x):
        corner = [(length - size) // 2 for length in x.shape[1:3]]
        if min(corner) < 0:
            got = f"{x.shape[1]}x{x.shape[2]}"
            raise ValueError(f"images must have at least {size}x{size} pixels, got {got}.")
        top, left = corner
        return x[:, top : top + size, left : left + size]

    return cut


def random_boxes(
    key: Array,
    n: int,
    shape: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Boxes of random area, aspect ratio and place, `[n, 4]`: top, left, height, width in pixels.

    The area's share is uniform in `scale`, the logarithm of width / height uniform in that of
    `ratio`, sides are rounded; the first of ten draws that fits is taken, and if none does, the
    largest box in the middle within `ratio`. The same law as torchvision's RandomResizedCrop.

    Args:
        key: PRNG key; every image gets its own draw.
        n: How many.
        shape: Height and width of the images.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height.
    """
    check_key(key)
    height, width = shape
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    draws = (n, ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, draws, minval=scale[0], maxval=scale[1])
    logs = [math.log(bound) for bound in ratio]
    aspect = jnp.exp(jax.random.uniform(ratio_key, draws, minval=logs[0], maxval=logs[1]))
    sides = jnp.round(jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], -1))
    whole = jnp.array([height, width], sides.dtype)
    fits = jnp.all((sides > 0) & (sides <= whole), axis=-1)
    first = jnp.argmax(fits, axis=1)
    side = jnp.take_along_axis(sides, first[:, None, None], axis=1)[:, 0]
    room = whole - side + 1
    # The floor of a uniform float: exact for images of any size that fits in memory.
    corner = jnp.floor(room * jax.random.uniform(place_key, (n, 2)))
    corner = jnp.minimum(corner, room - 1)
    middle_side = jnp.array(
        [min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))], sides.dtype
    )
    found = jnp.any(fits, axis=1)[:, None]
    side = jnp.where(found, side, middle_side)
    corner = jnp.where(found, corner, jnp.floor((whole - middle_side) / 2))
    return jnp.concatenate([corner, side], axis=1)


def resized_boxes(x: Array, boxes: Array, size: int) -> Array:
    """Each image's box resized to `size` a side: `[n, size, size, channels]`.

    Linear interpolation, antialiased where it shrinks. As in Pillow's `resize(box=...)` the filter
    sees the pixels around the box, too; a crop that is resized after it was cut would not.

    Args:
        x: Images, `[n, height, width, channels]`.
        boxes: Top, left, height and width of each, `[n, 4]`, in pixels.
        size: Side of the images that come out.
    """

    def one(image, box):
        scale = size / box[2:]
        shape = (size, size, image.shape[-1])
        return jax.image.scale_and_translate(
            image, shape, (0, 1), scale, -box[:2] * scale, method="linear"
        )

    return jax.vmap(one)(x, boxes.astype(x.dtype))
