"""Data sets of Hugging Face and torchvision, by the lines that the tutorial gives for them.

With the [parity] extra the libraries' own objects are read; without it, what stands for them gives
what theirs did when it was written: pictures and integers, or a tensor or an array beside a list.
"""

from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from famr_jax import data

NAMES = ["zero", "one", "two"]
BOTH = ("colour", "grey")


@pytest.fixture(params=BOTH)
def pictures(request):
    rng = np.random.default_rng(3)
    shape = (12, 8, 8, 3) if request.param == "colour" else (12, 8, 8)
    return rng.integers(0, 256, shape, np.uint8), np.arange(12) % 3


def assert_is(dataset, pixels, labels, names):
    assert np.array_equal(dataset.train.x.reshape(pixels.shape), pixels)
    assert np.array_equal(dataset.train.labels, labels)
    assert dataset.train.labels.dtype == np.int32
    assert np.array_equal(dataset.test.labels, labels[:4])
    assert dataset.class_names == tuple(names)


def hugging_face(pixels, labels):
    images = [Image.fromarray(each) for each in pixels]
    if find_spec("datasets") is None:
        return {"image": images, "label": labels.tolist()}
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    columns = {"image": images, "label": labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def test_hugging_face(pictures):
    train = hugging_face(*pictures)
    some = {name: train[name][:4] for name in ("image", "label")}
    dataset = data.from_arrays(
        train["image"], train["label"], test=(some["image"], some["label"]), class_names=NAMES
    )
    assert_is(dataset, *pictures, NAMES)


def test_hugging_face_in_numpys_format(pictures):
    pytest.importorskip("datasets", reason="the format is Hugging Face's own")
    split = hugging_face(*pictures)
    names, train = split.features["label"].names, split.with_format("numpy")
    test = (train["image"][:4], train["label"][:4])
    dataset = data.from_arrays(train["image"], train["label"], test=test, class_names=names)
    assert_is(dataset, *pictures, NAMES)


def torchvision_set(pixels, labels, home):
    """As torchvision's `MNIST`, tensors, where they are grey; as `CIFAR10`, an array and a list."""
    if pixels.ndim == 4 or find_spec("torchvision") is None:
        return pixels, labels.tolist()
    from torchvision.datasets import MNIST

    raw = home / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels.astype(np.uint8))):
            header = np.array([0x800 + values.ndim, *values.shape], ">i4").tobytes()
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + values.tobytes())
    found = MNIST(home)
    return found.data, found.targets


def test_torchvision(pictures, tmp_path):
    images, targets = torchvision_set(*pictures, tmp_path)
    dataset = data.from_arrays(images, targets, test=(images[:4], targets[:4]))
    assert_is(dataset, *pictures, "012")


@pytest.mark.parametrize("odd", [Image.new("RGB", (8, 5)), Image.new("RGBA", (8, 8))])
def test_pictures_that_differ_in_size_or_channels_are_refused(odd):
    images = [*(Image.new("RGB", (8, 8)) for _ in range(3)), odd]
    with pytest.raises(ValueError, match=r"`x` must be images of one size.*got several: resize"):
        data.from_arrays(images, [0, 1, 0, 1], test=(images[:2], [0, 1]))
    with pytest.raises(ValueError, match=r"`test\[0\]` must be images of one size"):
        data.from_arrays(images[:2], [0, 1], test=(images, [0, 1, 0, 1]))
