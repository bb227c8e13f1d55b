"""Byte-identical images: a copy left in the retain set keeps what was to be forgotten."""

import numpy as np

from famr_jax.data.dataset import Split, digests_of
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
    for each in images:
        shape, digests = _shape_and_digests(each)
        keys = ((shape, digest.tobytes()) for digest in digests)
        found = (numbers.setdefault(key, len(numbers)) for key in keys)
        groups.append(np.fromiter(found, np.int64, len(digests)))
    return groups


def _shape_and_digests(images: np.ndarray | Split | OnDisk) -> tuple[tuple[int, ...], np.ndarray]:
    if not isinstance(images, np.ndarray):
        return images.image_shape, images.digests
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"`images` must be uint8 with 4 axes, got {images.dtype} {images.shape}.")
    return images.shape[1:], digests_of(images)


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
