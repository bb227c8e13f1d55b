"""Random resized crops against Pillow and against the law of torchvision's, drawn by NumPy."""

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from famr_jax.data import centre_crop, random_resized_crop
from famr_jax.data.crops import random_boxes, resized_boxes

DRAW = jax.jit(random_boxes, static_argnums=(1, 2))
BOXES = [(0, 0, 24, 20), (3, 5, 8, 8), (0, 0, 1, 1), (23, 19, 1, 1), (10, 2, 13, 18), (4, 7, 5, 9)]


def images(n, height=24, width=20):
    return np.random.default_rng(0).normal(size=(n, height, width, 2)).astype(np.float32)


@pytest.mark.parametrize("size", [4, 12, 31])
def test_boxes_are_resized_as_pillow_resizes_them(size):
    x = images(len(BOXES))
    out = jax.jit(resized_boxes, static_argnums=2)(x, np.array(BOXES, np.float32), size)
    assert out.shape == (len(BOXES), size, size, 2)
    for image, made, (top, left, height, width) in zip(x, out, BOXES, strict=True):
        box = (left, top, left + width, top + height)
        for channel in range(2):
            picture = Image.fromarray(image[..., channel])
            wanted = picture.resize((size, size), Image.Resampling.BILINEAR, box)
            np.testing.assert_allclose(made[..., channel], wanted, rtol=0, atol=1e-5)


def drawn_by_numpy(n, height, width, seed):
    """The boxes of torchvision's `RandomResizedCrop.get_params`, one after the other."""
    rng, boxes = np.random.default_rng(seed), []
    for _ in range(n):
        for _ in range(10):
            area = height * width * rng.uniform(0.08, 1)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                boxes.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
                break
        else:
            shown = width / height
            w = round(height * 4 / 3) if shown > 4 / 3 else width
            h = round(width * 4 / 3) if shown < 3 / 4 else height
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)


@pytest.mark.parametrize("shape", [(256, 256), (40, 100), (9, 9)])
def test_boxes_follow_the_law(shape):
    n = 4000
    ours = np.asarray(DRAW(jax.random.key(0), n, shape), np.float64)
    np.testing.assert_array_equal(ours, ours.round())
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()
    theirs = drawn_by_numpy(n, *shape, seed=1)
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] - b[:, 1],
    ):
        assert scipy.stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


def test_areas_and_ratios_are_uniform_where_every_draw_fits():
    draw = jax.jit(random_boxes, static_argnums=(1, 2), static_argnames=("scale", "ratio"))
    key = jax.random.key(1)
    boxes = np.asarray(draw(key, 4000, (2000, 2000), scale=(0.1, 0.3), ratio=(0.5, 2.0)))
    area = boxes[:, 2] * boxes[:, 3] / 2000**2
    assert scipy.stats.kstest(area, scipy.stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3
    log_ratio = np.log2(boxes[:, 3] / boxes[:, 2])
    assert scipy.stats.kstest(log_ratio, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_an_image_too_long_for_any_draw_gives_its_middle():
    boxes = np.asarray(DRAW(jax.random.key(2), 3, (10, 1000)))
    assert (boxes == drawn_by_numpy(1, 10, 1000, seed=0)).all()
    np.testing.assert_array_equal(boxes, [[0, 493, 10, 13]] * 3)


def test_the_augmentation_is_boxes_resized_and_half_of_them_mirrored():
    x, key = np.repeat(images(1, 16, 16), 64, axis=0), jax.random.key(3)
    plain = jax.jit(random_resized_crop(8, flip=False))(key, x)
    either = np.asarray(jax.jit(random_resized_crop(8))(key, x))
    assert either.shape == (64, 8, 8, 2)
    mirrored = [np.allclose(a, b[:, ::-1], atol=1e-5) for a, b in zip(either, plain, strict=True)]
    same = [np.allclose(a, b, atol=1e-5) for a, b in zip(either, plain, strict=True)]
    assert sum(mirrored) + sum(same) == 64
    assert 16 < sum(same) < 48
    assert len({image.tobytes() for image in np.asarray(plain)}) > 40


def test_the_same_words_give_the_same_function():
    assert random_resized_crop(8) is random_resized_crop(8)
    assert centre_crop(8) is centre_crop(8)
    names = {random_resized_crop(8).__name__, random_resized_crop(8, flip=False).__name__}
    assert names == {"random_resized_crop_8_flip", "random_resized_crop_8"}


def test_centre_crop_cuts_the_middle():
    x = images(2, 9, 8)
    np.testing.assert_array_equal(centre_crop(4)(x), x[:, 2:6, 2:6])
    np.testing.assert_array_equal(centre_crop(8)(x), x[:, :8])
    square = images(2, 8, 8)
    np.testing.assert_array_equal(centre_crop(8)(square), square)
    with pytest.raises(ValueError, match="at least 9x9 pixels, got 9x8"):
        centre_crop(9)(x)


@pytest.mark.parametrize("make", [random_resized_crop, centre_crop])
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="`size` must be an integer >= 1, got 0"):
        make(0)
