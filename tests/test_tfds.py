"""Data sets of TFDS: what is read of them, and what is refused, damaged ones among it."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_sets import EXAMPLES, GREY, TWO, png, prepare, tfds

from famr_jax.data import count_duplicates, load


def test_tfds_by_supervised_keys_with_validation_ordered_by_id(tmp_path):
    pixels = [np.full((2, 2), 10 * i, np.uint8) for i in range(6)]
    examples = [
        {"image": pixels[i], "kind": i % 2, "coarse": 0, "id": f"x_{i}"} for i in (3, 0, 5, 1, 4, 2)
    ]
    prepare(
        tmp_path,
        examples,
        splits=("train", "validation"),
        supervised=("image", "kind"),
        coarse=tfds.features.ClassLabel(num_classes=3),
        kind=TWO,
        id=tfds.features.Text(),
        **GREY,
    )
    toy = load("toy", data_dir=tmp_path)
    assert (toy.name, toy.class_names, toy.mirrored) == ("toy", ("cat", "dog"), True)
    np.testing.assert_array_equal(toy.train.x[:, :, :, 0], pixels)
    np.testing.assert_array_equal(toy.train.labels, [0, 1, 0, 1, 0, 1])
    assert len(toy.test) == 6


def test_tfds_grey_files_become_rgb_and_characters_are_not_mirrored(tmp_path):
    pixels = np.array([[1, 2], [3, 4]], np.uint8)
    rgb = tfds.features.Image(shape=(2, 2, 3))
    examples = [{"image": pixels, "label": label} for label in (0, 1)]
    prepare(tmp_path, examples, name="Kmnist", image=rgb, label=TWO)
    toy = load("kmnist", data_dir=tmp_path)
    np.testing.assert_array_equal(toy.train.x[0], np.repeat(pixels[..., None], 3, axis=-1))
    assert not toy.mirrored


ANY = tfds.features.Image(shape=(None, None, 1))
UNEVEN = [EXAMPLES[0], {"image": np.zeros((2, 3), np.uint8), "label": 1}]
SIDES = [{"image": 0, "label": 0, "front": EXAMPLES[0]["image"], "back": EXAMPLES[0]["image"]}]
DEEP = tfds.features.Image(shape=(2, 2, 1), dtype=np.uint16)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (EXAMPLES, {"splits": ("train",), "label": TWO}, r"train and test or .*\['train'\]"),
        (EXAMPLES, {"splits": ("extra", "test"), "label": TWO}, "must have splits train and test"),
        (EXAMPLES, {"label": np.int64}, r"an image and a class label, got \['image', 'label'\]"),
        (SIDES, {"label": TWO, "image": TWO, "front": ANY, "back": ANY}, "got .'back', 'front'"),
        (EXAMPLES, {"label": TWO, "image": DEEP}, "must have 8-bit images, got Image"),
        (
            UNEVEN,
            {"label": TWO, "image": ANY},
            "in record . of `train` of `toy` in .*toy-train.* 2x",
        ),
    ],
)
def test_tfds_refuses(tmp_path, examples, options, message):
    prepare(tmp_path, examples, **{**GREY, **options})
    with pytest.raises(ValueError, match=message):
        load("toy", data_dir=tmp_path)


def test_tfds_refuses_one_class_and_kept_classes_without_images(tmp_path):
    one = tfds.features.ClassLabel(num_classes=1)
    prepare(tmp_path, EXAMPLES[:1], name="One", label=one, **GREY)
    with pytest.raises(ValueError, match="`class_names` must name at least two"):
        load("one", data_dir=tmp_path)
    three = tfds.features.ClassLabel(num_classes=3)
    prepare(tmp_path, [{**EXAMPLES[0], "label": 2}], name="Three", label=three, **GREY)
    with pytest.raises(ValueError, match="`train` of `three` must hold images of the 2 classes"):
        load("three", data_dir=tmp_path, classes=2)


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (io.BytesIO(b"no image"), "none by its bytes"),
        (png(np.zeros((2, 2), np.uint16)), "not 8-bit"),
    ],
)
def test_tfds_names_a_record_that_is_no_image(tmp_path, on, broken, why):
    broken.seek(0)
    prepare(
        tmp_path, {"train": [EXAMPLES[0] | {"image": broken}], "test": EXAMPLES}, label=TWO, **GREY
    )
    rule = f"record 0 of `train` of `toy` in .*train.* must be a readable 8-bit image, got .*{why}"
    with pytest.raises(ValueError, match=rule):
        load("toy", data_dir=tmp_path, stream=on)


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    prepare(root, EXAMPLES, label=TWO, **GREY)
    return root


def overwrite(file, start, stop):
    content = bytearray(file.read_bytes())
    content[start:stop] = b"x" * (stop - start)
    file.write_bytes(content)


SHARD, INFO = "toy-train.array_record-00000-of-00001", "dataset_info.json"
DAMAGE = {
    "missing": (SHARD, lambda file: file.unlink()),
    "empty": (SHARD, lambda file: file.write_bytes(b"")),
    "short": (SHARD, lambda file: os.truncate(file, file.stat().st_size // 2)),
    "shorter": (SHARD, lambda file: os.truncate(file, 70_000)),
    "overwritten": (SHARD, lambda file: overwrite(file, 0, 200)),
    "overwritten records": (SHARD, lambda file: overwrite(file, 110, 200)),
    "overwritten foot": (SHARD, lambda file: overwrite(file, 65_536, 65_600)),
    "cut description": (INFO, lambda file: os.truncate(file, file.stat().st_size // 2)),
    "no description": (INFO, lambda file: file.unlink()),
    "empty description": (INFO, lambda file: file.write_text("{}")),
    "cut features": ("features.json", lambda file: os.truncate(file, file.stat().st_size // 2)),
}


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tfds_data_names_data_set_and_file(toy_root, tmp_path, damage, on):
    name, break_it = DAMAGE[damage]
    shutil.copytree(toy_root, tmp_path, dirs_exist_ok=True)
    break_it(tmp_path / "toy" / "1.0.0" / name)
    with pytest.raises(ValueError, match=f"`toy` must have .*{name}"):
        load("toy", data_dir=tmp_path, stream=on)


def test_a_shard_with_other_records_than_described_is_refused(toy_root, tmp_path):
    shutil.copytree(toy_root, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "toy" / "1.0.0" / INFO
    for told in (1, 3):
        description = json.loads(info.read_text())
        for split in description["splits"]:
            split["shardLengths"] = [str(told)]
        info.write_text(json.dumps(description))
        with pytest.raises(ValueError, match=f"`toy` must have {told} records, got 2 in .*{SHARD}"):
            load("toy", data_dir=tmp_path)


def test_tfds_refuses_another_file_format(tmp_path):
    prepared = prepare(tmp_path, EXAMPLES, label=TWO, **GREY)
    info = Path(prepared.data_path) / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="with `--file_format=array_record`, got tfrecord in"):
        load("toy", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "emnist/letters", "cifar10:9.9.9"])
def test_a_known_name_that_is_not_prepared_says_how_to_prepare_it(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be prepared") as error:
        load(name, data_dir=tmp_path)
    for words in (str(tmp_path), "famr_jax[prepare]", f"famr_jax.data prepare {name} "):
        assert words in str(error.value)


@pytest.mark.parametrize("name", ["no_such_set", "", "hub:mnist", "two words", "../digits"])
def test_an_unknown_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"`name` must be digits, .*, idx:PATH or a TFDS name"):
        load(name, data_dir=tmp_path)


@pytest.mark.data
def test_cifar100():
    root = os.environ.get("TFDS_DATA_DIR", "")
    if not os.path.isdir(os.path.join(root, "cifar100")):
        pytest.skip("TFDS_DATA_DIR holds no cifar100")
    whole = load("cifar100")
    assert (whole.num_classes, whole.image_shape, whole.mirrored) == (100, (32, 32, 3), True)
    assert set(np.bincount(whole.train.labels)) == {500}
    assert set(np.bincount(whole.test.labels)) == {100}
    counts = count_duplicates(whole.train.x, whole.test.x)
    assert counts == {"within_train": 28, "within_test": 4, "across": 10}
    part = load("cifar100", classes=10)
    np.testing.assert_array_equal(part.test.x, whole.test.x[whole.test.labels < 10])
