"""A product over images on disk says how far it is; one over images in memory says nothing."""

import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from famr_jax import curvature, progress
from famr_jax.data.stream import OnDisk

PARAMS = {"kernel": jnp.ones((16, 3))}
WORDS = r"(\d+)/13 images of a pass, \d+ s"


def outputs(params, batch):
    return batch.x.reshape(len(batch.x), -1) @ params["kernel"]


@jax.jit
def product(matrix, v):
    return matrix(v)


def source(seconds=0.0):
    def read(row):
        time.sleep(seconds)
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


def test_many_quick_products_say_a_line_at_times(said, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.2)
    begun, disk = time.monotonic(), source(0.002)
    for _ in range(20):
        jax.block_until_ready(product(matrix(disk), PARAMS))
    taken = time.monotonic() - begun
    assert 1 <= len(numbers(said())) <= taken / 0.2


def test_a_phase_that_is_shown_says_it_itself(said, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    disk = source(0.05)
    with progress.working("solve"):
        found = curvature.solve(matrix(disk), PARAMS, damping=0.1)
        jax.block_until_ready(found)
    assert found.converged
    lines = [line for line in said() if "images" in line]
    assert {5, 10} <= set(numbers(lines))
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
