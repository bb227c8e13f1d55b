"""One entry to all data sets: `load("digits")`, `load("cifar100")`, `load("folder:PATH")`."""

import os

from famr_jax.data.dataset import Dataset
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
            list or in a file, numbered in the order of their ids), or "folder:PATH" for images in
            PATH/split/class/image.
        data_dir: Where TFDS keeps its data; by default the environment variable TFDS_DATA_DIR, else
            ~/tensorflow_datasets. A folder does not use it.
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
    how = {"image_size": image_size, "stream": stream}
    # Imported here: these modules bring tensorflow_datasets, scikit-learn and pillow.
    kind, _, path = name.partition(":")
    if kind == "folder":
        from famr_jax.data.folder import load_folder

        return load_folder(path, classes, **how)
    if name == "digits":
        from famr_jax.data.digits import load_digits

        return load_digits(data_dir, classes, **how)
    from famr_jax.data.tfds import load_tfds

    if kind == "imagenet100":
        return load_tfds(name, data_dir, classes, only=selected(path), **how)
    return load_tfds(name, data_dir, classes, **how)
