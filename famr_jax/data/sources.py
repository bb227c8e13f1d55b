"""The entries to all data sets: by name (`load`), or from arrays at hand (`from_arrays`)."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from famr_jax.data.dataset import Dataset, Split
from famr_jax.data.imagenet import selected
from famr_jax.types import check_count


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    classes: int | None = None,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads a data set as uint8 NumPy arrays, the same arrays in the same order every time.

    Args:
        name: "digits" (handwritten, 8x8; prepared under `data_dir` on first use), the TFDS name of
            a prepared image classification data set ("cifar100", "emnist/letters"), "imagenet100"
            or "imagenet100:FILE" (the classes of `imagenet2012` whose WordNet ids are in the usual
            list or in a file, numbered in the order of their ids), "folder:PATH" for images in
            PATH/split/class/image, "folder/0.2/7:PATH" for a folder without a test split, of whose
            images a share of 0.2 of each class, drawn by the seed 7, is the test split, or
            "idx:PATH" for the four files of MNIST and its relatives.
        data_dir: Where TFDS keeps its data; by default the environment variable TFDS_DATA_DIR, else
            ~/tensorflow_datasets. Folders and idx files do not use it.
        classes: Keep this many of the first classes; None for all.
        image_size: Make squares of this side of the images: the largest in the middle, resized by
            Pillow's bicubic filter. Needed where images differ in size; where all have one size
            that is no larger, they stay as they are.
        stream: Leave the images on disk, to be read when asked for; one pass over the files finds
            their labels and hashes.

    Raises:
        ValueError: If the data set is unknown, not prepared, broken or without classes and images
            of one size; or if `classes` is not between 2 and the number of classes.
    """
    if image_size is not None:
        check_count("image_size", image_size)
    # Imported here: these modules bring tensorflow_datasets, scikit-learn and pillow.
    kind, _, path = name.partition(":")
    if (first := kind.split("/")[0]) == "folder":
        from famr_jax.data.folder import load_folder, parse_share

        share = parse_share(kind) if kind != first else None
        return load_folder(path, classes, image_size=image_size, stream=stream, share=share)
    if kind == "idx":
        from famr_jax.data.idx import load_idx

        return load_idx(path, classes, image_size=image_size, stream=stream)
    if name == "digits":
        from famr_jax.data.digits import load_digits

        return load_digits(data_dir, classes, image_size=image_size, stream=stream)
    from famr_jax.data.tfds import load_tfds

    only = selected(path) if kind == "imagenet100" else None
    return load_tfds(name, data_dir, classes, only=only, image_size=image_size, stream=stream)


def from_arrays(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    test: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    mirrored: bool = False,
) -> Dataset:
    """Makes a data set of arrays in memory, as those of other libraries.

        from_arrays(train.data, train.targets, test=(test.data, test.targets))  # torchvision
        from_arrays(train["image"], train["label"], test=(test["image"], test["label"]))

    The latter of Hugging Face's `datasets`, whose names of columns differ from set to set.

    Args:
        x: Training images, uint8 `[n, height, width, channels]`, or `[n, height, width]` for grey;
            or pictures of Pillow, all of one size.
        labels: Their classes, `[n]`, of any integer dtype.
        test: Test images and their classes, likewise.
        class_names: Readable names, the position is the label; the numbers up to the largest label
            if not given.
        name: What reports call the data set.
        mirrored: Whether a mirrored image keeps its class, so that training may mirror it.

    Raises:
        ValueError: Arrays of another dtype or shape, unequal lengths, or a label out of range.
    """
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise ValueError(f"`test` must be a pair of images and labels, got {type(test).__name__}.")
    most = _MOST_CLASSES if class_names is None else len(class_names)
    train = _split(x, labels, most, names=("x", "labels"))
    held_out = _split(*test, most, names=("test[0]", "test[1]"))
    if class_names is None:
        largest = max(train.labels.max(), held_out.labels.max())
        class_names = tuple(map(str, range(largest + 1)))
    return Dataset(name, train, held_out, tuple(class_names), mirrored)


_MOST_CLASSES = 2**16
"""Labels beyond these are taken for something else than classes, unless they have names."""


def _split(x: Any, labels: Any, num_classes: int, *, names: tuple[str, str]) -> Split:
    if hasattr(x, "__len__") and not hasattr(x, "dtype"):
        x = list(x)
        for mode in {getattr(picture, "mode", "RGB") for picture in x} - {"L", "RGB", "RGBA"}:
            cure = 'picture.convert("RGB")'
            raise ValueError(
                f"`{names[0]}` must be pictures in L, RGB or RGBA, got {mode}: {cure}."
            )
    try:
        x = np.asarray(x)
    except ValueError as error:
        cure = "resize or convert them first, or `load` a folder with an `image_size`"
        rule = "must be images of one size and as many channels"
        raise ValueError(f"`{names[0]}` {rule}, got several: {cure}.") from error
    labels = np.asarray(labels)
    if x.dtype != np.uint8:
        cure = "np.rint(255 * x).astype(np.uint8) makes bytes of values in [0, 1]"
        raise ValueError(f"`{names[0]}` must be uint8 in 0..255, got {x.dtype}: {cure}.")
    if x.ndim not in (3, 4) or not x.size:
        rule = "must have the shape [n, height, width] or [n, height, width, channels]"
        raise ValueError(f"`{names[0]}` {rule} and a pixel, got {list(x.shape)}.")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        cure = "np.moveaxis(x, 1, -1) moves channels to the end"
        raise ValueError(
            f"`{names[0]}` must be [n, height, width, channels], got {list(x.shape)}: {cure}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`{names[1]}` must be integers, got {labels.dtype}.")
    if labels.shape != x.shape[:1]:
        raise ValueError(f"`{names[1]}` must have the shape [{len(x)}], got {list(labels.shape)}.")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < num_classes:
            raise ValueError(f"`{names[1]}` must lie in [0, {num_classes}), got {label}.")
    return Split(x if x.ndim == 4 else x[..., None], labels.astype(np.int32))
