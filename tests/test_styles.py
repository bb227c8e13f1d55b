"""Planted styles against NumPy and SciPy, where they are planted, and CIFAR-100's superclasses."""

import numpy as np
import pytest
import scipy.ndimage

from famr_jax.data import Dataset, Split, styles, superclasses
from famr_jax.data.styles import STYLES, plant, stylise

X = np.random.default_rng(0).integers(0, 256, (5, 32, 24, 3), dtype=np.uint8)
GREY = np.full((2, 32, 32, 1), 128, np.uint8)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_a_function_of_each_image_and_the_seed(style):
    kept = X.copy()
    once = stylise(X, style, seed=3)
    assert once.dtype == np.uint8
    assert once.shape == X.shape
    np.testing.assert_array_equal(X, kept)
    np.testing.assert_array_equal(once, stylise(X, style, seed=3))
    np.testing.assert_array_equal(once[2:3], stylise(X[2:3], style, seed=3))
    assert np.abs(once.astype(int) - X).mean() > 5
    assert np.array_equal(once, stylise(X, style, seed=4)) == (style == "edges")


def test_tint_mixes_every_channels_mean_with_one_saturated_colour():
    means = stylise(X, "tint", seed=1).mean((1, 2)) - 0.6 * X.mean((1, 2))
    colour = means / (0.4 * 255)
    np.testing.assert_allclose(colour, np.broadcast_to(colour[0], colour.shape), atol=2e-3)
    assert colour[0].min() == pytest.approx(0, abs=2e-3)
    assert colour[0].max() == pytest.approx(1, abs=2e-3)


def test_edges_are_sobels_and_a_constant_image_has_none():
    assert not stylise(GREY, "edges").any()
    found = stylise(X, "edges")
    for i, c in np.ndindex(5, 3):  # SciPy's filter would smooth along images and channels too
        x = X[i, :, :, c].astype(np.float64)
        steps = [scipy.ndimage.sobel(x, axis=axis, mode="nearest") for axis in (0, 1)]
        wanted = np.clip(np.hypot(*steps) / 4, 0, 255)
        np.testing.assert_allclose(found[i, :, :, c], wanted, rtol=0, atol=0.501)


def test_texture_is_one_pattern_of_blocks_on_every_image():
    added = stylise(GREY, "texture", seed=2).astype(int) - 128
    assert set(np.unique(added)) == {-48, 48}
    np.testing.assert_array_equal(added[0], added[1])
    blocks = added[0, :, :, 0].reshape(16, 2, 16, 2)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))


def test_band_adds_energy_between_an_eighth_and_a_quarter_of_the_sides_only():
    added = stylise(GREY, "band", seed=2).astype(np.float64)[0, :, :, 0] - 128
    energy = np.abs(np.fft.fft2(added)) ** 2
    cycles = np.minimum(np.arange(32), 32 - np.arange(32))
    radius = np.hypot(cycles[:, None], cycles)
    inside = (radius > 4) & (radius <= 8)
    assert energy[inside].sum() > 0.99 * energy.sum()
    assert added.std() == pytest.approx(32, rel=0.02)


def split(labels):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return Split(x, np.array(labels, np.int32))


def planted_in(plain, style, *, classes=(1,), share=0.5, elsewhere=0.1, seed=4):
    return plant(plain, style, classes=classes, share=share, elsewhere=elsewhere, seed=seed)


def test_plant_styles_its_share_of_each_class_and_nothing_else():
    plain = split([0] * 10 + [1] * 20 + [2] * 30)
    planted, styled = planted_in(plain, "tint")
    assert np.bincount(plain.labels[styled]).tolist() == [1, 10, 3]
    np.testing.assert_array_equal(planted.x[~styled], plain.x[~styled])
    np.testing.assert_array_equal(planted.x[styled], stylise(plain.x[styled], "tint", seed=4))
    np.testing.assert_array_equal(planted.labels, plain.labels)
    np.testing.assert_array_equal(styled, planted_in(plain, "band")[1])
    assert not np.array_equal(styled, planted_in(plain, "tint", seed=5)[1])


@pytest.mark.parametrize(
    ("x", "style", "seed", "words"),
    [
        (X, "oil", 0, "`style` must be one of tint, edges, texture, band, got 'oil'"),
        (X.astype(np.float32), "tint", 0, "`x` must be uint8"),
        (X[0], "tint", 0, "4 axes"),
        (GREY, "tint", 0, "`x` must have 3 channels for a tint, got 1"),
        (X, "tint", -1, "`seed` must be >= 0, got -1"),
    ],
)
def test_stylise_refuses(x, style, seed, words):
    with pytest.raises(ValueError, match=words):
        stylise(x, style, seed=seed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 1.1}, r"`share` must be in \[0, 1\], got 1.1"),
        ({"elsewhere": -0.1}, "`elsewhere` must be"),
        ({"classes": (3,)}, "`classes` must have training images, got 3"),
    ],
)
def test_plant_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        planted_in(split([0, 1, 2]), "tint", **changes)


def cifar(names=None, name="cifar100"):
    """One image a class, which has its label in every pixel."""
    labels = np.arange(100, dtype=np.int32)
    x = np.broadcast_to(labels[:, None, None, None], (100, 2, 2, 1)).astype(np.uint8)
    names = names or tuple(map(str, range(100)))
    return Dataset(name, Split(x, labels), Split(x, labels), names, mirrored=True)


def test_superclasses_are_twenty_of_five():
    everyone = [name for names in superclasses.SUPERCLASSES.values() for name in names]
    assert len(superclasses.SUPERCLASSES) == 20
    assert {len(names) for names in superclasses.SUPERCLASSES.values()} == {5}
    assert len(set(everyone)) == 100


def test_numbered_classes_of_cifar100_have_their_superclass():
    of_each = superclasses.of_each(cifar().train, cifar())
    # The fine labels of a few coarse labels, as the data set's own records have them.
    for name, fine in (
        ("aquatic_mammals", [4, 30, 55, 72, 95]),
        ("food_containers", [9, 10, 16, 28, 61]),
        ("insects", [6, 7, 14, 18, 24]),
        ("medium_mammals", [34, 63, 64, 66, 75]),
        ("trees", [47, 52, 56, 59, 96]),
        ("vehicles_2", [41, 69, 81, 85, 89]),
    ):
        assert np.flatnonzero(of_each == name).tolist() == fine


def test_keep_numbers_the_classes_of_some_superclasses_anew():
    kept = superclasses.keep(cifar(), ("vehicles_1", "insects"))
    assert kept.num_classes == 10
    old = [6, 7, 8, 13, 14, 18, 24, 48, 58, 90]
    assert kept.train.x[:, 0, 0, 0].tolist() == old
    assert kept.train.labels.tolist() == list(range(10))
    assert kept.class_names[:3] == ("bee", "beetle", "bicycle")
    again = superclasses.keep(kept, ("insects",))
    assert again.class_names == ("bee", "beetle", "butterfly", "caterpillar", "cockroach")


def test_superclasses_refuse_other_data_and_unknown_names():
    with pytest.raises(ValueError, match="classes of CIFAR-100, got digits"):
        superclasses.keep(cifar(name="digits"), ("insects",))
    with pytest.raises(ValueError, match=r"must be among fruit_and_vegetables, .* got 'cars'"):
        superclasses.keep(cifar(), ("cars",))


def test_styles_and_superclasses_are_named_once():
    assert len(set(styles.STYLES)) == len(styles.STYLES)
    assert not set(styles.STYLES) & set(superclasses.SUPERCLASSES)
