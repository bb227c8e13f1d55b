"""Duplicates and augmentations of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from famr_jax.data import (
    count_duplicates,
    crop,
    crop_and_flip,
    duplicate_groups,
    random_resized_crop,
)

IMAGES = st.integers(0, 5).flatmap(
    lambda n: hnp.arrays(np.uint8, (n, 1, 2, 1), elements=st.integers(0, 2))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(IMAGES, min_size=1, max_size=3))
def test_duplicate_groups_are_those_of_comparing_every_pair(arrays):
    groups = duplicate_groups(*arrays)
    assert [len(group) for group in groups] == [len(array) for array in arrays]
    rows, numbers = np.concatenate(arrays), np.concatenate(groups)
    for i in range(len(rows)):
        for j in range(len(rows)):
            assert (numbers[i] == numbers[j]) == np.array_equal(rows[i], rows[j])
    firsts = list(dict.fromkeys(numbers.tolist()))
    assert firsts == list(range(len(firsts)))


@settings(max_examples=60, deadline=None)
@given(IMAGES, IMAGES)
def test_count_duplicates_is_that_of_comparing_every_pair(train, test):
    def twins(x, others, same):
        return sum(
            any(np.array_equal(x[i], y) for j, y in enumerate(others) if not (same and i == j))
            for i in range(len(x))
        )

    assert count_duplicates(train, test) == {
        "within_train": twins(train, train, True),
        "within_test": twins(test, test, True),
        "across": twins(test, train, False),
    }


def test_equal_bytes_in_another_shape_are_another_image():
    wide, tall = np.zeros((1, 1, 2, 1), np.uint8), np.zeros((1, 2, 1, 1), np.uint8)
    assert [group.tolist() for group in duplicate_groups(wide, tall)] == [[0], [1]]


@pytest.mark.parametrize("x", [np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2), np.uint8)])
def test_duplicate_groups_refuses(x):
    with pytest.raises(ValueError, match="`images` must be uint8 with 4 axes, got"):
        duplicate_groups(x)


def coordinates(n, height, width):
    """`n` copies of an image whose two channels are a pixel's row and column."""
    grid = np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)
    return np.broadcast_to(grid, (n, height, width, 2))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 8), (4, 4)])
def test_crop_reaches_every_corner_and_copies_the_reflected_image(height, width):
    x = coordinates(1500, height, width)
    out = np.asarray(jax.jit(crop)(jax.random.key(0), x))
    down, across = max(1, height // 8), max(1, width // 8)
    reflected = np.pad(x[0], ((down, down), (across, across), (0, 0)), mode="reflect")
    offsets = out[:, height // 2, width // 2] - x[0, height // 2, width // 2]
    counts = {}
    for image, (row, column) in zip(out, offsets.astype(int), strict=True):
        top, left = row + down, column + across
        np.testing.assert_array_equal(image, reflected[top : top + height, left : left + width])
        counts[row, column] = counts.get((row, column), 0) + 1
    corners = (2 * down + 1) * (2 * across + 1)
    assert len(counts) == corners
    assert (0, 0) in counts
    expected = len(x) / corners
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_flip_is_drawn_for_each_image():
    x = coordinates(1000, 8, 8)
    out = np.asarray(jax.jit(crop_and_flip)(jax.random.key(1), x))
    flipped = out[:, 4, 4, 1] < out[:, 4, 3, 1]
    assert 400 < flipped.sum() < 600
    assert any(np.array_equal(image, x[0]) for image in out)
    assert any(np.array_equal(image, x[0, :, ::-1]) for image in out)
    assert (np.asarray(jax.jit(crop)(jax.random.key(1), x))[:, 4, 4, 1] > 2).all()


@pytest.mark.parametrize("augment", [crop, crop_and_flip, random_resized_crop(2)])
def test_augmentations_refuse_another_key(augment):
    for key, got in (
        (jax.random.PRNGKey(0), "must come from jax.random.key, got an array of uint32"),
        (7, "must come from jax.random.key, got 7"),
        (jax.random.split(jax.random.key(0), 3), r"must be one key, got \[3\]"),
    ):
        with pytest.raises(ValueError, match="`key` " + got):
            augment(key, jnp.zeros((3, 4, 4, 1)))


@pytest.mark.parametrize("augment", [crop, crop_and_flip])
def test_augmentations_depend_on_the_key_alone(augment):
    x = coordinates(32, 8, 8)
    jitted = jax.jit(augment)
    first, again, other = (jitted(jax.random.key(seed), x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == (x.shape, x.dtype)
