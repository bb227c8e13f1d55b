"""Prepared TFDS image classification data sets, read as NumPy without TensorFlow."""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from famr_jax.data.dataset import Dataset, Split, kept_classes
from famr_jax.data.pictures import to_pixels
from famr_jax.data.stream import OnDisk, read_ahead

_CHUNK = 128  # records a thread reads at a time
_WHAT_NAMES_A_SET = "`name` must be digits, imagenet100, folder:PATH or a TFDS name"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> pillow's name
_NAME = re.compile(r"(\w+)(/[^:/]+)?(:[\d.]+)?", re.ASCII)
# Mirrored, these would show another sign or none.
_CHARACTERS = {
    "binary_alpha_digits",
    "cmaterdb",
    "digits",
    "emnist",
    "kmnist",
    "mnist",
    "mnist_corrupted",
    "omniglot",
    "svhn_cropped",
    "visual_domain_decathlon/gtsrb",
    "visual_domain_decathlon/omniglot",
    "visual_domain_decathlon/svhn",
}


def import_tfds() -> ModuleType:
    """`tensorflow_datasets`, without the warnings that its import gives off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets
    return tensorflow_datasets


def data_root(data_dir: str | os.PathLike | None) -> str:
    """The directory that holds the data sets: as given, else TFDS's own default."""
    found = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(os.fspath(found))


def load_tfds(
    name: str,
    data_dir: str | os.PathLike | None,
    classes: int | None,
    *,
    only: Sequence[str] | None = None,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads a prepared data set by its TFDS name; see `famr_jax.data.load`.

    With `only`, the classes of `imagenet2012` of these names, in their order.

    Raises:
        ValueError: If TFDS knows no such name, or nothing is prepared under `data_dir`.
    """
    builder = prepared("imagenet2012" if only else name, data_dir)
    head, colon, path = name.partition(":")
    shown = f"{head}:{Path(path).name}" if only and colon else name
    return read(builder, shown, classes, only=only, image_size=image_size, stream=stream)


def prepared(name: str, data_dir: str | os.PathLike | None) -> Any:
    """The builder of what is prepared under `data_dir` by a TFDS name.

    Raises:
        ValueError: If TFDS knows no such name, or nothing is prepared under `data_dir`.
    """
    tfds, root = import_tfds(), data_root(data_dir)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_WHAT_NAMES_A_SET}, got {name!r}.")
    try:
        return find(name, root)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(_why_not_prepared(name, root)) from None


def find(name: str, root: str) -> Any:
    """The builder of what is prepared; raises TFDS's own error where nothing is."""
    # From the files alone: a builder's own code may import TensorFlow.
    return import_tfds().core.read_only_builder.builder_from_files(name, data_dir=root)


def check_known(name: str) -> None:
    """Raises a `ValueError` unless TFDS knows the name."""
    tfds, match = import_tfds(), _NAME.fullmatch(name)
    try:
        if match:
            tfds.builder_cls(match[1])
            return
    except ImportError:  # known, but its code needs TensorFlow
        return
    except tfds.core.DatasetNotFoundError:
        pass
    raise ValueError(f"{_WHAT_NAMES_A_SET}, got {name!r}, which TFDS does not know.")


def _why_not_prepared(name: str, root: str) -> str:
    check_known(name)
    return (
        f"`{name}` must be prepared as array_record under `data_dir`, found none in {root}. "
        "Preparing needs TensorFlow, once: `pip install 'famr_jax[prepare]'`, then `python -m "
        f"famr_jax.data prepare {name} --data-dir {root}`."
    )


class _Form(NamedTuple):
    """How the records of a data set are read."""

    name: str
    features: Any
    image: str
    label: str
    size: int | None
    wanted: dict[int, int]  # stored label -> label

    @property
    def mode(self) -> str:
        return _MODES[self.features[self.image].shape[-1]]

    def pixels(self, record: dict[str, Any]) -> np.ndarray:
        with Image.open(io.BytesIO(record[self.image])) as picture:
            return to_pixels(picture, self.mode, self.size)


def read(
    builder: Any,
    name: str,
    classes: int | None,
    *,
    only: Sequence[str] | None = None,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Reads the splits of a prepared TFDS builder: train, and test or else validation.

    Args:
        builder: A `tfds.core.DatasetBuilder` with one image and one class label an example.
        name: The data set's name.
        classes: Keep this many of the first classes; the images of others are not decoded.
        only: Names of the classes that there are, in order; all if not given.
        image_size: Make squares of this side of the images.
        stream: Leave the images on disk.

    Returns:
        The data set, its examples ordered by their feature `id` where they have one (records are
        stored shuffled), else as they are stored. A test split without labels does not count.
    """
    image, label = _image_and_label(builder, name)
    stored = builder.info.features[label].names
    missing = [each for each in only or () if each not in stored]
    if missing:
        raise ValueError(f"`{name}` must list classes of {builder.name}, got {missing[:5]}.")
    numbers = range(len(stored)) if only is None else [stored.index(each) for each in only]
    numbers = numbers[: kept_classes(classes, len(numbers))]
    wanted = {number: i for i, number in enumerate(numbers)}
    sides = builder.info.features[image].shape[:2]
    if None not in sides and max(sides) <= (image_size or 0):
        image_size = None
    form = _Form(name, builder.info.features, image, label, image_size, wanted)
    splits = list(builder.info.splits)
    used = [split for split in ("train", "test", "validation") if split in splits]
    found = ((split, _records(builder, form, split)) for split in used)
    sources = {split: records for split, records in found if records[0][label] >= 0}
    test = next((split for split in ("test", "validation") if split in sources), None)
    if "train" not in sources or test is None:
        raise ValueError(f"`{name}` must have splits train and test or validation, got {splits}.")
    base = name.partition(":")[0]
    read_split = _on_disk if stream else _in_memory
    return Dataset(
        name=name,
        train=read_split(form, "train", sources["train"]),
        test=read_split(form, test, sources[test]),
        class_names=tuple(stored[number] for number in numbers),
        mirrored=_CHARACTERS.isdisjoint((base, base.partition("/")[0])),
    )


def _image_and_label(builder: Any, name: str) -> tuple[str, str]:
    tfds = import_tfds()
    features = dict(sorted(builder.info.features.items()))  # TFDS's order differs from run to run
    supervised = builder.info.supervised_keys or ()
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    labels = [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
    alone = images if len(images) == 1 else []
    image = next((key for key in (*supervised[:1], "image", *alone) if key in images), None)
    label = next((key for key in ("label", *supervised[1:2]) if key in labels), None)
    if image is None or label is None:
        raise ValueError(f"`{name}` must have an image and a class label, got {list(features)}.")
    if features[image].np_dtype != np.uint8 or features[image].shape[-1] not in _MODES:
        raise ValueError(f"`{name}` must have 8-bit images, got {features[image]}.")
    return image, label


def _records(builder: Any, form: _Form, split: str) -> Any:
    """The records of a split by number, their images encoded."""
    tfds = import_tfds()
    # Pillow decodes here and not within TFDS: only what is kept, and the same bits whether or not
    # OpenCV is there.
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, value in form.features.items()
        if isinstance(value, tfds.features.Image)
    }
    try:
        return builder.as_data_source(split, decoders=skip)
    except NotImplementedError:
        kind = builder.info.file_format.value
        raise ValueError(
            f"`{form.name}` must be prepared with `--file_format=array_record`, got {kind} in "
            f"{builder.data_path}."
        ) from None


def _wanted(form: _Form, split: str, records: Any, look: Any) -> tuple[list, np.ndarray, Iterator]:
    """Rows, labels and `look(record)` of every record of a wanted class, in order."""

    def piece(rows):
        found = zip(rows, records.__getitems__(rows), strict=True)
        return [
            (row, form.wanted[record[form.label]], record.get("id"), look(record))
            for row, record in found
            if record[form.label] in form.wanted
        ]

    starts = range(0, len(records), _CHUNK)
    pieces = (range(start, min(start + _CHUNK, len(records))) for start in starts)
    kept = [each for found in read_ahead(piece, pieces) for each in found]
    if not kept:
        many = len(form.wanted)
        raise ValueError(
            f"`{split}` of `{form.name}` must hold images of the {many} classes, got none."
        )
    if "id" in form.features:
        kept.sort(key=lambda each: each[2])
    rows, labels, _, seen = zip(*kept, strict=True)
    return rows, np.array(labels, np.int32), seen


def _in_memory(form: _Form, split: str, records: Any) -> Split:
    _, labels, images = _wanted(form, split, records, form.pixels)
    _check_sizes(form, [pixels.shape for pixels in images])
    return Split(np.stack(images), labels)


def _on_disk(form: _Form, split: str, records: Any) -> OnDisk:
    def look(record):
        digest = hashlib.blake2b(record[form.image], digest_size=16).digest()
        return digest, _shape(form, record)

    rows, labels, seen = _wanted(form, split, records, look)
    digests, shapes = zip(*seen, strict=True)
    _check_sizes(form, shapes)
    digests = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
    read = partial(_read, form, split, records)
    return OnDisk(read, shapes[0], labels, digests, np.array(rows))


def _shape(form: _Form, record: dict[str, Any]) -> tuple[int, int, int]:
    """The shape of a record's pixels, which are not decoded for it."""
    *sides, channels = form.features[form.image].shape
    if form.size is not None:
        sides = (form.size, form.size)
    elif None in sides:
        with Image.open(io.BytesIO(record[form.image])) as picture:
            sides = picture.size[::-1]
    return (*sides, channels)


def _check_sizes(form: _Form, shapes: Sequence[tuple[int, ...]]) -> None:
    for shape in shapes:
        if shape != shapes[0]:
            raise ValueError(
                f"images of `{form.name}` must have one size, got {shapes[0]} and {shape}; an "
                "image size (`image_size`, `--image-size`) makes squares of them."
            )


def _read(form: _Form, split: str, records: Any, row: int) -> np.ndarray:
    try:
        return form.pixels(records[int(row)])
    except Exception as error:  # whatever the reader or Pillow stumbles on
        what = f"record {row} of `{split}` of `{form.name}`"
        raise ValueError(f"{what} must be a readable image, got {error}.") from error
