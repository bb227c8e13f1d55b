"""Image folders: PATH/split/class/image, with an optional PATH/classes.txt of readable names."""

import hashlib
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from famr_jax.data.dataset import Dataset, Split, kept_classes
from famr_jax.data.pictures import to_pixels
from famr_jax.data.stream import OnDisk, read_ahead

_TEST_NAMES = ("test", "val", "validation")
_PIECE = 64  # files a thread looks at at a time


class _Seen(NamedTuple):
    """What a file says without being decoded."""

    digest: bytes
    shape: tuple[int, int]
    grey: bool


def load_folder(
    path: str | os.PathLike,
    classes: int | None = None,
    *,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads an image folder: `train` and the first of `test`, `val`, `validation` that is there.

    Classes are the sorted names of the directories, images are sorted by file name; both skip
    hidden files. Images become RGB, or stay grey (one channel) if all of both splits are. Every
    file is read once, for its hash, size and mode, and decoded when its image is asked for.

    Args:
        path: The directory that holds the split directories and perhaps `classes.txt` (a line a
            class: directory, tab, readable name).
        classes: Keep this many of the first classes; others are not read.
        image_size: Make squares of this side of the images, whatever their size.
        stream: Leave the images on disk.

    Raises:
        ValueError: If directories are missing or differ, or a file is not an image of the one size.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"`folder:PATH` must be a directory, got {root}.")
    present = [name for name in _TEST_NAMES if (root / name).is_dir()]
    if not (root / "train").is_dir() or not present:
        rule = f"must hold train and one of {', '.join(_TEST_NAMES)}"
        raise ValueError(f"{root} {rule}, got {[entry.name for entry in _visible(root)]}.")
    splits = [root / "train", root / present[0]]
    ids = _same_classes(*splits)
    ids = ids[: kept_classes(classes, len(ids))]
    names = _readable_names(root / "classes.txt", ids)
    files, labels = zip(*(_files(split, ids) for split in splits), strict=True)
    seen = [_look(paths) for paths in files]
    shapes = {file.shape for split in seen for file in split}
    if image_size is not None and len(shapes) == 1 and max(seen[0][0].shape) <= image_size:
        image_size = None
    if image_size is None:
        _check_sizes(files, seen)
    grey = all(file.grey for split in seen for file in split)
    shape = seen[0][0].shape if image_size is None else (image_size, image_size)
    sets = []
    for paths, label, facts in zip(files, labels, seen, strict=True):
        read = partial(_read, paths, "L" if grey else "RGB", image_size)
        digests = np.frombuffer(b"".join(file.digest for file in facts), np.uint8).reshape(-1, 16)
        rows = np.arange(len(paths))
        sets.append(OnDisk(read, (*shape, 1 if grey else 3), label, digests, rows))
    if not stream:
        sets = [Split(split.pixels(), split.labels) for split in sets]
    return Dataset(f"folder:{root.resolve().name}", *sets, names, mirrored=True)


def _visible(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _same_classes(train: Path, test: Path) -> list[str]:
    ids = []
    for split in (train, test):
        entries = _visible(split)
        for entry in entries:
            if not entry.is_dir():
                raise ValueError(f"{split} must hold one directory a class, got {entry}.")
        ids.append([entry.name for entry in entries])
    if ids[0] != ids[1]:
        odd = sorted(set(ids[0]) ^ set(ids[1]))
        raise ValueError(f"{train} and {test} must hold the same classes, only one has {odd[:5]}.")
    if len(ids[0]) < 2:
        raise ValueError(f"{train} must hold at least two classes, got {ids[0]}.")
    return ids[0]


def _readable_names(file: Path, ids: list[str]) -> tuple[str, ...]:
    if not file.exists():
        return tuple(ids)
    names = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        class_id, tab, name = line.partition("\t")
        if line and not tab:
            raise ValueError(f"{file} must hold lines of directory, tab, name; got {line!r}.")
        names[class_id] = name
    missing = [class_id for class_id in ids if class_id not in names]
    if missing:
        raise ValueError(f"{file} must name every class, got no line for {missing[:5]}.")
    return tuple(names[class_id] for class_id in ids)


def _files(split: Path, ids: list[str]) -> tuple[list[Path], np.ndarray]:
    paths, labels = [], []
    for label, class_id in enumerate(ids):
        found = _visible(split / class_id)
        if not found:
            raise ValueError(f"{split / class_id} must hold images, got none.")
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels, np.int32)


def _look(paths: list[Path]) -> list[_Seen]:
    def look(picture, encoded):
        grey = picture.mode in ("1", "L") and "transparency" not in picture.info
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        return _Seen(digest, picture.size[::-1], grey)

    pieces = [paths[start : start + _PIECE] for start in range(0, len(paths), _PIECE)]
    found = read_ahead(lambda piece: [_opened(path, look) for path in piece], pieces)
    return [file for piece in found for file in piece]


def _read(paths: list[Path], mode: str, size: int | None, row: int) -> np.ndarray:
    def pixels(picture, _):
        if "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return to_pixels(picture, mode, size)

    return _opened(paths[row], pixels)


def _opened(path: Path, function: Callable):
    """`function(picture, encoded)` of a file, whose name any error tells."""
    try:
        encoded = path.read_bytes()
        with Image.open(io.BytesIO(encoded)) as picture:
            if picture.mode[0] in "IF":
                raise ValueError(f"mode {picture.mode} is not 8-bit")
            return function(picture, encoded)
    # Pillow's decoders raise whatever they stumble on: OSError, SyntaxError, ValueError, ...
    except Exception as error:
        raise ValueError(f"`{path}` must be a readable 8-bit image, got {error}.") from error


def _check_sizes(files: list[list[Path]], seen: list[list[_Seen]]) -> None:
    first, (height, width) = files[0][0], seen[0][0].shape
    for paths, facts in zip(files, seen, strict=True):
        for path, file in zip(paths, facts, strict=True):
            if file.shape != (height, width):
                raise ValueError(
                    f"images must have one size (height x width), got {height}x{width} in {first} "
                    f"and {file.shape[0]}x{file.shape[1]} in {path}; an image size "
                    "(`image_size`, `--image-size`) makes squares of them."
                )
