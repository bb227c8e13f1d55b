"""What the benchmarks share: timing in turns, and the JSON of what was measured."""

import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from famr_jax.cli.record import describe
from famr_jax.files import plain, write_json


def milliseconds() -> float:
    """Wall time, in milliseconds."""
    return 1e3 * time.perf_counter()


def process_milliseconds() -> float:
    """Processor time over all threads, in milliseconds."""
    return 1e3 * time.process_time()


def page_faults() -> float:
    """Pages of memory that were touched for the first time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


CLOCKS = {
    "wall_ms": milliseconds,
    "process_ms": process_milliseconds,
    "page_faults": page_faults,
}


def interleave(
    runners: Mapping[str, Callable[[], int]],
    repeats: int,
    clocks: Mapping[str, Callable[[], float]] = CLOCKS,
) -> dict[str, Any]:
    """What a step of each runner takes, by every clock, all runners in turn in every round.

    Args:
        runners: Functions that return how many steps they made.
        repeats: Rounds; best and median are over them, each is told.
        clocks: What is read before and after, by name.
    """
    taken = {name: {clock: [] for clock in clocks} for name in runners}
    for _ in range(repeats):
        for name, step in runners.items():
            begun = {clock: read() for clock, read in clocks.items()}
            num_steps = step()
            for clock, read in clocks.items():
                taken[name][clock].append((read() - begun[clock]) / num_steps)
    return {
        name: {
            clock: {"best": min(each), "median": float(np.median(each)), "each": each}
            for clock, each in columns.items()
        }
        for name, columns in taken.items()
    }


def ratio(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, float]:
    """One clock's readings of a runner over another's of the same round: median and range."""
    each = sorted(a / b for a, b in zip(above["each"], below["each"], strict=True))
    return {"ratio": float(np.median(each)), "low": each[0], "high": each[-1]}


def ready(run: Callable[[], Any]) -> int:
    """Runs to the end as one step, whatever it returns."""
    jax.block_until_ready(run())
    return 1


def only_cpu() -> None:
    """Raises a `ValueError` unless JAX computes on the CPU, where the peers do."""
    if jax.default_backend() != "cpu":
        raise ValueError(f"`JAX_PLATFORMS` must be cpu, got {jax.default_backend()}.")


def write(
    name: str,
    flags: Any,
    results: Mapping[str, Any],
    *,
    seconds: Mapping[str, Any],
    environment: Mapping[str, Any],
    versions: Mapping[str, str],
    path: Path,
) -> dict[str, Any]:
    """Writes the JSON of a benchmark, and returns it.

    Args:
        name: Of the benchmark.
        flags: The parsed flags.
        results: The numbers.
        seconds: Running and compiling.
        environment: What else the numbers were measured on.
        versions: Of the peers' packages.
        path: The file.
    """
    config = describe(f"benchmarks.{name}", f"python -m experiments.benchmarks.{name}", flags)
    config["environment"] |= {"load_average": os.getloadavg(), **environment}
    config["environment"]["versions"] |= versions
    content = plain({"config": config | {"seconds": seconds}, "results": results})
    write_json(path, content)
    return content
