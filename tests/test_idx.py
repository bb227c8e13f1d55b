"""Idx files: what is read, and what is refused in one sentence."""

import gzip
import struct

import numpy as np
import pytest

from famr_jax.cli import record
from famr_jax.cli.flags import BenchFlags
from famr_jax.data import load
from famr_jax.data.idx import read_idx

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TESTS = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def as_idx(array, kind=8):
    axes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + axes + array.tobytes()


def arrays(size, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(size, dtype=np.uint8) % 3
    return rng.integers(0, 256, (size, 4, 5), np.uint8), labels


@pytest.fixture
def directory(tmp_path):
    """A directory of four small files: three of them plain, one gzipped, one named with a dot."""
    for names, seed in ((NAMES, 0), (TESTS, 1)):
        for name, array in zip(names, arrays(9 - 3 * seed, seed), strict=True):
            (tmp_path / name).write_bytes(as_idx(array))
    path = tmp_path / NAMES[0]
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    (tmp_path / TESTS[1]).rename(tmp_path / TESTS[1].replace("-idx", ".idx"))
    return tmp_path


def test_the_four_files_round_trip(directory):
    found = load(f"idx:{directory}")
    for split, (size, seed) in ((found.train, (9, 0)), (found.test, (6, 1))):
        x, labels = arrays(size, seed)
        np.testing.assert_array_equal(split.x, x[..., None])
        np.testing.assert_array_equal(split.labels, labels)
    assert (found.name, found.class_names) == (f"idx:{directory.name}", ("0", "1", "2"))
    assert (found.image_shape, found.mirrored) == ((4, 5, 1), False)


def test_only_the_first_classes_are_kept(directory):
    found = load(f"idx:{directory}", classes=2)
    assert (len(found.train), len(found.test), found.num_classes) == (6, 4, 2)


def test_the_record_of_a_run_does_not_say_where_the_files_are(directory):
    config = record.describe("x", "python -m x", BenchFlags(dataset=f"idx:{directory}"))
    assert str(directory.parent) not in str(config)
    assert f"idx:{directory.name}" in config["command"]


GOOD = as_idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must begin as an idx file does, 00 00 08 0N, got nothing"),
        (b"\x89PNG....", "must begin as an idx file does, 00 00 08 0N, got 89 50 4e 47"),
        (bytes([0, 0, 8, 0]), "must begin as an idx file does"),
        (bytes([0, 0, 13, 1]) + bytes(8), "must hold unsigned bytes, kind 08, got kind 0d"),
        (GOOD[:-1], r"must have 18 bytes for its axes \[2, 3\], got 17"),
        (GOOD + b"\0", r"must have 18 bytes for its axes \[2, 3\], got 19"),
        (GOOD[:6], "must have .* bytes for its axes"),
        (gzip.compress(GOOD, mtime=0)[:-9], "must be a readable idx file"),
        (b"\x1f\x8b\x08 no gzip at all", "must be a readable idx file"),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_idx(path)
    assert str(path) in str(error.value)
    assert str(error.value).count("\n") == 0


def test_a_missing_file_and_directory_are_named(directory, tmp_path):
    with pytest.raises(ValueError, match="must be a readable idx file"):
        read_idx(tmp_path / "none")
    with pytest.raises(ValueError, match="`idx:PATH` must be a directory"):
        load(f"idx:{tmp_path / 'none'}")
    (directory / NAMES[1]).unlink()
    with pytest.raises(ValueError, match="must hold train-labels-idx1-ubyte, perhaps"):
        load(f"idx:{directory}")


def test_images_and_labels_must_go_together(directory):
    (directory / NAMES[1]).write_bytes(as_idx(np.zeros(8, np.uint8)))
    with pytest.raises(ValueError, match="must have as many labels as images, 9, got 8"):
        load(f"idx:{directory}")
    (directory / NAMES[1]).write_bytes(as_idx(np.zeros((9, 1), np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels .* must have 1 axes .* got \[9, 1\]"):
        load(f"idx:{directory}")


def test_settings_that_idx_files_do_not_know_are_refused(directory):
    with pytest.raises(ValueError, match="`image_size` must be >= 5"):
        load(f"idx:{directory}", image_size=4)
    with pytest.raises(ValueError, match="`stream` must be off"):
        load(f"idx:{directory}", stream=True)
    with pytest.raises(ValueError, match="`classes` must be an integer from 2 to 3"):
        load(f"idx:{directory}", classes=4)
