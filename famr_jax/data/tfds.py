"""Prepared TFDS image classification data sets, read as NumPy without TensorFlow."""

import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from famr_jax.data import encoded
from famr_jax.data.dataset import Dataset, kept_classes
from famr_jax.data.encoded import Encoded, Example

_RULE = "`name` must be digits, imagenet100, folder:PATH, idx:PATH or a TFDS name"
_MODES = {channels: mode for mode, channels in encoded.CHANNELS.items()}
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


def check_writable(root: str) -> None:
    """Makes a directory for data sets; raises a `ValueError` unless it can be written to."""
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return
    except OSError as error:
        raise ValueError(
            f"`data_dir` must be a directory to write in, got {root}: {error}."
        ) from None


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
    head, colon, path = name.partition(":")
    shown = f"{head}:{Path(path).name}" if only and colon else name
    name, root = "imagenet2012" if only else name, data_root(data_dir)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_RULE}, got {name!r}.")
    try:
        builder = find(name, root)
    except import_tfds().core.DatasetNotFoundError:
        raise ValueError(_why_not_prepared(name, root)) from None
    return read(builder, shown, classes, only=only, image_size=image_size, stream=stream)


def find(name: str, root: str) -> Any:
    """The builder of what is prepared; raises TFDS's own error where nothing is.

    Raises:
        ValueError: A damaged description.
    """
    core = import_tfds().core
    try:
        # From the files alone: a builder's own code may import TensorFlow.
        return core.read_only_builder.builder_from_files(name, data_dir=root)
    except core.DatasetNotFoundError:
        raise
    except Exception as error:  # TFDS passes on what its parsers raise
        place = Path(root) / name.partition(":")[0]
        raise ValueError(
            f"`{name}` must have a whole dataset_info.json and features.json in {place}, got "
            f"{type(error).__name__}: {error}"
        ) from error


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
    raise ValueError(f"{_RULE}, got {name!r}, which TFDS does not know.")


def _why_not_prepared(name: str, root: str) -> str:
    check_known(name)
    return (
        f"`{name}` must be prepared as array_record under `data_dir`, found none in {root}. "
        "Preparing needs TensorFlow, once: `pip install 'famr_jax[prepare]'`, then `python -m "
        f"famr_jax.data prepare {name} --data-dir {root}`."
    )


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
    *sides, channels = builder.info.features[image].shape
    if None not in sides and max(sides) <= (image_size or 0):
        image_size = None
    splits = list(builder.info.splits)
    used = [
        split
        for split in ("train", "test", "validation")
        if split in splits and builder.info.splits[split].num_examples
    ]
    sources = {split: _records(builder, name, split, (image, label)) for split in used}
    labelled = [split for split in used if sources[split].read([0])[0][label] >= 0][:2]
    if len(labelled) < 2 or labelled[0] != "train":
        raise ValueError(f"`{name}` must have splits train and test or validation, got {splits}.")
    train, test = encoded.load(
        name,
        [
            _encoded(sources[split], f"`{split}` of `{name}`", image, label, wanted)
            for split in labelled
        ],
        num_classes=len(wanted),
        mode=_MODES[channels],
        size=image_size,
        stream=stream,
    )
    base = name.partition(":")[0]
    return Dataset(
        name=name,
        train=train,
        test=test,
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


class _Records(NamedTuple):
    """The records of a split, their images encoded.

    Attributes:
        name: The data set's.
        source: TFDS's records by number.
        needed: Features that each must have.
        files: The shards that hold them, in order.
        ends: How many records there are up to the end of each.
    """

    name: str
    source: Any
    needed: tuple[str, ...]
    files: list[Path]
    ends: np.ndarray

    def file(self, row: int) -> Path:
        """The shard that holds a record."""
        return self.files[np.searchsorted(self.ends, row, side="right")]

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The records at some rows.

        Raises:
            ValueError: They are not what was written.
        """
        try:
            found = self.source.__getitems__(rows)
            if any(record[key] is None for record in found for key in self.needed):
                raise ValueError("a record without its features")
        except Exception as error:  # array_record and TFDS raise many types
            files = ", ".join(sorted({str(self.file(row)) for row in rows}))
            raise ValueError(
                f"`{self.name}` must have readable records, got {error} in {files}."
            ) from error
        return found


def _records(builder: Any, name: str, split: str, needed: tuple[str, ...]) -> _Records:
    tfds = import_tfds()
    # Pillow decodes here and not within TFDS: only what is kept, and the same bits whether or not
    # OpenCV is there.
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, value in builder.info.features.items()
        if isinstance(value, tfds.features.Image)
    }
    stored = builder.info.splits[split]
    kind = builder.info.file_format.value
    if kind == "array_record":
        for file, count in zip(stored.filepaths, stored.shard_lengths, strict=True):
            _check_shard(name, Path(file), count)
    try:
        source = builder.as_data_source(split, decoders=skip)
    except NotImplementedError:
        raise ValueError(
            f"`{name}` must be prepared with `--file_format=array_record`, got {kind} in "
            f"{builder.data_path}."
        ) from None
    files = [Path(file) for file in stored.filepaths]
    return _Records(name, source, needed, files, np.cumsum(stored.shard_lengths))


def _check_shard(name: str, file: Path, count: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        held = ArrayRecordReader(str(file)).num_records()
    except Exception as error:  # a missing, cut or overwritten file: many types
        raise ValueError(f"`{name}` must have whole shards, got {error} in {file}.") from error
    if held != count:
        raise ValueError(f"`{name}` must have {count} records, got {held} in {file}.")


def _encoded(
    records: _Records, title: str, image: str, label: str, wanted: Mapping[int, int]
) -> Encoded:
    def read(rows):
        return [
            Example(record[image], wanted.get(record[label]), record.get("id"))
            for record in records.read(rows)
        ]

    def where(row):
        return f"record {row} of {title} in {records.file(row)}"

    return Encoded(title, len(records.source), read, where)
