"""A split of images and labels in host memory, and a data set of two splits, there or on disk."""

import dataclasses
import hashlib
import operator
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from famr_jax.data.stream import OnDisk, scaled
from famr_jax.types import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images as stored, one byte a channel: read-only arrays, not a pytree.

    Attributes:
        x: Images, `[n, height, width, channels]`, uint8 in 0..255.
        labels: Class indices, `[n]`: of any integer dtype, kept as int32.

    Raises:
        ValueError: For another dtype or rank, labels beyond int32, unequal lengths, or no example.
    """

    x: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        for name, kind, rule, ndim in (
            ("x", np.uint8, "uint8", 4),
            ("labels", np.integer, "integers", 1),
        ):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray):
                raise ValueError(f"`{name}` must be a NumPy array, got {type(array).__name__}.")
            if not np.issubdtype(array.dtype, kind):
                raise ValueError(f"`{name}` must be {rule}, got {array.dtype}.")
            if name == "labels":
                array = _as_int32(array)
            if array.ndim != ndim:
                raise ValueError(f"`{name}` must have {ndim} axes, got shape {array.shape}.")
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if len(self.x) != len(self.labels):
            sizes = f"{len(self.x)} and {len(self.labels)}"
            raise ValueError(f"`x` and `labels` must have equal lengths, got {sizes}.")
        if not self.x.size:
            raise ValueError(f"`x` must hold at least one pixel, got shape {self.x.shape}.")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self) -> Batch:
        """All of the split on the default device: float32 images in [-1, 1], int32 labels."""
        return Batch(jnp.asarray(scaled(self.x)), jnp.asarray(self.labels))

    def pixels(self, rows: Any = slice(None)) -> np.ndarray:
        """The images at some rows, or all, as stored: uint8 `[k, height, width, channels]`."""
        return self.x[rows]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.x.shape[1:]

    @cached_property
    def digests(self) -> np.ndarray:
        """A hash of each image's pixels, `[n, 16]`, uint8: equal images have equal ones."""
        return digests_of(self.x)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with the same classes and the same image shape.

    Attributes:
        name: What `load` was asked for; of a folder, its last part only.
        train: The training split, in memory or on disk.
        test: The test split, likewise.
        class_names: Readable names; the position is the label.
        mirrored: Whether a mirrored image keeps its class; False for digits and letters.
        files: Of a folder the file of each training image, as `class/name`; else empty.

    Raises:
        ValueError: For a name that is not UTF-8, fewer than two classes, a label outside them, or
            unequal image shapes.
    """

    name: str
    train: Split | OnDisk
    test: Split | OnDisk
    class_names: tuple[str, ...]
    mirrored: bool
    files: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (self.name, *self.class_names):
            check_text("a name of a data set or class", str(name))
        if self.num_classes < 2:
            raise ValueError(f"`class_names` must name at least two, got {self.class_names}.")
        for name, split in (("train", self.train), ("test", self.test)):
            low, high = split.labels.min(), split.labels.max()
            if low < 0 or high >= self.num_classes:
                wrong = low if low < 0 else high
                rule = f"must lie in [0, {self.num_classes})"
                raise ValueError(f"`{name}.labels` {rule}, got {wrong}.")
        shapes = [split.image_shape for split in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            both = f"{shapes[0]} and {shapes[1]}"
            raise ValueError(f"`train` and `test` must have one image shape, got {both}.")

    @property
    def num_classes(self) -> int:
        """How many classes there are, each seen or not."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.train.image_shape

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of images, labels and class names: equal data, equal key of a cache.

        On disk the images are known by their encoded bytes, so that another one is found there.
        """
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.test):
            images = split.digests if isinstance(split, OnDisk) else split.x
            digest.update(repr((len(split), *split.image_shape)).encode())
            digest.update(np.ascontiguousarray(images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()


def _as_int32(labels: np.ndarray) -> np.ndarray:
    narrow = labels.astype(np.int32, copy=False)
    if (narrow != labels).any():
        raise ValueError(f"`labels` must fit in int32, got {labels.min()} to {labels.max()}.")
    return narrow


def check_text(title: str, text: str) -> None:
    """Raises a `ValueError` unless a text can be written as UTF-8, as results and plots must be.

    A file name of other bytes is read as a text that cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{title} must be UTF-8, got {text!r}: rename it.") from None


def digests_of(x: np.ndarray) -> np.ndarray:
    """A hash of each image's pixels, `[n, 16]`, uint8."""
    found = (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in x)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)


def kept_classes(classes: int | None, num_classes: int) -> int:
    """How many leading classes to keep: `classes`, or all of them for None.

    Raises:
        ValueError: Unless `classes` is an integer from 2 to `num_classes`.
    """
    if classes is None:
        return num_classes
    try:
        kept = operator.index(classes)
    except TypeError:
        kept = 0
    if not 2 <= kept <= num_classes:
        rule = f"must be an integer from 2 to {num_classes}"
        raise ValueError(f"`classes` {rule}, got {classes!r}.")
    return kept
