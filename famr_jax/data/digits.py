"""Scikit-learn's handwritten digits as a TFDS data set, prepared on first use."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from famr_jax.data.dataset import Dataset
from famr_jax.data.tfds import check_writable, data_root, import_tfds, read

tfds = import_tfds()


# TFDS is found when this module is imported, and so no type to a checker.
class _LocalInfo(tfds.core.DatasetInfo):  # type: ignore
    def initialize_from_bucket(self):
        """Does nothing: TFDS would look for these digits in its cloud and leave a directory."""


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
    """1797 handwritten digits, 8x8 grey, in a fixed stratified split of 1437 and 360."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        return _LocalInfo(
            builder=self,
            description="The handwritten digits of scikit-learn, 0..16 scaled to 0..255.",
            features=tfds.features.FeaturesDict(
                {
                    "id": np.int64,  # row in scikit-learn's arrays
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:  # noqa: ARG002
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        rows = np.arange(len(labels))
        train, test = train_test_split(rows, test_size=0.2, stratify=labels, random_state=0)
        x = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        return {
            "train": self._generate_examples(train, x, labels),
            "test": self._generate_examples(test, x, labels),
        }

    def _generate_examples(self, rows: Any, x: np.ndarray, labels: np.ndarray) -> Iterator:
        for row in rows.tolist():
            # As a PNG file: TFDS would need TensorFlow to encode an array.
            png = io.BytesIO()
            Image.fromarray(x[row]).save(png, "png")
            png.seek(0)
            yield row, {"id": row, "image": png, "label": int(labels[row])}


def load_digits(
    data_dir: str | os.PathLike | None,
    classes: int | None,
    *,
    image_size: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads the digits, ordered as in scikit-learn; prepares them if need be."""
    builder = _prepared(data_root(data_dir))
    return read(builder, "digits", classes, image_size=image_size, stream=stream)


def _prepared(root: str) -> Digits:
    builder = _complete(root)
    if builder:
        return builder
    check_writable(root)
    # In a directory of our own, then renamed in one step: two processes that prepare at once never
    # write the same file, and whoever comes second finds the work done.
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=root) as private:
        fresh = Digits(data_dir=private)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            fresh.download_and_prepare(file_format="array_record")
        final = Path(root) / Path(fresh.data_path).relative_to(private)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not _complete(root):
            final.rename(Path(private) / "broken")
        with contextlib.suppress(OSError):
            Path(fresh.data_path).rename(final)
    builder = _complete(root)
    if not builder:
        raise ValueError(f"`data_dir` must take the prepared digits, {final} is incomplete.")
    return builder


def _complete(root: str) -> Digits | None:
    """The digits prepared under `root`, or None if they are not all there."""
    try:
        builder = Digits(data_dir=root)
    except Exception:  # whatever TFDS's parsers raise on a half-written description
        return None
    splits = builder.info.splits
    files = [path for split in splits.values() for path in split.filepaths]
    whole = {"train", "test"} <= set(splits) and all(path.exists() for path in files)
    return builder if whole else None
