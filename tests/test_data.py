"""Data sets: what `load` returns and refuses."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_digits

from famr_jax.data import Dataset, Split, count_duplicates, duplicate_groups, from_arrays, load
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
        (np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, float), "`labels` must be integers, got fl"),
        (np.zeros((2, 2, 2, 1), np.uint8), np.full(2, 2**40), "`labels` must fit in int32, got 10"),
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


X, LABELS = np.arange(16, dtype=np.uint8).reshape(4, 2, 2), np.array([0, 1, 2, 1])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_labels_of_any_integer_dtype_are_kept_as_int32(dtype):
    split = Split(np.zeros((3, 2, 2, 1), np.uint8), np.array([2, 0, 1], dtype))
    assert split.labels.dtype == split.batch().labels.dtype == np.int32
    assert split.labels.tolist() == [2, 0, 1]


def test_images_and_labels_as_torchvision_and_hugging_face_hold_them():
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    torchvision = SimpleNamespace(data=x, targets=[0, 1, 2, 0, 1, 2])
    hugging_face = {"image": x, "label": np.asarray(torchvision.targets, np.int64)}
    first = from_arrays(torchvision.data, torchvision.targets, test=(x[:3], [0, 1, 2]))
    last = hugging_face["image"], hugging_face["label"]
    second = from_arrays(*last, test=(x[:3], last[1][:3]))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_arrays_make_a_data_set(dtype):
    made = from_arrays(X, LABELS.astype(dtype), test=(X[:1], LABELS[:1]))
    assert (made.name, made.class_names, made.mirrored) == ("arrays", ("0", "1", "2"), False)
    assert made.image_shape == (2, 2, 1)
    np.testing.assert_array_equal(made.train.x[..., 0], X)
    np.testing.assert_array_equal(made.train.batch().labels, LABELS)
    assert (len(made.test), made.train.labels.dtype) == (1, np.int32)
    named = from_arrays(
        X[..., None],
        LABELS,
        test=(X[:1, ..., None], [0]),
        class_names=["a", "b", "c", "unseen"],
        name="mine",
        mirrored=True,
    )
    assert (named.name, named.num_classes, named.mirrored) == ("mine", 4, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X / 255}, r"`x` must be uint8 in 0..255, got float64: np.rint\(255 \* x\)"),
        ({"x": X[0]}, r"`x` must have the shape \[n, height, width\] or .* got \[2, 2\]"),
        ({"x": X[:, :0]}, r"and a pixel, got \[4, 0, 2\]"),
        ({"labels": LABELS.astype(float)}, "`labels` must be integers, got float64"),
        ({"labels": LABELS > 0}, "`labels` must be integers, got bool"),
        ({"labels": LABELS[:3]}, r"`labels` must have the shape \[4\], got \[3\]"),
        ({"labels": LABELS - 1}, r"`labels` must lie in \[0, 65536\), got -1"),
        ({"labels": LABELS + 2**40}, r"`labels` must lie in \[0, 65536\), got 10995"),
        ({"class_names": "ab"}, r"`labels` must lie in \[0, 2\), got 2"),
        ({"labels": 0 * LABELS}, "`class_names` must name at least two"),
        ({"test": X}, "`test` must be a pair of images and labels, got ndarray"),
        ({"test": (X / 255, LABELS)}, r"`test\[0\]` must be uint8"),
        ({"test": (X, LABELS[:2])}, r"`test\[1\]` must have the shape \[4\], got \[2\]"),
        ({"test": (X[:, :1], LABELS)}, "`train` and `test` must have one image shape"),
        ({"x": [Image.new("P", (2, 2))] * 4}, "`x` must be pictures in L, RGB or RGBA, got P: pic"),
        ({"x": [Image.new("CMYK", (2, 2))] * 4}, "`x` must be pictures in .*, got CMYK"),
        ({"x": np.zeros((4, 3, 32, 32), np.uint8)}, r"channels\], got \[4, 3, 32, 32\]: np.mov"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    given = {"x": X, "labels": LABELS, "test": (X, 0 * LABELS), "class_names": None} | changes
    with pytest.raises(ValueError, match=message):
        from_arrays(
            given["x"], given["labels"], test=given["test"], class_names=given["class_names"]
        )


def test_equal_images_have_equal_digests():
    x = np.concatenate([X, X[1:2]])[..., None]
    split = Split(x, np.zeros(5, np.int32))
    assert (split.digests.shape, split.digests.dtype) == ((5, 16), np.uint8)
    for groups in (*duplicate_groups(split), *duplicate_groups(x)):
        assert groups.tolist() == [0, 1, 2, 3, 1]
    assert split.digests is split.digests


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


def test_digits_need_a_directory_to_write_in(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"`data_dir` must be a directory to write in.*{root}"):
            load("digits", data_dir=root)


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
    quiet = "ignore:label() is deprecated:DeprecationWarning"  # protobuf 6, where TFDS reads
    command = [sys.executable, "-W", "error", "-W", quiet, "-c", code, root]
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
    """Prepares a data set of `examples` (dicts), the same in each split or a dict of splits."""
    if not isinstance(examples, dict):
        examples = dict.fromkeys(splits, examples)

    def info(self):
        described = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(
            builder=self, features=described, supervised_keys=supervised, description="a toy"
        )

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {
            split: self._generate_examples(each) for split, each in examples.items()
        },
        "_generate_examples": lambda self, each: (
            (i, {k: png(v) if isinstance(v, np.ndarray) else v for k, v in example.items()})
            for i, example in enumerate(each)
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


def test_import_is_light():
    code = (
        "import sys, famr_jax.data\n"
        "heavy = {'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    cwd = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=cwd)
