"""A product over images on disk reads ahead and says how far it is; in memory it says nothing."""

import itertools
import os
import re
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from famr_jax import curvature, progress
from famr_jax.curvature import batches
from famr_jax.data.stream import OnDisk

PARAMS = {"kernel": jnp.ones((16, 3))}
WORDS = r"(\d+)/13 images of a pass, \d+ s"


def outputs(params, batch):
    return batch.x.reshape(len(batch.x), -1) @ params["kernel"]


@jax.jit
def product(matrix, v):
    return matrix(v)


@pytest.fixture(autouse=True)
def _no_pass_is_left():
    yield
    assert not batches._reading
    assert not [thread for thread in threading.enumerate() if "read-ahead" in thread.name]


def source(seconds=0.0, reads=None, broken=None):
    def read(row):
        time.sleep(seconds)
        if row == broken:
            raise ValueError("row is broken")
        if reads is not None:
            reads.append((row, threading.current_thread().name))
        return np.full((4, 4, 1), 9 * row, np.uint8)

    labels, digests = np.zeros(13, np.int32), np.zeros((13, 16), np.uint8)
    return OnDisk(read, (4, 4, 1), labels, digests, np.arange(13))


def matrix(data):
    return curvature.fisher(outputs, PARAMS, data, batch_size=5)


@pytest.fixture
def said(monkeypatch):
    """What a console hears that is no terminal."""
    monkeypatch.setattr(progress.Pass, "_said", -np.inf)
    monkeypatch.setattr(progress.Pass, "_heard", -np.inf)
    console = rich.console.Console(file=open(os.devnull, "w"), record=True, width=80)  # noqa: SIM115
    monkeypatch.setattr(progress, "console", console)
    yield lambda: console.export_text(clear=False).splitlines()
    console.file.close()


def numbers(lines):
    return [int(re.fullmatch(rf"(?:solve  \d+ s  )?{WORDS}", line)[1]) for line in lines]


def test_a_product_from_disk_says_the_rows_that_are_done(said, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    jax.block_until_ready(product(matrix(source()), PARAMS))
    assert numbers(said()) == [0, 5, 10]


def test_a_product_in_memory_and_a_quick_one_from_disk_say_nothing(said, monkeypatch):
    jax.block_until_ready(product(matrix(source()), PARAMS))
    assert said() == []
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    jax.block_until_ready(product(matrix(source().batch()), PARAMS))
    assert said() == []


def test_many_products_of_eight_seconds_say_a_line_in_ten(said, monkeypatch):
    seconds = itertools.count(step=2.0)  # four looks at the clock a product
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    disk = source()
    for _ in range(20):
        jax.block_until_ready(product(matrix(disk), PARAMS))
    lines = numbers(said())
    assert lines[:4] == [0, 5, 10, 0]  # at 10, 20, 30 and 42 seconds
    assert 10 <= len(lines) <= 16


def test_a_phase_that_is_shown_says_it_itself(said, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    disk = source(0.05)
    with progress.working("solve"):
        found = curvature.solve(matrix(disk), PARAMS, damping=0.1)
        jax.block_until_ready(found)
    assert found.converged
    lines = [line for line in said() if "images" in line]
    assert {5, 10} & set(numbers(lines))
    assert all(line.startswith("solve  ") for line in said())


@pytest.mark.parametrize("total", [None, 4])
def test_a_terminal_shows_it_in_its_bar_or_spinner(monkeypatch, total):
    nowhere = open(os.devnull, "w")  # noqa: SIM115
    console = rich.console.Console(file=nowhere, record=True, force_terminal=True, width=150)
    monkeypatch.setattr(progress, "console", console)
    with progress.working("solve [x]", total):
        jax.block_until_ready(product(matrix(source(0.1)), PARAMS))
    nowhere.close()
    text = console.export_text()
    assert "solve [x]" in text
    assert re.search(WORDS, text)
    assert progress._shown == []


# Reading ahead


def test_a_product_reads_every_row_once_and_those_behind_a_batch_while_it_works():
    reads, seen = [], []

    def slow(params, batch):
        def look(x):
            time.sleep(0.3)
            seen.append({row for row, _ in reads})
            return x

        x = jax.pure_callback(look, batch.x, batch.x, vmap_method="sequential")
        return outputs(params, type(batch)(x, batch.labels))

    disk = source(reads=reads)
    rows = batches.rows_of(lambda batch: slow(PARAMS, batch), disk, 5)
    wanted = outputs(PARAMS, disk.batch())
    np.testing.assert_allclose(rows, wanted, rtol=1e-6)
    assert set(range(10)) <= seen[0]  # the second batch is there while the first one is computed
    assert sorted({row for row, _ in reads[:15]}) == list(range(13))
    assert len(reads) == 15 + 13  # the last batch is filled up with its last row; then `batch()`


@pytest.mark.parametrize("size", [5, 3])
def test_a_pass_that_was_interrupted_leaves_the_next_one_right(size):
    disk = source()
    batches._next(disk, np.arange(5))  # and no more: its loop was interrupted
    assert disk in batches._reading
    again = curvature.fisher(outputs, PARAMS, disk, batch_size=size)
    wanted = matrix(disk.batch())
    np.testing.assert_allclose(
        product(again, PARAMS)["kernel"], product(wanted, PARAMS)["kernel"], rtol=1e-5
    )


def test_rows_of_another_size_are_those_that_were_asked_for():
    disk = source()
    batches._next(disk, np.arange(5))
    x = batches._next(disk, np.arange(5, 8)).x
    np.testing.assert_array_equal(x, disk.batch().x[5:8])
    for first in (8, 11):
        batches._next(disk, np.arange(first, first + 3).clip(max=12))


def test_an_image_that_cannot_be_read_ends_the_pass_and_its_threads():
    with pytest.raises(Exception, match="row is broken"):
        jax.block_until_ready(product(matrix(source(broken=7)), PARAMS))
