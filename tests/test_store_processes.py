"""Several at one store: processes side by side, killed ones, and two threads."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import assert_same
from members import Members, bits

from famr_jax import store
from famr_jax.provenance import TRAINING
from famr_jax.store import Clock, Store

ROOT = Path(__file__).parents[1]
PROCESS = """
import sys
from pathlib import Path
import conftest  # whose devices these are
from famr_jax import store
from members import Members

store.SECONDS_BETWEEN_SAVES = 0
root, width, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
members = Members([3, 1, 4], width)
print("started", flush=True)
found = members.fit(root, resume=resume)
print(len(members.ran), *(store.fingerprint(each.params) for each in found), flush=True)
"""


def start(root, width, resume):
    command = [sys.executable, "-c", PROCESS, str(root), str(width), resume]
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    return subprocess.Popen(
        command,
        env=dict(os.environ, **paths),
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("width", "resume"), [(1, "resume"), (4, "resume"), (4, "anew")])
def test_runs_side_by_side_share_the_store(tmp_path, width, resume):
    runs = [start(tmp_path, width, resume) for _ in range(3)]
    told = [run.communicate()[0].split()[1:] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    wanted = Members([3, 1, 4], width).fit(tmp_path / "here")
    assert [words[1:] for words in told] == [[store.fingerprint(p) for p in bits(wanted)]] * 3
    chunks = {1: 3, 4: 1}[width] * (1 if resume == "resume" else 3)
    assert sum(int(words[0]) for words in told) == chunks


@pytest.mark.parametrize("width", [1, 4])
def test_killed_runs_leave_nothing_that_breaks_the_next(tmp_path, width):
    wanted = Members([3, 1, 4], width).fit(tmp_path / "whole")
    root = tmp_path / "run"
    for seen in ("*/progress/.[1-9]*", "*/progress/2", "*/weights/.[1-9]*"):
        run = start(root, width, "resume")
        while not list(root.glob(seen)) and run.poll() is None:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert_same(bits(Members([3, 1, 4], width).fit(root)), bits(wanted))


def test_numbers_that_two_runs_ask_for_at_once_are_computed_once(tmp_path):
    started, calls = threading.Event(), []

    def numbers():
        calls.append(1)
        started.set()
        time.sleep(0.3)  # the other asks meanwhile
        return {"share": 0.5}

    def ask():
        keep = Store(tmp_path, resume=True, clock=Clock())
        return keep.remember("numbers", {"a": 1}, numbers, sources=TRAINING)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask)
        assert started.wait(20)
        second = pool.submit(ask)
        assert first.result() == second.result() == {"share": 0.5}
    assert len(calls) == 1
