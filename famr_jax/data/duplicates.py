"""Byte-identical images: a copy left in the retain set keeps what was to be forgotten."""

import hashlib
from collections.abc import Iterator

import numpy as np

from famr_jax.data.dataset import Split
from famr_jax.data.stream import OnDisk


def duplicate_groups(*images: np.ndarray | Split | OnDisk) -> list[np.ndarray]:
    """Numbers the distinct images: two rows have the same number exactly if they are identical.

    Args:
        *images: Splits, or arrays of images, uint8 `[n, height, width, channels]`; twins are found
            within and across them. Equal 128-bit BLAKE2b digests count as identity. On disk it is
            the encoded bytes that are compared: one image encoded in two ways has no twin.

    Returns:
        One int64 array `[n]` an argument: 0, 1, ... in the order of first appearance.

    Raises:
        ValueError: If an array is not uint8 with four axes.
    """
    numbers: dict[tuple, int] = {}
    groups = []
    for x in images:
        found = (numbers.setdefault(key, len(numbers)) for key in _keys(x))
        groups.append(np.fromiter(found, np.int64, len(x)))
    return groups


def _keys(images: np.ndarray | Split | OnDisk) -> Iterator[tuple]:
    if isinstance(images, OnDisk):
        return ((images.image_shape, digest.tobytes()) for digest in images.digests)
    x = images.x if isinstance(images, Split) else images
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(f"`images` must be uint8 with 4 axes, got {x.dtype} {x.shape}.")
    digests = (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in x)
    return ((x.shape[1:], digest) for digest in digests)


def count_duplicates(
    train: np.ndarray | Split | OnDisk, test: np.ndarray | Split | OnDisk
) -> dict[str, int]:
    """Counts images with a byte-identical twin.

    Args:
        train: Training images, as `duplicate_groups` takes them.
        test: Test images, likewise.

    Returns:
        `within_train`: training images with at least one other training image identical to them (a
        lone pair counts 2); `within_test`: the same among test images; `across`: test images
        identical to at least one training image.
    """
    in_train, in_test = duplicate_groups(train, test)
    size = max([0, *in_train, *in_test]) + 1
    trains, tests = np.bincount(in_train, minlength=size), np.bincount(in_test, minlength=size)
    return {
        "within_train": int((trains[in_train] > 1).sum()),
        "within_test": int((tests[in_test] > 1).sum()),
        "across": int((trains[in_test] > 0).sum()),
    }
