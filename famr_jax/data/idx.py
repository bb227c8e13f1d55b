"""Idx files, as MNIST and its relatives come: PATH/train-images-idx3-ubyte, perhaps with .gz."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from famr_jax.data.dataset import Dataset, Split, check_text, kept_classes

UNSIGNED_BYTE = 8
"""The only kind of entry that is read, by its number in the third byte of a file."""
_FILES = {"train": "train", "test": "t10k"}


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """The array of an idx file of bytes, gzipped or not.

    Two zero bytes, the kind of the entries, the number of axes; each axis as a big-endian 32-bit
    number; the entries, the last axis fastest.

    Raises:
        ValueError: The file cannot be read, is none of that form, has entries other than unsigned
            bytes, or another length than its axes say.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a readable idx file, got: {error}.") from None
    if len(content) < 4 or content[:2] != b"\0\0" or not content[3]:
        start = content[:4].hex(" ") or "nothing"
        raise ValueError(f"{path} must begin as an idx file does, 00 00 08 0N, got {start}.")
    if content[2] != UNSIGNED_BYTE:
        raise ValueError(f"{path} must hold unsigned bytes, kind 08, got kind {content[2]:02x}.")
    head = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, head, 4)]
    if len(content) != head + math.prod(shape):
        rule = f"must have {head + math.prod(shape)} bytes for its axes {shape}"
        raise ValueError(f"{path} {rule}, got {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def load_idx(
    path: str | os.PathLike,
    classes: int | None = None,
    *,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads images and labels from the four idx files of a directory, as MNIST has them.

    Files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and, for the test split, the same
    with `t10k`; a dot may stand for the second hyphen, and `.gz` at the end.

    Args:
        path: The directory.
        classes: Keep this many of the first classes.
        image_size: At least the side of the images, which stay as they are.
        stream: Must be False: the files are read whole.

    Raises:
        ValueError: A file is missing or broken, images and labels differ in number, or a setting
            is out of range.
    """
    root = Path(path).expanduser()
    if stream:
        raise ValueError("`stream` must be off for idx files, which are read whole; got True.")
    if not root.is_dir():
        raise ValueError(f"`idx:PATH` must be a directory, got {root}.")
    name = f"idx:{root.resolve().name}"
    check_text("the directory's name", name)
    found = {split: _split(root, prefix) for split, prefix in _FILES.items()}
    side = max(found["train"][0].shape[1:3])
    if image_size is not None and image_size < side:
        raise ValueError(f"`image_size` must be >= {side} for these images, got {image_size}.")
    num_classes = 1 + max(int(labels.max()) for _, labels in found.values())
    kept = kept_classes(classes, num_classes)
    splits = [Split(x[labels < kept], labels[labels < kept]) for x, labels in found.values()]
    train, test = splits
    return Dataset(name, train, test, tuple(map(str, range(kept))), mirrored=False)


def _split(root: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    x = read_idx(_file(root, f"{prefix}-images", 3))
    labels = read_idx(_file(root, f"{prefix}-labels", 1))
    for what, array, ndim in (("images", x, 3), ("labels", labels, 1)):
        if array.ndim != ndim or not array.size:
            rule = f"must have {ndim} axes and an entry"
            raise ValueError(f"{prefix}-{what} in {root} {rule}, got {list(array.shape)}.")
    if len(x) != len(labels):
        rule = f"must have as many labels as images, {len(x)}"
        raise ValueError(f"{prefix} in {root} {rule}, got {len(labels)}.")
    return x[..., None], labels.astype(np.int32)


def _file(root: Path, stem: str, ndim: int) -> Path:
    names = [f"{stem}{dot}idx{ndim}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise ValueError(f"{root} must hold {names[0]}, perhaps with .gz, got no such file.")
