"""What fresh processes of the curvature benchmark take: cold seconds, and peak memory by size."""

import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import curvature_ours as ours
from experiments.benchmarks.curvature_tasks import TASKS


def cold(tasks: dict[str, Any], problems: Mapping[str, Any], repeats: int) -> None:
    """Adds to each task the seconds of fresh processes: the best right peer's, and ours.

    From the start of the process to its result; ours with JAX's cache on disk warm.
    """
    with tempfile.TemporaryDirectory() as directory:
        cache = {"JAX_COMPILATION_CACHE_DIR": directory}
        cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for task in TASKS:
            label, kind = next(iter(task.ours.items()))
            runners = {label: ("curvature_ours", kind)}
            if best := tasks[task.name]["speed"].get(label, {}).get("peer"):
                runners = {best: ("curvature_peers", *task.theirs[best])} | runners
            problem = Path(directory) / "problem"
            steps = tasks[task.name]["runners"].get(best, {}).get("steps")
            problem.write_bytes(pickle.dumps(problems[task.problem] | {"max_steps": steps}))
            first = fresh(runners[label], problem, cache)
            rounds = [
                {name: fresh(words, problem, cache) for name, words in runners.items()}
                for _ in range(repeats)
            ]
            found = {name: _median([each[name] for each in rounds]) for name in runners}
            found[label]["wall, nothing compiled"] = first["wall"]
            tasks[task.name]["cold"] = found


def _median(rounds):
    """The process of median wall time, of the slower middle two."""
    return sorted(rounds, key=lambda used: used["wall"])[len(rounds) // 2]


def fresh(words: tuple[str, ...], problem: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """Wall seconds to the result of a new process, its processor seconds and peak memory."""
    module, *rest = words
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", str(problem), *rest]
    begun = time.perf_counter()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env={**os.environ, **variables}) as child:
        line = child.stdout.readline()
        wall = time.perf_counter() - begun
        # Not `ru_maxrss`: that of a child is never less than its parent's.
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
        child.stdin.close()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if line.strip() != b"ready" or child.returncode:
        raise RuntimeError(f"`{' '.join(command)}` must print ready, got {line!r}.")
    process = used.ru_utime + used.ru_stime
    return {"wall": wall, "process": process, "peak_mb": int(peak[1]) / 1024 if peak else None}


def memory(problem: dict[str, Any], sizes: Sequence[int]) -> dict[str, Any]:
    """Peak of a process that takes one product in micro-batches, by the number of examples."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "problem"
        for size in sizes:
            rows = np.arange(size) % len(problem["labels"])
            larger = problem | {"x": problem["x"][rows], "labels": problem["labels"][rows]}
            file.write_bytes(pickle.dumps(larger))
            used = fresh(("curvature_ours", "product"), file, {})
            found[size] = {"peak_mb": used["peak_mb"], "xla_mb": ours.working_memory(larger) / 1e6}
    return found
