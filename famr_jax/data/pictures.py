"""Encoded images to pixels, by Pillow."""

import numpy as np
from PIL import Image


def to_pixels(picture: Image.Image, mode: str, size: int | None) -> np.ndarray:
    """Pixels in Pillow's `mode`, uint8 `[height, width, channels]`.

    With a `size`, the largest square in the middle, resized to `size` pixels a side by Pillow's
    bicubic filter: what resizing the short side and cropping the centre gives, without rounding
    the long side.
    """
    if picture.mode != mode:
        picture = picture.convert(mode)
    if size is not None:
        side = min(picture.size)
        left, top = ((length - side) / 2 for length in picture.size)
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box)
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]
