"""Prepared TFDS image classification data sets, read as NumPy without TensorFlow."""

import io
import os
import re
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from famr_jax.data.dataset import Dataset, Split, kept_classes

_CHUNK = 2048  # records read at a time
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


def load_tfds(name: str, data_dir: str | os.PathLike | None, classes: int | None) -> Dataset:
    """Loads a prepared data set by its TFDS name; see `famr_jax.data.load`.

    Raises:
        ValueError: If TFDS knows no such name, or nothing is prepared under `data_dir`.
    """
    tfds = import_tfds()
    root = data_root(data_dir)
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"`name` must be digits, folder:PATH or a TFDS name, got {name!r}.")
    try:
        # From the files alone: a builder's own code may import TensorFlow.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(_why_not_found(tfds, name, match[1], root)) from None
    return read(builder, name, classes)


def _why_not_found(tfds: ModuleType, name: str, base: str, root: str) -> str:
    try:
        tfds.builder_cls(base)
    except tfds.core.DatasetNotFoundError:
        return (
            f"`name` must be digits, folder:PATH or a TFDS name, got {name!r}, which TFDS does not "
            f"know and which is not prepared in {root}."
        )
    except ImportError:  # known, but its code needs TensorFlow
        pass
    return (
        f"`{name}` must be prepared as array_record under `data_dir`, found none in {root}. "
        f"Preparing needs TensorFlow, once: `pip install tensorflow-cpu`, then `tfds build {name} "
        f"--data_dir={root} --file_format=array_record`."
    )


def read(builder: Any, name: str, classes: int | None) -> Dataset:
    """Reads the splits of a prepared TFDS builder: train, and test or else validation.

    Args:
        builder: A `tfds.core.DatasetBuilder` with one image and one class label an example.
        name: The data set's name.
        classes: Keep this many of the first classes; the images of others are not decoded.

    Returns:
        The data set, its examples ordered by their feature `id` where they have one (records are
        stored shuffled), else as they are stored.
    """
    splits = builder.info.splits
    test = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test is None:
        raise ValueError(
            f"`{name}` must have splits train and test or validation, got {list(splits)}."
        )
    image, label = _image_and_label(builder, name)
    class_names = builder.info.features[label].names
    kept = kept_classes(classes, len(class_names))
    base = name.partition(":")[0]
    return Dataset(
        name=name,
        train=_read_split(builder, name, "train", image, label, kept),
        test=_read_split(builder, name, test, image, label, kept),
        class_names=tuple(class_names[:kept]),
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


def _read_split(builder: Any, name: str, split: str, image: str, label: str, kept: int) -> Split:
    tfds = import_tfds()
    features = builder.info.features
    # Pillow decodes here and not within TFDS: only what is kept, and the same bits whether or not
    # OpenCV is there.
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, value in features.items()
        if isinstance(value, tfds.features.Image)
    }
    try:
        source = builder.as_data_source(split, decoders=skip)
    except NotImplementedError:
        form = builder.info.file_format.value
        raise ValueError(
            f"`{name}` must be prepared with `--file_format=array_record`, got {form} in "
            f"{builder.data_path}."
        ) from None
    mode = _MODES[features[image].shape[-1]]
    x, labels, ids = None, [], []
    for start in range(0, len(source), _CHUNK):
        for record in source.__getitems__(range(start, min(start + _CHUNK, len(source)))):
            if record[label] >= kept:
                continue
            pixels = _decode(record[image], mode)
            if x is None:
                x = np.empty((len(source), *pixels.shape), np.uint8)
            if pixels.shape != x.shape[1:]:
                both = f"{x.shape[1:]} and {pixels.shape}"
                raise ValueError(f"images of `{name}` must have one size, got {both}.")
            x[len(labels)] = pixels
            labels.append(record[label])
            ids.append(record.get("id"))
    if x is None:
        raise ValueError(f"`{split}` of `{name}` must hold images of the {kept} classes, got none.")
    x, labels = x[: len(labels)], np.array(labels, np.int32)
    if "id" in features:
        order = np.argsort(np.array(ids), kind="stable")
        x, labels = x[order], labels[order]
    return Split(x, labels)


def _decode(encoded: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as picture:
        pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]
