"""One entry to all data sets: `load("digits")`, `load("cifar100")`, `load("folder:PATH")`."""

import os

from famr_jax.data.dataset import Dataset


def load(
    name: str, *, data_dir: str | os.PathLike | None = None, classes: int | None = None
) -> Dataset:
    """Loads a data set as uint8 NumPy arrays, the same arrays in the same order every time.

    Args:
        name: "digits" (handwritten, 8x8; prepared under `data_dir` on first use), the TFDS name of
            a prepared image classification data set ("cifar100", "emnist/letters"), or
            "folder:PATH" for images in PATH/split/class/image.
        data_dir: Where TFDS keeps its data; by default the environment variable TFDS_DATA_DIR, else
            ~/tensorflow_datasets. A folder does not use it.
        classes: Keep this many of the first classes; None for all.

    Raises:
        ValueError: If the data set is unknown, not prepared, broken or without classes and images
            of one size; or if `classes` is not between 2 and the number of classes.
    """
    # Imported here: these modules bring tensorflow_datasets, scikit-learn and pillow.
    kind, _, path = name.partition(":")
    if kind == "folder":
        from famr_jax.data.folder import load_folder

        return load_folder(path, classes)
    if name == "digits":
        from famr_jax.data.digits import load_digits

        return load_digits(data_dir, classes)
    from famr_jax.data.tfds import load_tfds

    return load_tfds(name, data_dir, classes)
