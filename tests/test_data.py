"""Data sets: what `load` returns and refuses, duplicates, augmentations."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_digits

from famr_jax.data import (
    Dataset,
    Split,
    count_duplicates,
    crop,
    crop_and_flip,
    duplicate_groups,
    load,
)
from famr_jax.data.tfds import import_tfds

tfds = import_tfds()


def make_split(n=4, shape=(2, 2, 1), num_classes=2):
    x = np.arange(n * np.prod(shape), dtype=np.uint8).reshape(n, *shape)
    return Split(x, np.arange(n, dtype=np.int32) % num_classes)


def make_dataset(**changes):
    fields = {"train": make_split(), "test": make_split(2), "class_names": ("a", "b")}
    return Dataset(**{"name": "toy", "mirrored": True, **fields, **changes})


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, np.int32), "`x` must be uint8, got float"),
        (np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, np.int64), "`labels` must be int32, got in"),
        (np.zeros((2, 2, 2), np.uint8), np.zeros(2, np.int32), "`x` must have 4 axes, got shape"),
        (np.zeros((2, 2, 2, 1), np.uint8), np.zeros((2, 1), np.int32), "`labels` must have 1 axes"),
        (np.zeros((2, 2, 2, 1), np.uint8), np.zeros(3, np.int32), "equal lengths, got 2 and 3"),
        (np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32), "at least one pixel, got shape"),
        ([[[[0]]]], np.zeros(1, np.int32), "`x` must be a NumPy array, got list"),
    ],
)
def test_split_refuses(x, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(x, labels)


def test_split_is_read_only_and_leaves_the_callers_array_alone():
    x, labels = np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32)
    split = Split(x, labels)
    with pytest.raises(ValueError, match="read-only"):
        split.x[0] = 1
    x[0] = 1
    assert len(split) == 1


def test_batch_scales_every_byte_to_minus_one_to_one():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    batch = Split(x, np.zeros(1, np.int32)).batch()
    assert (batch.x.dtype, batch.labels.dtype) == (np.float32, np.int32)
    assert isinstance(batch.x, jax.Array)
    expected = np.arange(256) / 127.5 - 1
    np.testing.assert_allclose(np.asarray(batch.x).ravel(), expected, atol=1e-7)
    assert (batch.x.min(), batch.x.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a",)}, "`class_names` must name at least two, got"),
        ({"train": make_split(num_classes=3)}, r"`train.labels` must lie in \[0, 2\), got 2"),
        ({"test": make_split(num_classes=4)}, r"`test.labels` must lie in \[0, 2\), got 3"),
        (
            {"test": make_split(shape=(2, 3, 1))},
            r"one image shape, got \(2, 2, 1\) and \(2, 3, 1\)",
        ),
    ],
)
def test_dataset_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(**changes)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int32, st.integers(1, 6), elements=st.integers(-2, 5)), st.integers(2, 5))
def test_labels_outside_the_classes_are_refused(labels, num_classes):
    split = Split(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    names = tuple("abcde"[:num_classes])
    if all(0 <= label < num_classes for label in labels):
        assert make_dataset(train=split, test=split, class_names=names).num_classes == num_classes
    else:
        with pytest.raises(ValueError, match="labels` must lie in"):
            make_dataset(train=split, test=split, class_names=names)


def test_fingerprint_follows_the_contents_only():
    base = make_dataset()
    assert base.fingerprint == make_dataset(name="other", mirrored=False).fingerprint
    x = base.train.x.copy()
    x[0, 0, 0, 0] += 1
    changed = [
        make_dataset(class_names=("a", "c")),
        make_dataset(class_names=("ab", "")),
        make_dataset(train=Split(x, base.train.labels)),
        make_dataset(train=Split(base.train.x, base.train.labels[::-1].copy())),
        make_dataset(train=base.test, test=base.train),
        make_dataset(train=make_split(shape=(1, 4, 1)), test=make_split(2, shape=(1, 4, 1))),
    ]
    prints = {dataset.fingerprint for dataset in changed}
    assert len(prints) == len(changed)
    assert base.fingerprint not in prints


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    load("digits", data_dir=root)
    return root


def test_digits_are_scikit_learns(digits_root):
    digits = load("digits", data_dir=digits_root)
    images, labels = load_digits(return_X_y=True)
    expected = np.rint(images / 16 * 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.image_shape == (8, 8, 1)
    assert digits.class_names == tuple("0123456789")
    assert not digits.mirrored
    # Each split is in scikit-learn's order, and together they are all of its rows.
    rows = {}
    for row in range(len(expected)):
        rows.setdefault((expected[row].tobytes(), labels[row]), []).append(row)
    found = []
    for split in (digits.train, digits.test):
        candidates = [
            rows[image.tobytes(), label] for image, label in zip(split.x, split.labels, strict=True)
        ]
        assert all(len(candidate) == 1 for candidate in candidates)
        found.append([candidate[0] for candidate in candidates])
        assert found[-1] == sorted(found[-1])
    assert sorted(found[0] + found[1]) == list(range(1797))
    share = np.bincount(digits.test.labels) / np.bincount(labels)
    np.testing.assert_allclose(share, 0.2, atol=0.005)


def test_digits_load_the_same_from_two_preparations(digits_root, tmp_path, monkeypatch):
    again = load("digits", data_dir=digits_root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "new"))
    elsewhere = load("digits")
    assert again.fingerprint == elsewhere.fingerprint
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["digits"]


def test_preparing_digits_is_silent(tmp_path, capfd):
    load("digits", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["empty", "no shard", "no features", "half a description"])
def test_half_written_digits_are_prepared_again(digits_root, tmp_path, damage):
    final = tmp_path / "digits" / "1.0.0"
    shutil.copytree(digits_root / "digits" / "1.0.0", final)
    (tmp_path / "digits" / "incomplete.ABCDEF_1.0.0").mkdir()
    (tmp_path / ".digits-left").mkdir()
    info = final / "dataset_info.json"
    if damage == "empty":
        shutil.rmtree(final)
        final.mkdir()
    elif damage == "no shard":
        next(final.glob("digits-train*")).unlink()
    elif damage == "no features":
        (final / "features.json").unlink()
    else:
        info.write_text(info.read_text()[: info.stat().st_size // 2])
    digits = load("digits", data_dir=tmp_path)
    assert digits.fingerprint == load("digits", data_dir=digits_root).fingerprint


def test_two_processes_prepare_digits_at_once(digits_root, tmp_path):
    # TFDS names its temporary directory by `random`: with equal seeds the two would collide.
    code = (
        "import os, random, sys, time\n"
        "from famr_jax.data import load\n"
        "import famr_jax.data.digits, sklearn.datasets, sklearn.model_selection\n"
        "open(sys.argv[2], 'w').close()\n"
        "while not all(map(os.path.exists, sys.argv[3:])): time.sleep(0.001)\n"
        "random.seed(0)\n"
        "print(load('digits', data_dir=sys.argv[1]).fingerprint)\n"
    )
    flags = [str(tmp_path / "a"), str(tmp_path / "b")]
    root = str(tmp_path / "shared")
    command = [sys.executable, "-W", "error", "-c", code, root]
    cwd = Path(__file__).parents[1]
    racers = [
        subprocess.Popen([*command, flag, *flags], stdout=subprocess.PIPE, cwd=cwd)
        for flag in flags
    ]
    prints = {racer.communicate(timeout=120)[0].decode().strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    assert prints == {load("digits", data_dir=digits_root).fingerprint}
    assert os.listdir(root) == ["digits"]
    assert os.listdir(Path(root, "digits")) == ["1.0.0"]


def test_whoever_loses_the_race_uses_the_winners_digits(digits_root, tmp_path, monkeypatch):
    from famr_jax.data.digits import Digits

    prepare = Digits.download_and_prepare

    def overtaken(self, **kwargs):
        prepare(self, **kwargs)
        shutil.copytree(digits_root / "digits", tmp_path / "digits")

    monkeypatch.setattr(Digits, "download_and_prepare", overtaken)
    digits = load("digits", data_dir=tmp_path)
    assert digits.fingerprint == load("digits", data_dir=digits_root).fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


@pytest.mark.parametrize("classes", [2, 7, 10])
def test_classes_keeps_the_first(digits_root, classes):
    whole = load("digits", data_dir=digits_root)
    part = load("digits", data_dir=digits_root, classes=classes)
    assert part.class_names == whole.class_names[:classes]
    for split, every in ((part.train, whole.train), (part.test, whole.test)):
        np.testing.assert_array_equal(split.x, every.x[every.labels < classes])
        np.testing.assert_array_equal(split.labels, every.labels[every.labels < classes])


@pytest.mark.parametrize("classes", [0, 1, 11, -3, 2.5, "3"])
def test_classes_out_of_range_are_refused(digits_root, classes):
    with pytest.raises(ValueError, match="`classes` must be an integer from 2 to 10, got"):
        load("digits", data_dir=digits_root, classes=classes)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def prepare(root, examples, *, name="Toy", splits=("train", "test"), supervised=None, **features):
    """Prepares a data set with the same `examples` (dicts) in each split."""

    def info(self):
        described = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(
            builder=self, features=described, supervised_keys=supervised, description="a toy"
        )

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: (
            dict.fromkeys(splits, None) | {split: self._generate_examples() for split in splits}
        ),
        "_generate_examples": lambda self: (
            (i, {k: png(v) if isinstance(v, np.ndarray) else v for k, v in example.items()})
            for i, example in enumerate(examples)
        ),
        "__module__": __name__,
    }
    base = tfds.core.GeneratorBasedBuilder
    builder = type(base)(name, (base,), body, skip_registration=True)(data_dir=root)
    builder.download_and_prepare(file_format="array_record")
    return builder


GREY = {"image": tfds.features.Image(shape=(2, 2, 1))}
TWO = tfds.features.ClassLabel(names=["cat", "dog"])


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


EXAMPLES = [{"image": np.zeros((2, 2), np.uint8), "label": label} for label in (0, 1)]
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
        (UNEVEN, {"label": TWO, "image": ANY}, r"one size, got \(2, [23], 1\) and \(2, [23], 1\)"),
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
    for words in (str(tmp_path), "tensorflow-cpu", f"tfds build {name}"):
        assert words in str(error.value)


@pytest.mark.parametrize("name", ["no_such_set", "", "hub:mnist", "two words", "../digits"])
def test_an_unknown_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="`name` must be digits, folder:PATH or a TFDS name, got"):
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


def write_folder(root, *, splits=("train", "val"), classes=("b", "a"), n=2, mode="RGB"):
    """A folder of distinct PNGs; returns {split/class/file: pixels}."""
    generator = np.random.default_rng(0)
    written = {}
    for split in splits:
        for name in classes:
            for i in range(n):
                file = root / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                shape = (3, 4, 3) if mode == "RGB" else (3, 4)
                written[f"{split}/{name}/{i}"] = generator.integers(0, 256, shape, np.uint8)
                Image.fromarray(written[f"{split}/{name}/{i}"]).save(file)
    return written


def test_folder_round_trip(tmp_path):
    written = write_folder(tmp_path)
    (tmp_path / "train" / "a" / ".hidden").write_text("not an image")
    (tmp_path / "train" / ".DS_Store").write_text("nor this")
    folder = load(f"folder:{tmp_path}")
    assert (folder.name, folder.mirrored) == (f"folder:{tmp_path.name}", True)
    assert (folder.class_names, folder.image_shape) == (("a", "b"), (3, 4, 3))
    for split, name in ((folder.train, "train"), (folder.test, "val")):
        keys = ("a/0", "a/1", "b/0", "b/1")
        np.testing.assert_array_equal(split.x, [written[f"{name}/{key}"] for key in keys])
        np.testing.assert_array_equal(split.labels, [0, 0, 1, 1])
    assert folder.fingerprint == load(f"folder:{tmp_path}").fingerprint


def test_folder_prefers_test_over_validation(tmp_path):
    written = write_folder(tmp_path, splits=("train", "validation", "test"))
    test = load(f"folder:{tmp_path}").test
    np.testing.assert_array_equal(test.x[0], written["test/a/0"])


def test_folder_stays_grey_only_if_every_image_is(tmp_path):
    written = write_folder(tmp_path, mode="L")
    np.testing.assert_array_equal(
        load(f"folder:{tmp_path}").train.x[0, :, :, 0], written["train/a/0"]
    )
    red = np.zeros((3, 4, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "val" / "b" / "1.png")
    mixed = load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(
        mixed.train.x[0], np.repeat(written["train/a/0"][..., None], 3, axis=-1)
    )
    np.testing.assert_array_equal(mixed.test.x[-1], red)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA", "1"])
def test_folder_turns_other_modes_into_rgb(tmp_path, mode):
    write_folder(tmp_path)
    form = "tiff" if mode == "CMYK" else "png"
    picture = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    options = {"transparency": b"\x00\x80"} if mode == "P" else {}
    picture.save(tmp_path / "train" / "a" / "0.png", form, **options)
    np.testing.assert_array_equal(load(f"folder:{tmp_path}").train.x[0], 255)


def test_folder_reads_the_kept_classes_and_their_names_only(tmp_path):
    write_folder(tmp_path, classes=("a", "b", "c"))
    (tmp_path / "train" / "c" / "0.png").write_text("would not decode")
    (tmp_path / "classes.txt").write_text("b\tbird, any\na\tape\nz\tzebra\n\n")
    folder = load(f"folder:{tmp_path}", classes=2)
    assert folder.class_names == ("ape", "bird, any")
    assert len(folder.train) == 4


def replace_image(root, size=(9, 9), mode="RGB"):
    Image.new(mode, size).save(root / "val" / "b" / "1.png")


def truncate(root):
    file = root / "train" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "`folder:PATH` must be a directory, got"),
        (lambda root: shutil.rmtree(root / "val"), r"train and one of test, val.*\['train'\]"),
        (lambda root: shutil.rmtree(root / "train"), r"train and one of test, val.*\['val'\]"),
        (lambda root: [f.unlink() for f in root.glob("train/a/*")], "train/a must hold images"),
        (lambda root: [shutil.rmtree(d) for d in root.glob("*/a")], "two classes, got ..b.."),
        (lambda root: [shutil.rmtree(d) for d in root.glob("*/?")], "two classes, got .."),
        (lambda root: shutil.rmtree(root / "val/a"), "the same classes, only one has ..a.."),
        (truncate, "train/a/1.png` must be a readable 8-bit image, got"),
        (lambda root: (root / "val/b/notes.txt").write_text("x"), "val/b/notes.txt` must be a"),
        (lambda root: (root / "val/b/sub").mkdir(), "val/b/sub` must be a readable"),
        (lambda root: (root / "val/x.png").write_text("x"), "directory a class, got .*val/x.png"),
        (replace_image, "got 3x4 in .*train/a/0.png and 9x9 in .*val/b/1.png"),
        (lambda root: replace_image(root, (4, 3), "I;16"), "mode I;16 is not 8-bit"),
        (lambda root: (root / "classes.txt").write_text("a\tape\n"), "every class, .* ..b.."),
        (lambda root: (root / "classes.txt").write_text("a ape\n"), "tab, name; got 'a ape'"),
    ],
)
def test_folder_refuses(tmp_path, break_it, message):
    write_folder(tmp_path / "set")
    break_it(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        load(f"folder:{tmp_path / 'set'}")


def test_folder_refuses_too_many_classes(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="`classes` must be an integer from 2 to 2, got 3"):
        load(f"folder:{tmp_path}", classes=3)


IMAGES = st.integers(0, 5).flatmap(
    lambda n: hnp.arrays(np.uint8, (n, 1, 2, 1), elements=st.integers(0, 2))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(IMAGES, min_size=1, max_size=3))
def test_duplicate_groups_are_those_of_comparing_every_pair(arrays):
    groups = duplicate_groups(*arrays)
    assert [len(group) for group in groups] == [len(array) for array in arrays]
    rows, numbers = np.concatenate(arrays), np.concatenate(groups)
    for i in range(len(rows)):
        for j in range(len(rows)):
            assert (numbers[i] == numbers[j]) == np.array_equal(rows[i], rows[j])
    firsts = list(dict.fromkeys(numbers.tolist()))
    assert firsts == list(range(len(firsts)))


@settings(max_examples=60, deadline=None)
@given(IMAGES, IMAGES)
def test_count_duplicates_is_that_of_comparing_every_pair(train, test):
    def twins(x, others, same):
        return sum(
            any(np.array_equal(x[i], y) for j, y in enumerate(others) if not (same and i == j))
            for i in range(len(x))
        )

    assert count_duplicates(train, test) == {
        "within_train": twins(train, train, True),
        "within_test": twins(test, test, True),
        "across": twins(test, train, False),
    }


def test_equal_bytes_in_another_shape_are_another_image():
    wide, tall = np.zeros((1, 1, 2, 1), np.uint8), np.zeros((1, 2, 1, 1), np.uint8)
    assert [group.tolist() for group in duplicate_groups(wide, tall)] == [[0], [1]]


@pytest.mark.parametrize("x", [np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2), np.uint8)])
def test_duplicate_groups_refuses(x):
    with pytest.raises(ValueError, match="`images` must be uint8 with 4 axes, got"):
        duplicate_groups(x)


def coordinates(n, height, width):
    """`n` copies of an image whose two channels are a pixel's row and column."""
    grid = np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)
    return np.broadcast_to(grid, (n, height, width, 2))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 8), (4, 4)])
def test_crop_reaches_every_corner_and_copies_the_reflected_image(height, width):
    x = coordinates(1500, height, width)
    out = np.asarray(jax.jit(crop)(jax.random.key(0), x))
    down, across = max(1, height // 8), max(1, width // 8)
    reflected = np.pad(x[0], ((down, down), (across, across), (0, 0)), mode="reflect")
    offsets = out[:, height // 2, width // 2] - x[0, height // 2, width // 2]
    counts = {}
    for image, (row, column) in zip(out, offsets.astype(int), strict=True):
        top, left = row + down, column + across
        np.testing.assert_array_equal(image, reflected[top : top + height, left : left + width])
        counts[row, column] = counts.get((row, column), 0) + 1
    corners = (2 * down + 1) * (2 * across + 1)
    assert len(counts) == corners
    assert (0, 0) in counts
    expected = len(x) / corners
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_flip_is_drawn_for_each_image():
    x = coordinates(1000, 8, 8)
    out = np.asarray(jax.jit(crop_and_flip)(jax.random.key(1), x))
    flipped = out[:, 4, 4, 1] < out[:, 4, 3, 1]
    assert 400 < flipped.sum() < 600
    assert any(np.array_equal(image, x[0]) for image in out)
    assert any(np.array_equal(image, x[0, :, ::-1]) for image in out)
    assert (np.asarray(jax.jit(crop)(jax.random.key(1), x))[:, 4, 4, 1] > 2).all()


@pytest.mark.parametrize("augment", [crop, crop_and_flip])
def test_augmentations_depend_on_the_key_alone(augment):
    x = coordinates(32, 8, 8)
    jitted = jax.jit(augment)
    first, again, other = (jitted(jax.random.key(seed), x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == (x.shape, x.dtype)


def test_import_is_light():
    code = (
        "import sys, famr_jax.data\n"
        "heavy = {'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    cwd = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=cwd)
