"""Image folders: PATH/split/class/image, with an optional PATH/classes.txt of readable names."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from famr_jax.data.dataset import Dataset, Split, kept_classes

_TEST_NAMES = ("test", "val", "validation")


def load_folder(path: str | os.PathLike, classes: int | None = None) -> Dataset:
    """Loads an image folder: `train` and the first of `test`, `val`, `validation` that is there.

    Classes are the sorted names of the directories, images are sorted by file name; both skip
    hidden files. Images become RGB, or stay grey (one channel) if all of both splits are.

    Args:
        path: The directory that holds the split directories and perhaps `classes.txt` (a line a
            class: directory, tab, readable name).
        classes: Keep this many of the first classes; others are not read.

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
    images, labels = zip(*(_read_split(split, ids) for split in splits), strict=True)
    _check_sizes(*images)
    grey = all(pixels.ndim == 2 for split in images for _, pixels in split)
    train, test = (
        Split(np.stack([_with_channels(pixels, grey) for _, pixels in split]), label)
        for split, label in zip(images, labels, strict=True)
    )
    return Dataset(f"folder:{root.resolve().name}", train, test, names, mirrored=True)


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


def _read_split(split: Path, ids: list[str]) -> tuple[list[tuple[Path, np.ndarray]], np.ndarray]:
    images, labels = [], []
    for label, class_id in enumerate(ids):
        files = _visible(split / class_id)
        if not files:
            raise ValueError(f"{split / class_id} must hold images, got none.")
        images += [(file, _decode(file)) for file in files]
        labels += [label] * len(files)
    return images, np.array(labels, np.int32)


def _decode(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            if picture.mode[0] in "IF":
                raise ValueError(f"mode {picture.mode} is not 8-bit")
            if "transparency" in picture.info:
                picture = picture.convert("RGBA")
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    # Pillow's decoders raise whatever they stumble on: OSError, SyntaxError, ValueError, ...
    except Exception as error:
        raise ValueError(f"`{file}` must be a readable 8-bit image, got {error}.") from error


def _check_sizes(*splits: list[tuple[Path, np.ndarray]]):
    first, reference = splits[0][0]
    for images in splits:
        for file, pixels in images:
            if pixels.shape[:2] != reference.shape[:2]:
                (height, width), (other_height, other_width) = reference.shape[:2], pixels.shape[:2]
                raise ValueError(
                    f"images must have one size (height x width), got {height}x{width} in {first} "
                    f"and {other_height}x{other_width} in {file}."
                )


def _with_channels(pixels: np.ndarray, grey: bool) -> np.ndarray:
    if pixels.ndim == 3:
        return pixels
    return pixels[..., None] if grey else np.repeat(pixels[..., None], 3, axis=-1)
