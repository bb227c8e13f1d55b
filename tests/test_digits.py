"""The digits: those of scikit-learn, however often and by whomever they are prepared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from famr_jax.data import load


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
