"""Image folders: PATH/split/class/image, with an optional PATH/classes.txt of readable names."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

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
    share: tuple[float, int] | None = None,
) -> Dataset:
    """Loads an image folder: `train`, and the first of the test splits that has labelled images.

    Classes are the names of the directories, sorted as people count (2 before 10), images are
    sorted by file name. Hidden files are skipped; and, with a warning, files beside the classes and
    those that are no images by the ends of their names, as Thumbs.db. Images become RGB, or stay
    grey (one channel) if all of both splits are. Every file is read once, for its hash, size and
    mode, and decoded when its image is asked for.

    Args:
        path: The directory that holds the split directories and perhaps `classes.txt` (a line a
            class: directory, tab, readable name). Test splits are `test`, `val`, `valid` and
            `validation`, in this order.
        classes: Keep this many of the first classes; others are not read.
        image_size: Make squares of this side of the images, whatever their size.
        stream: Leave the images on disk.
        share: Share of the test split and seed of its draw, of each class of PATH/train or, without
            it, of PATH; see `parse_share`. None where there is a test split.

    Raises:
        ValueError: If directories are missing or differ, or a file is not an image of the one size.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"`folder:PATH` must be a directory, got {root}.")
    kind = "folder" if share is None else f"folder/{share[0]:g}/{share[1]}"
    name = f"{kind}:{root.resolve().name}"
    check_text("the folder's name", name)
    directories = _splits(root, share)
    ids = _same_classes(*directories)
    ids = ids[: kept_classes(classes, len(ids))]
    names = _readable_names(root / "classes.txt", ids)
    found = [_files(directory, ids) for directory in directories]
    _tell(root, [stray for _, strays in found for stray in strays])
    held = [examples for examples, _ in found]
    if share is not None:
        held = _drawn(held[0], *share)
    splits = [_encoded(str(d), each) for d, each in zip((*directories, root), held, strict=False)]
    train, test = encoded.load(
        name, splits, num_classes=len(ids), mode=None, size=image_size, stream=stream
    )
    images = (Path(str(example.image)) for example in held[0])
    files = tuple(f"{image.parent.name}/{image.name}" for image in images)
    return Dataset(name, train, test, names, mirrored=True, files=files)


def parse_share(kind: str) -> tuple[float, int]:
    """The share and the seed that "folder/0.2/7" or "folder/0.2", whose seed is 0, states.

    Raises:
        ValueError: Another form, or a share that is not between 0 and 1.
    """
    match = re.fullmatch(r"folder/(0?\.\d+)(?:/(\d+))?", kind)
    if match is None or not 0 < float(match[1]) < 1:
        rule = "must state a share between 0 and 1, and perhaps a seed, as in folder/0.2/7:PATH"
        raise ValueError(f"`folder/SHARE/SEED:PATH` {rule}, got {kind}.")
    return float(match[1]), int(match[2] or 0)


def _splits(root: Path, share: tuple[float, int] | None) -> list[Path]:
    """The directory of the training split and that of the test split, if it is not to be drawn."""
    train = root / "train"
    present = [split for split in _TEST_NAMES if (root / split).is_dir()]
    if share is not None and not present and not train.is_dir():
        return [root]
    if not train.is_dir() or not (present or share):
        rule = f"must hold train and one of {', '.join(_TEST_NAMES)}"
        cure = "; folder/0.2:PATH draws a fifth of each class for a test split"
        raise ValueError(f"{root} {rule}{cure}, got {[entry.name for entry in _visible(root)]}.")
    classes_there = [entry.name for entry in _visible(train)]
    # A `test` without labels has none of the class directories; an empty one may have them.
    labelled = [
        split
        for split in present
        if any(_holds_images(root / split / class_id) for class_id in classes_there)
    ]
    if share is None:
        return [train, root / (labelled or present)[0]]
    if labelled:
        raise ValueError(f"{root} must have no test split to have one drawn, got {labelled[0]}.")
    return [train]


def _drawn(examples: list[Example], share: float, seed: int) -> list[list[Example]]:
    """What is left of a class, and a share of it: rounded, one image at least on either side."""
    labels = np.array([example.label for example in examples])
    test = np.zeros(len(examples), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            where = examples[rows[0]].image
            raise ValueError(
                f"the class of {where} must hold two images to be split, got {len(rows)}."
            )
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        # By the class too, so that its draw is the same whichever classes are kept.
        drawn = np.random.default_rng([seed, label]).permutation(rows)[:count]
        test[drawn] = True
    return [[examples[row] for row in np.flatnonzero(mask)] for mask in (~test, test)]


def _visible(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _is_stray(file: Path) -> bool:
    """Whether the end of a file's name says that it is no image; without an end it may be one."""
    Image.init()
    return bool(file.suffix) and file.suffix.lower() not in Image.registered_extensions()


def _tell(root: Path, strays: list[Path]) -> None:
    if strays:
        names = ", ".join(str(stray.relative_to(root)) for stray in strays[:5])
        more = "" if len(strays) <= 5 else f" and {len(strays) - 5} more"
        warnings.warn(f"{root}: skipped what is no image: {names}{more}.", stacklevel=4)


def _holds_images(directory: Path) -> bool:
    return directory.is_dir() and bool(_visible(directory))


def _counting(directory: Path) -> str:
    """A name with its numbers padded, so that 2 sorts before 10 and all else as it did."""
    return re.sub("[0-9]+", lambda number: number[0].zfill(255), directory.name)


def _same_classes(train: Path, *tests: Path) -> list[str]:
    ids = []
    for split in (train, *tests):
        entries = sorted(filter(Path.is_dir, _visible(split)), key=_counting)
        for entry in entries:
            check_text(f"names of classes in {split}", entry.name)
        ids.append([entry.name for entry in entries])
    if tests and ids[0] != ids[1]:
        test = tests[0]
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
        if line and class_id in names:
            raise ValueError(f"{file} must name each class once, got {class_id!r} twice.")
        names[class_id] = name
    missing = [class_id for class_id in ids if class_id not in names]
    if missing:
        raise ValueError(f"{file} must name every class, got no line for {missing[:5]}.")
    return tuple(names[class_id] for class_id in ids)


def _files(directory: Path, ids: list[str]) -> tuple[list[Example], list[Path]]:
    """The images of the classes, and the files that are none."""
    examples = []
    strays = [entry for entry in _visible(directory) if _is_beside(entry)]
    for label, class_id in enumerate(ids):
        found = _visible(directory / class_id)
        wrong = [file for file in found if file.is_file() and _is_stray(file)]
        strays += wrong
        images = [file for file in found if file not in wrong]
        if not images:
            raise ValueError(f"{directory / class_id} must hold images, got none.")
        examples += [Example(path, label) for path in images]
    return examples, strays


def _is_beside(entry: Path) -> bool:
    return not entry.is_dir() and entry.name != "classes.txt"


def _encoded(title: str, examples: list[Example]) -> Encoded:
    def read(rows):
        return [examples[row] for row in rows]

    return Encoded(title, len(examples), read, lambda row: f"`{examples[row].image}`")
