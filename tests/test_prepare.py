"""`python -m famr_jax.data prepare`, with a stand-in for the builders that need TensorFlow."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_sets import EXAMPLES, GREY, TWO, tfds
from toy_sets import prepare as build

from famr_jax.data import load
from famr_jax.data.__main__ import main
from famr_jax.data.prepare import prepare


@pytest.fixture
def tensorflow(monkeypatch):
    """As if TensorFlow were installed."""
    found = importlib.util.find_spec

    def there(name):
        return object() if name == "tensorflow" else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", there)


class StandIn:
    """A builder that writes a toy instead of downloading, or fails as it is told to."""

    def __init__(self, name, data_dir, file_format, error=None):
        assert file_format == "array_record"
        self.name, self.data_dir, self.error = name, data_dir, error

    def download_and_prepare(self):
        if self.error:
            raise self.error
        build(self.data_dir, EXAMPLES, name=self.name.title(), label=TWO, **GREY)


def test_what_is_prepared_is_what_load_reads(tensorflow, monkeypatch, tmp_path, capsys):
    made = []

    def stand_in(name, *, data_dir, file_format):
        made.append(name)
        return StandIn(name, data_dir, file_format)

    monkeypatch.setattr(tfds, "builder", stand_in)
    for _ in range(2):
        main(["prepare", "mnist", "--data-dir", str(tmp_path / "new")])
        line = capsys.readouterr().out.splitlines()[-1]
        assert line == f"mnist/1.0.0: 2 train, 2 test examples in {tmp_path / 'new'}"
    assert made == ["mnist"]
    assert len(load("mnist", data_dir=tmp_path / "new").train) == 2


def test_imagenet100_is_a_part_of_imagenet2012(tensorflow, monkeypatch, tmp_path):
    monkeypatch.setattr(tfds, "builder", StandIn)
    assert prepare("imagenet100", tmp_path).startswith("imagenet2012/1.0.0: 2 train")


def refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_without_tensorflow_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused(["prepare", "cifar10", "--data-dir", str(tmp_path / "new")], capsys)
    assert said.startswith("error: Preparing `cifar10` needs TensorFlow, which is not installed")
    assert "`pip install 'famr_jax[prepare]'`" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_set", "got 'no_such_set', which TFDS does not know."),
        ("../digits", "got '../digits', which TFDS does not know."),
        ("digits", "`name` must be a TFDS name, got 'digits', which needs no preparing."),
        ("folder:there", "got 'folder:there', which needs no preparing."),
    ],
)
def test_names_are_checked_first(name, message, tmp_path, capsys):
    assert message in refused(["prepare", name, "--data-dir", str(tmp_path)], capsys)


def test_a_directory_that_takes_no_files_is_named(tensorflow, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" / "below"
    said = refused(["prepare", "cifar10", "--data-dir", str(root)], capsys)
    assert f"`data_dir` must be a directory to write in, got {root}" in said


def test_what_tfds_ends_with_is_told(tensorflow, monkeypatch, tmp_path, capsys):
    error = AssertionError("Manual directory is empty.\nPut two files there.")
    monkeypatch.setattr(tfds, "builder", functools.partial(StandIn, error=error))
    said = refused(["prepare", "imagenet2012", "--data-dir", str(tmp_path)], capsys)
    assert f"`imagenet2012` could not be prepared in {tmp_path}. AssertionError: Manual" in said
    assert "Put two files there." in said


def test_another_file_format_is_not_taken_for_prepared(tmp_path, capsys):
    made = build(tmp_path, EXAMPLES, name="Mnist", label=TWO, **GREY)
    info = Path(made.data_path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    said = refused(["prepare", "mnist", "--data-dir", str(tmp_path)], capsys)
    assert "`mnist` must be array_record, got" in said
    assert "which is tfrecord: move it away." in said


def test_the_command_runs_by_itself():
    command = [sys.executable, "-W", "error", "-m", "famr_jax.data", "prepare", "--help"]
    cwd = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert "--data-dir" in done.stdout
