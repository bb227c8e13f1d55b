"""Preparing TFDS data sets, once and with TensorFlow, in the form that this library reads."""

import contextlib
import importlib.util
import os

from famr_jax.data.tfds import check_known, check_writable, data_root, find, import_tfds


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> str:
    """Downloads and writes a data set as array_record by TFDS, which shows its progress.

    Does nothing where it is prepared already. Some data sets want files that must be fetched by
    hand: TFDS then says which, and where they go.

    Args:
        name: A TFDS name; "imagenet100" is a part of "imagenet2012", which it prepares.
        data_dir: As in `load`.

    Returns:
        A line that says what is there.

    Raises:
        ValueError: An unknown name, a directory that cannot be written to, no TensorFlow, or
            whatever TFDS ends with.
    """
    if name == "digits" or name.startswith(("folder:", "folder/", "idx:")):
        raise ValueError(f"`name` must be a TFDS name, got {name!r}, which needs no preparing.")
    name = "imagenet2012" if name.partition(":")[0] == "imagenet100" else name
    root = data_root(data_dir)
    check_known(name)
    tfds = import_tfds()
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        return _described(find(name, root), root)
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"Preparing `{name}` needs TensorFlow, which is not installed: "
            "`pip install 'famr_jax[prepare]'`. Reading it afterwards does not."
        )
    check_writable(root)
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    # TFDS passes on what its readers, its checks and the network raise.
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"`{name}` could not be prepared in {root}. {words}") from error
    return _described(find(name, root), root)


def _described(builder, root: str) -> str:
    form = builder.info.file_format.value
    if form != "array_record":
        where = f"{builder.data_path}, which is {form}"
        raise ValueError(f"`{builder.name}` must be array_record, got {where}: move it away.")
    sizes = [f"{split.num_examples} {name}" for name, split in builder.info.splits.items()]
    return f"{builder.info.full_name}: {', '.join(sizes)} examples in {root}"
