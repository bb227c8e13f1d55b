"""Each operation of automatic augmentation against Pillow's, on the images people train on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from famr_jax import data
from famr_jax.data import operations as ops


def photograph():
    """32x32x3: ramps, a box, a disc and noise."""
    y, x = np.mgrid[:32, :32]
    image = np.stack([8 * x, 255 - 7 * y, 4 * x + 4 * y], -1).astype(float)
    image[8:20, 10:24] = 200, 30, 90
    image[(x - 20) ** 2 + (y - 22) ** 2 < 30] = 20, 220, 250
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def images():
    digits = data.load("digits").train.pixels(np.arange(2))
    large = np.asarray(Image.fromarray(digits[0, ..., 0]).resize((32, 32), Image.BICUBIC))
    return {
        "photograph": photograph(),
        "grey, wider than high": photograph()[:25, :31, :1],
        "digit": np.repeat(large[..., None], 3, -1),
        "small digit": digits[1],
        "one level": np.full((8, 8, 1), 77, np.uint8),
    }


def moved(matrix):
    """Pillow's affine transform with a matrix of the magnitude."""

    def transform(image, magnitude, resample):
        return image.transform(image.size, Image.AFFINE, matrix(magnitude), resample, fillcolor=0)

    return transform


def rotated(image, magnitude, resample):
    return image.rotate(magnitude, resample, fillcolor=0)


def enhanced(kind):
    def enhance(image, magnitude):
        return kind(image).enhance(1 + magnitude)

    return enhance


MOVES = {
    ops.shear_x: (moved(lambda m: (1, m, 0, 0, 1, 0)), 0.99),
    ops.shear_y: (moved(lambda m: (1, 0, 0, m, 1, 0)), 0.99),
    ops.translate_x: (moved(lambda m: (1, 0, -int(m), 0, 1, 0)), 32),
    ops.translate_y: (moved(lambda m: (1, 0, 0, 0, 1, -int(m))), 32),
    ops.rotate: (rotated, 135),
}
"""What torchvision calls, and the largest magnitude of any policy."""
LEVELS = {
    ops.brightness: (enhanced(ImageEnhance.Brightness), np.linspace(-0.99, 0.99, 61)),
    ops.colour: (enhanced(ImageEnhance.Color), np.linspace(-0.99, 0.99, 61)),
    ops.contrast: (enhanced(ImageEnhance.Contrast), np.linspace(-0.99, 0.99, 61)),
    ops.sharpness: (enhanced(ImageEnhance.Sharpness), np.linspace(-0.99, 0.99, 61)),
    ops.posterize: (lambda image, m: ImageOps.posterize(image, int(m)), np.arange(1, 9)),
    ops.solarize: (ImageOps.solarize, np.linspace(255, 0, 31)),
    ops.autocontrast: (lambda image, m: ImageOps.autocontrast(image), [0]),
    ops.equalize: (lambda image, m: ImageOps.equalize(image), [0]),
    ops.invert: (lambda image, m: ImageOps.invert(image), [0]),
    ops.identity: (lambda image, m: image, [0]),
}
EXACT = {ops.posterize, ops.solarize, ops.equalize, ops.invert, ops.identity}
"""Whole numbers in Pillow, too; the others' products are rounded once more or once less."""


def pillow(operation, image, strengths, *more):
    """What Pillow makes of an image at each strength, `[strengths, height, width, channels]`."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    found = [np.asarray(operation(picture, float(each), *more)) for each in strengths]
    return np.stack(found).reshape(-1, *image.shape).astype(int)


@functools.cache
def compiled(operation):
    return jax.jit(jax.vmap(operation, (None, 0)))


def ours(operation, image, strengths):
    levels, strengths = jnp.asarray(image, jnp.int32), jnp.asarray(strengths, jnp.float32)
    found = compiled(operation)(levels, strengths)
    assert found.dtype == jnp.int32
    return np.asarray(found)


@pytest.mark.parametrize("operation", MOVES, ids=lambda each: each.__name__)
def test_nearest_pixels_are_pillows(operation):
    theirs, most = MOVES[operation]
    strengths = np.linspace(-most, most, 61)
    for name, image in images().items():
        expected = pillow(theirs, image, strengths, Image.NEAREST)
        np.testing.assert_array_equal(ours(operation, image, strengths), expected, name)


@pytest.mark.parametrize("operation", MOVES, ids=lambda each: each.__name__)
def test_bilinear_pixels_are_pillows_to_a_level(operation):
    theirs, most = MOVES[operation]
    # No edge of the image falls on the middle of a pixel: whether that is inside is rounding.
    strengths = np.linspace(-most / np.e, most / np.pi, 19)
    for name, image in images().items():
        expected = pillow(theirs, image, strengths, Image.BILINEAR)
        found = ours(ops.SMOOTH[operation], image, strengths)
        assert np.abs(found - expected).max() <= 1, name
        # Pillow cuts float64 mixtures to whole levels, ours are float32: next to one they differ.
        assert (found != expected).mean() < 0.001, name


@pytest.mark.parametrize("operation", LEVELS, ids=lambda each: each.__name__)
def test_levels_are_pillows_to_a_level(operation):
    theirs, strengths = LEVELS[operation]
    for name, image in images().items():
        expected, found = pillow(theirs, image, strengths), ours(operation, image, strengths)
        assert np.abs(found - expected).max() <= (operation not in EXACT), name
        assert (found != expected).mean() < 0.01, name


def test_every_operation_is_compared():
    functions = {value for name, value in vars(ops).items() if callable(value) and name[0] != "_"}
    assert {each for each in functions if each.__module__ == ops.__name__} == {*MOVES, *LEVELS}


@pytest.mark.parametrize(
    "operation", [*MOVES, ops.brightness, ops.colour, ops.contrast, ops.sharpness]
)
def test_no_strength_leaves_every_bit(operation):
    for each in (operation, ops.SMOOTH.get(operation, operation)):
        still, moved = ours(each, photograph(), [0, 0.9 if operation in LEVELS else 9])
        np.testing.assert_array_equal(still, photograph())
        assert (moved != still).any()


def test_eight_bits_and_a_threshold_above_white_leave_every_bit():
    np.testing.assert_array_equal(ours(ops.posterize, photograph(), [8])[0], photograph())
    np.testing.assert_array_equal(ours(ops.solarize, photograph(), [256])[0], photograph())


def test_a_digit_of_64_pixels_is_too_small_to_equalize():
    digit = images()["small digit"]
    np.testing.assert_array_equal(ours(ops.equalize, digit, [0])[0], digit)
