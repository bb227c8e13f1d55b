"""Image folders: PATH/split/class/image, with an optional PATH/classes.txt of readable names."""

import os
import re
from pathlib import Path

from famr_jax.data import encoded
from famr_jax.data.dataset import Dataset, check_text, kept_classes
from famr_jax.data.encoded import Encoded, Example

_TEST_NAMES = ("test", "val", "valid", "validation")


def load_folder(
    path: str | os.PathLike,
    classes: int | None = None,
    *,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads an image folder: `train`, and the first of the test splits that has labelled images.

    Classes are the names of the directories, sorted as people count (2 before 10), images are
    sorted by file name; both skip hidden files. Images become RGB, or stay grey (one channel) if
    all of both splits are. Every file is read once, for its hash, size and mode, and decoded when
    its image is asked for.

    Args:
        path: The directory that holds the split directories and perhaps `classes.txt` (a line a
            class: directory, tab, readable name). Test splits are `test`, `val`, `valid` and
            `validation`, in this order.
        classes: Keep this many of the first classes; others are not read.
        image_size: Make squares of this side of the images, whatever their size.
        stream: Leave the images on disk.

    Raises:
        ValueError: If directories are missing or differ, or a file is not an image of the one size.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"`folder:PATH` must be a directory, got {root}.")
    name = f"folder:{root.resolve().name}"
    check_text("the folder's name", name)
    present = [split for split in _TEST_NAMES if (root / split).is_dir()]
    if not (root / "train").is_dir() or not present:
        rule = f"must hold train and one of {', '.join(_TEST_NAMES)}"
        raise ValueError(f"{root} {rule}, got {[entry.name for entry in _visible(root)]}.")
    classes_there = [entry.name for entry in _visible(root / "train")]
    # A `test` without labels has none of the class directories; an empty one may have them.
    labelled = [
        split
        for split in present
        if any(_holds_images(root / split / class_id) for class_id in classes_there)
    ]
    directories = [root / "train", root / (labelled or present)[0]]
    ids = _same_classes(*directories)
    ids = ids[: kept_classes(classes, len(ids))]
    names = _readable_names(root / "classes.txt", ids)
    splits = [_files(directory, ids) for directory in directories]
    train, test = encoded.load(
        name, splits, num_classes=len(ids), mode=None, size=image_size, stream=stream
    )
    images = [example.image for example in splits[0].read(range(splits[0].count))]
    files = tuple(f"{image.parent.name}/{image.name}" for image in images)
    return Dataset(name, train, test, names, mirrored=True, files=files)


def _visible(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _holds_images(directory: Path) -> bool:
    return directory.is_dir() and bool(_visible(directory))


def _counting(directory: Path) -> str:
    """A name with its numbers padded, so that 2 sorts before 10 and all else as it did."""
    return re.sub("[0-9]+", lambda number: number[0].zfill(255), directory.name)


def _same_classes(train: Path, test: Path) -> list[str]:
    ids = []
    for split in (train, test):
        entries = sorted(_visible(split), key=_counting)
        for entry in entries:
            check_text(f"names of classes in {split}", entry.name)
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
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} must be readable text in UTF-8, got: {error}.") from None
    names = {}
    for line in text.splitlines():
        class_id, tab, name = line.partition("\t")
        if line and not tab:
            raise ValueError(f"{file} must hold lines of directory, tab, name; got {line!r}.")
        names[class_id] = name
    missing = [class_id for class_id in ids if class_id not in names]
    if missing:
        raise ValueError(f"{file} must name every class, got no line for {missing[:5]}.")
    return tuple(names[class_id] for class_id in ids)


def _files(directory: Path, ids: list[str]) -> Encoded:
    examples = []
    for label, class_id in enumerate(ids):
        found = _visible(directory / class_id)
        if not found:
            raise ValueError(f"{directory / class_id} must hold images, got none.")
        examples += [Example(path, label) for path in found]

    def read(rows):
        return [examples[row] for row in rows]

    return Encoded(str(directory), len(examples), read, lambda row: f"`{examples[row].image}`")
