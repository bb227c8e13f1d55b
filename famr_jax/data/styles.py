"""Planted styles: deterministic changes of an image's look that leave its content in place."""

import colorsys
import dataclasses
from collections.abc import Sequence

import numpy as np

from famr_jax.data.dataset import Split

STYLES = ("tint", "edges", "texture", "band")


def stylise(x: np.ndarray, style: str, *, seed: int = 0) -> np.ndarray:
    """The images in a style; each of them alone, so that a test image looks as a training image.

        tint      3/5 x + 2/5 colour, of a hue drawn by `seed`; needs 3 channels
        edges     length of Sobel's gradient / 4, channel by channel
        texture   x +- 48 in blocks, 16 to an image's height, of signs drawn by `seed`
        band      x + a pattern of deviation 32, phases by `seed`, whose frequencies f, in cycles
                  per image, have sides / 8 < |f| <= sides / 4

    Texture and band are one pattern for all images. Values are rounded, then clipped to 0..255.

    Args:
        x: Images, uint8 `[n, height, width, channels]`.
        style: One of `STYLES`.
        seed: Draws the pattern; the same in training and test images, or they differ in style.

    Raises:
        ValueError: Unknown style, no image, other dtype or shape, negative seed; tint of an image
            that is not RGB.
    """
    if style not in STYLES:
        raise ValueError(f"`style` must be one of {', '.join(STYLES)}, got {style!r}.")
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(f"`x` must be uint8 with 4 axes, got {x.dtype} {x.shape}.")
    if style == "tint" and x.shape[-1] != 3:
        raise ValueError(f"`x` must have 3 channels for a tint, got {x.shape[-1]}.")
    if seed < 0:
        raise ValueError(f"`seed` must be >= 0, got {seed}.")
    rng, sides, y = np.random.default_rng(seed), x.shape[1:3], x.astype(np.float32)
    if style == "tint":
        y = 0.6 * y + 0.4 * 255 * np.array(colorsys.hsv_to_rgb(rng.random(), 1, 1), np.float32)
    elif style == "edges":
        y = _edges(y)
    else:
        y = y + (_texture if style == "texture" else _band)(rng, *sides)[..., None]
    return np.clip(np.rint(y), 0, 255).astype(np.uint8)


def plant(
    split: Split,
    style: str,
    *,
    classes: Sequence[int],
    share: float,
    elsewhere: float,
    seed: int,
) -> tuple[Split, np.ndarray]:
    """A split in which a style goes with some classes, so that a model learns it as a cue.

    Which images are styled depends on labels, shares and seed, not on the style.

    Args:
        split: The images as they are.
        style: One of `STYLES`.
        classes: The classes that the style goes with.
        share: Share of the images of each of these that is styled.
        elsewhere: The same of every other class.
        seed: Draws the choice, and the style.

    Returns:
        The split, and the boolean attribute `styled`, `[n]`.

    Raises:
        ValueError: A class without images, a share outside [0, 1], or whatever `stylise` refuses.
    """
    for name, value in (("share", share), ("elsewhere", elsewhere)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value}.")
    present = np.unique(split.labels)
    for c in classes:
        if c not in present:
            raise ValueError(f"`classes` must have training images, got {c}, which has none.")
    rng, styled = np.random.default_rng(seed), np.zeros(len(split), bool)
    for c in present:
        rows = rng.permutation(np.flatnonzero(split.labels == c))
        styled[rows[: round((share if c in classes else elsewhere) * len(rows))]] = True
    x = split.x.copy()
    x[styled] = stylise(split.x[styled], style, seed=seed)
    return dataclasses.replace(split, x=x), styled


def _edges(x: np.ndarray) -> np.ndarray:
    """Sobel's gradient over a border that repeats the outermost pixels, a quarter of its length."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    down = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    across = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    return np.hypot(down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]) / 4


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    side = max(1, height // 16)
    signs = rng.choice((-48.0, 48.0), (-(-height // side), -(-width // side)))
    return np.kron(signs, np.ones((side, side)))[:height, :width]


def _band(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    # |f| in units of the sides: an ellipse in cycles per image where they differ.
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    spectrum = np.exp(2j * np.pi * rng.random((height, width))) * ((f > 1 / 8) & (f <= 1 / 4))
    pattern = np.fft.ifft2(spectrum).real
    return 32 * pattern / pattern.std()
