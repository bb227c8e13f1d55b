"""ImageNet-100 as a selection of `imagenet2012`, on a toy that is prepared here."""

import functools
import os

import numpy as np
import pytest
from toy_sets import prepare, tfds

from famr_jax import data
from famr_jax.data.imagenet import IMAGENET100

WORDNET = sorted([*IMAGENET100[:3], "n00000001", "n99999999"])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A toy `imagenet2012`: a grey level a class, uneven sizes, a test split without labels."""
    root = tmp_path_factory.mktemp("imagenet")
    examples = [
        {"image": np.full((6 + i % 3, 8), 40 * (i % 5), np.uint8), "label": i % 5}
        for i in range(20)
    ]
    label = tfds.features.ClassLabel(names=WORDNET)
    splits = {"train": examples, "validation": examples[:10]}
    splits["test"] = [example | {"label": -1} for example in examples[:3]]
    image = tfds.features.Image(shape=(None, None, 3))
    prepare(root, splits, name="Imagenet2012", image=image, label=label)
    return root


@pytest.mark.parametrize("on", [False, True])
def test_imagenet100_is_classes_of_imagenet_in_the_order_of_their_ids(imagenet, tmp_path, on):
    load = functools.partial(data.load, data_dir=imagenet, image_size=4, stream=on)
    with pytest.raises(ValueError, match="`imagenet100` must list classes of imagenet2012, got"):
        load("imagenet100")
    file = tmp_path / "mine.txt"
    file.write_text(f"{WORDNET[3]}\n{WORDNET[1]}\n{WORDNET[2]}\n")
    some = load(f"imagenet100:{file}")
    assert (some.name, some.class_names) == ("imagenet100:mine.txt", tuple(WORDNET[1:4]))
    assert (some.image_shape, some.mirrored) == ((4, 4, 3), True)
    assert (np.bincount(some.train.labels).tolist(), len(some.test)) == ([4, 4, 4], 6)
    levels = some.train.pixels()[:, 0, 0, 0]
    np.testing.assert_array_equal(levels, 40 * (some.train.labels + 1))
    two = load(f"imagenet100:{file}", classes=2)
    assert two.class_names == tuple(WORDNET[1:3])
    with pytest.raises(ValueError, match=r"images of `imagenet2012` must have one size .* got"):
        data.load("imagenet2012", data_dir=imagenet, stream=on)


def test_the_hundred_classes_are_imagenets():
    labels = os.path.join(tfds.__path__[0], "datasets", "imagenet2012", "labels.txt")
    with open(labels) as file:
        assert set(IMAGENET100) < set(file.read().split())
    assert len(IMAGENET100) == 100
    assert list(IMAGENET100) == sorted(set(IMAGENET100))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, "`imagenet100:FILE` must be a readable text file of WordNet ids, got"),
        ("n1", "must name two classes or more, each once, got 1"),
        ("n1 n2 n1", "each once, got ..n1.. twice"),
    ],
)
def test_a_list_of_classes_is_checked(tmp_path, words, message):
    file = tmp_path / "list.txt"
    if words is not None:
        file.write_text(words)
    with pytest.raises(ValueError, match=message):
        data.load(f"imagenet100:{file}")
