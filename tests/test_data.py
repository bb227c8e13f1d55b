"""Data sets in memory: what they hold and refuse, made of arrays, fingerprints and digests."""

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

from famr_jax.data import Dataset, Split, duplicate_groups, from_arrays


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


def test_import_is_light():
    code = (
        "import sys, famr_jax.data\n"
        "heavy = {'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    cwd = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=cwd)
