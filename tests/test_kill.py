"""SIGKILL at random moments: the main job goes on to the bits of the run that nothing stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from famr_jax import checkpoint, models
from famr_jax.store import fingerprint

ROOT = Path(__file__).parent.parent
MOMENTS = 20
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from famr_jax import store
from famr_jax.cli import forget, run
from famr_jax.cli.flags import BenchFlags

store.SECONDS_BETWEEN_SAVES = 0
bench = BenchFlags(model="logistic", train_epochs=40, batch_size=64, oracles=2)
default = forget.Flags(forget=("class:3",), epochs=10, study=True, bench=bench)
run.main(forget.Flags, forget.run, description="", default=default)
"""


class Job:
    """A tiny run of the main job, of one lam, in one store."""

    def __init__(self, root, lam):
        self.out, self.cache, self.lam = root / f"out-{lam}", root / "cache", lam

    def start(self):
        places = ["--out", str(self.out), "--cache", str(self.cache)]
        words = [sys.executable, "-c", PROGRAM, "--lam", str(self.lam), *places]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        return subprocess.Popen(words, cwd=ROOT, env=environment, **quiet)

    def finish(self):
        assert self.start().wait(timeout=600) == 0
        return self.left()

    def left(self):
        """The results, and the bits of every model."""
        results = json.loads((self.out / "metrics.json").read_text())["results"]
        model = models.create("logistic", num_classes=10, image_shape=(8, 8, 1))
        like = jax.eval_shape(model.init, jax.random.key(0))
        roles = ("original", "class-3/famr", "class-3/oracle_0", "class-3/oracle_1")
        weights = [checkpoint.load(self.out / "checkpoints" / role, like).tree for role in roles]
        return results, [fingerprint(params) for params in weights]


def seconds_of(job):
    content = json.loads((job.out / "metrics.json").read_text())
    seconds = content["config"]["seconds"]
    return seconds["run"] + seconds["compile"] + 8  # and the start of Python


def killed(job, delay):
    """Whether a run was still at work after a delay, and was killed then."""
    process = job.start()
    try:
        return process.wait(timeout=delay) != 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path):
    whole = Job(tmp_path / "whole", 0.1)
    wanted, most = whole.finish(), seconds_of(whole)
    moments, job, kills = random.Random(0), Job(tmp_path / "killed", 0.1), 0
    while kills < MOMENTS:
        if killed(job, moments.uniform(0.5, most)):
            kills += 1
        else:
            assert job.left() == wanted
            shutil.rmtree(tmp_path / "killed")
    assert job.finish() == wanted


@pytest.mark.slow
def test_kills_beside_two_runs_that_share_the_store_change_no_bit_of_any(tmp_path):
    lams = (0.1, 0.2, 0.3)
    wanted = {lam: Job(tmp_path / "whole", lam).finish() for lam in lams}
    most = seconds_of(Job(tmp_path / "whole", 0.1))
    first, *others = (Job(tmp_path / "shared", lam) for lam in lams)
    moments = random.Random(1)
    for _ in range(4):
        beside = [job.start() for job in others]
        for _ in range(2):
            killed(first, moments.uniform(0.5, most))
        assert [process.wait(timeout=600) for process in beside] == [0, 0]
        for job in others:
            assert job.left() == wanted[job.lam]
            shutil.rmtree(job.out)
    for job in (first, *others):
        assert job.finish() == wanted[job.lam]
