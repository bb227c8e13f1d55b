"""Is our exact curvature as fast as the libraries on PyTorch, and as right? On a CPU.

    python -m experiments.benchmarks.curvature

Needs torch and, of PyHessian, curvlinops, hessian-eigenthings and dattri, those that shall run (the
extra `[peers]`). SciPy is its eigsh and cg over PyTorch's double backward, the graph kept. A peer
that cannot judge its own result is told the fewest steps that suffice.
11 minutes on two quiet CPU cores. Expect (best seconds, products, error in float64, and seconds of
a fresh process with JAX's cache on disk warm):

                                                           wall process HVPs   error  cold
    product, ViT                 PyHessian, graph kept    0.706   1.406    1   1e-06
    product, ViT                 dattri, graph kept       0.670   1.321    1   1e-06   3.4
    product, ViT                 PyHessian                1.648   3.267    1   1e-06
    product, ViT                 hessian-eigenthings      1.025   2.032    1   1e-06
    product, ViT                 curvlinops               1.354   2.652    1   2e-03  wrong
    product, ViT                 ours                     0.739   1.277    1   1e-06   2.5
    product in a loop of 10, ViT PyHessian               16.474  32.484   10   3e-05
    product in a loop of 10, ViT dattri                   9.206  18.007   10   3e-05  11.4
    product in a loop of 10, ViT ours                     4.708   8.639   10   1e-06   7.1
    top-10, ViT of 100           hessian-eigenthings      2.516   4.983   25   9e-05   4.2
    top-10, ViT of 100           SciPy                    4.785   9.301   34   9e-07
    top-10, ViT of 100           ours                     2.361   4.279   50   1e-06   5.0
    top-10, MLP                  hessian-eigenthings      0.060   0.117   40   5e-06
    top-10, MLP                  SciPy                    0.030   0.059   41   6e-06   1.6
    top-10, MLP                  ours                     0.022   0.033   55   5e-05   1.3
    density, MLP                 hessian-eigenthings      1.458   2.881  800   9e-04   2.8
    density, MLP                 PyHessian               fails: RuntimeError
    density, MLP                 ours                     0.222   0.408  800   1e-03   1.4
    damped inverse, MLP          curvlinops               0.066   0.133   15   9e-05
    damped inverse, MLP          dattri                   0.016   0.031   16   3e-05
    damped inverse, MLP          SciPy                    0.010   0.018   14   9e-05   1.6
    damped inverse, MLP          ours                     0.005   0.009   15   9e-05   0.9
    damped inverse, ViT of 100   curvlinops               1.687   3.333   12   2e-05
    damped inverse, ViT of 100   dattri                   1.241   2.442   16   3e-06
    damped inverse, ViT of 100   SciPy                    0.499   0.984    7   4e-05   2.1
    damped inverse, ViT of 100   ours                     0.375   0.683    8   4e-05   3.5
    product, ViT: 0.91 times as fast as dattri, graph kept (goal 1), cold 1.37
    product in a loop of 10, ViT: 1.96 times as fast as dattri (goal 2), cold 1.62
    top-10, ViT of 100: 1.07 times as fast as hessian-eigenthings (goal 3), cold 0.84
    top-10, MLP: 1.37 times as fast as SciPy (goal 3), cold 1.26
    density, MLP: 6.56 times as fast as hessian-eigenthings (goal 7), cold 2.01
    damped inverse, MLP: 2.10 times as fast as SciPy (goal 5), cold 1.73
    damped inverse, ViT of 100: 1.33 times as fast as SciPy (goal 5), cold 0.60
    product / gradient: FLOPs 2.68, wall 2.06
    further product / gradient: FLOPs 1.97, wall 1.65
    peak MB of a product by examples: 1000: 512, 10000: 530, 50000: 532

Goals missed, and why: a task is as much faster as its products are, 0.9 to 2 times on the ViT, 2 to
6.6 on the perceptron. Of the 50 and 55 products of our top-10, 20 look for missed copies of an
eigenvalue and recompute residuals; hessian-eigenthings does neither (its false copies are in the
JSON). A cold solve on the ViT traces two loops over the product and reads them back.
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.benchmarks import curvature_ours as ours
from experiments.benchmarks import curvature_peers as peers
from experiments.benchmarks.curvature_truth import TOLERANCE, Truth, faults, make_problems
from famr_jax.types import check_count

RIGHT = {"product": 1e-4, "top": TOLERANCE, "density": 0.02, "inverse": TOLERANCE}
"""Largest error of a result that counts as right; the errors are those of `Truth`."""

STEPS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
"""What a peer that does not stop by itself is given, until its result is right."""


class Task(NamedTuple):
    """One row of the comparison.

    Attributes:
        name: As in the JSON.
        problem: Which network and data.
        kind: What its error is: a key of `RIGHT`.
        ours: Runners of ours, by label: a task of `curvature_ours`.
        theirs: Runners of the peers, by label: a task of `curvature_peers` and a peer.
        goals: By label of ours, how many times as fast as the best right peer it shall be.
    """

    name: str
    problem: str
    kind: str
    ours: Mapping[str, str]
    theirs: Mapping[str, tuple[str, str]]
    goals: Mapping[str, float]


def _each(task: str, *names: str) -> dict[str, tuple[str, str]]:
    return {name: (task, name) for name in names}


GRAPH_KEPT = {f"{peer}, graph kept": ("product", peer) for peer in ("PyHessian", "dattri")}
TASKS = (
    Task(
        "product, ViT", "ViT", "product", {"ours": "product"},
        GRAPH_KEPT | _each("fresh product", "PyHessian", "hessian-eigenthings", "curvlinops"),
        {"ours": 1.0},
    ),
    Task(
        "product in a loop of 10, ViT", "ViT", "product", {"ours": "loop"},
        _each("loop", "PyHessian", "dattri"), {"ours": 2.0},
    ),
    Task(
        "top-10, ViT of 100", "ViT of 100", "top", {"ours": "top"},
        _each("top", "hessian-eigenthings", "SciPy"), {"ours": 3.0},
    ),
    Task(
        "top-10, MLP", "MLP", "top", {"ours": "top"},
        _each("top", "hessian-eigenthings", "SciPy"), {"ours": 3.0},
    ),
    Task(
        "density, MLP", "MLP", "density", {"ours": "density"},
        _each("density", "hessian-eigenthings", "PyHessian"), {"ours": 7.0},
    ),
    Task(
        "damped inverse, MLP", "MLP", "inverse", {"ours": "inverse"},
        _each("inverse", "curvlinops", "dattri", "SciPy"), {"ours": 5.0},
    ),
    Task(
        "damped inverse, ViT of 100", "ViT of 100", "inverse", {"ours": "inverse"},
        _each("inverse", "curvlinops", "dattri", "SciPy"), {"ours": 5.0},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    vit: tuple[int, ...] = (2, 64, 4, 4)
    """Patch, width, depth and heads of the Vision Transformer."""
    mlp: str = "mlp_32"
    """The small network."""
    size: int = 1000
    """Digits; the ViT's spectra and solves are on the first tenth."""
    epochs: int = 20
    """Of training, before anything is measured."""
    k: int = 10
    """Eigenvalues."""
    steps: int = 80
    """Lanczos steps of the density."""
    probes: int = 10
    """Probes of the density."""
    repeats: int = 3
    """Interleaved rounds; the best counts."""
    flat: tuple[int, ...] = (1000, 10_000, 50_000)
    """Sizes at which the memory of one product is taken."""
    cold: bool = True
    """Whether to measure fresh processes."""
    seed: int = 0
    """Of weights and vectors."""
    out: Path = Path("experiments/results/benchmark-curvature.json")
    """The JSON to write."""


SMALL = Flags((4, 8, 1, 2), "mlp_4", 60, 300, k=2, steps=20, repeats=1, flat=(60, 120), cold=False)


def run(flags: Flags) -> None:
    """Checks every result against float64, times all sides in turns, writes the JSON."""
    started = time.perf_counter()
    for name in ("size", "epochs", "k", "steps", "probes", "repeats"):
        check_count(name, getattr(flags, name))
    if jax.default_backend() != "cpu":
        raise ValueError(f"`JAX_PLATFORMS` must be cpu, got {jax.default_backend()}.")
    absent = peers.missing()
    for sentence in absent.values():
        common.console.print(sentence, style="yellow", markup=False)
    clock = common.Clock()
    problems = clock.show("training", lambda: make_problems(flags))
    truths = {name: Truth(problem, "torch" not in absent) for name, problem in problems.items()}
    tasks = {}
    for task in TASKS:
        work = partial(measure, task, problems[task.problem], truths[task.problem], absent, flags)
        tasks[task.name] = clock.show(task.name, work)
    if flags.cold:
        clock.show("cold", lambda: cold(tasks, problems, flags.repeats))
    results = {
        "missing": absent,
        "agreement": {name: truth.agreement for name, truth in truths.items()},
        "tasks": tasks,
        "products": clock.show("gradients", lambda: gradients(problems["ViT"], flags.repeats)),
        "faults": clock.show("faults", lambda: faults(problems["MLP"], truths["MLP"], absent)),
        "memory": clock.show("memory", lambda: memory(problems["ViT"], flags)),
    }
    config = common.describe("benchmarks.curvature", flags)
    config["environment"]["versions"] |= peers.versions(absent)
    config["environment"]["load_average"] = os.getloadavg()
    total, compiling = time.perf_counter() - started, clock.seconds()["compile"]
    config["seconds"] = clock.seconds() | {"run": total - compiling}
    result = common.plain({"config": config, "results": results})
    common.write_json(flags.out, result)
    for line in headline(result):
        print(line)


def measure(
    task: Task, problem: dict[str, Any], truth: Truth, absent: Mapping[str, str], flags: Flags
) -> dict[str, Any]:
    """Error, products and seconds of every runner, and our speed against the best right peer.

    A peer that fails says why. One that is told its number of steps gets the fewest that do.
    """
    runners, told = {}, {}
    for label, (kind, peer) in task.theirs.items():
        if peer in absent or "torch" in absent:
            continue
        for steps in _steps(kind, peer, flags.k):
            try:
                with warnings.catch_warnings(action="ignore"):
                    runner = peers.TASKS[kind](problem | {"max_steps": steps}, peer)
                    value, products = runner()
            except Exception as failure:
                told[label] = {"failed": f"{type(failure).__name__}: {failure}".split("\n")[0]}
                break
            error = truth.error(kind, value, from_peer=True)
            runners[label] = runner
            told[label] = {"error": error, "products": products, "steps": steps}
            if error <= RIGHT[task.kind]:
                break
    for label, kind in task.ours.items():
        runners[label] = ours.TASKS[kind](problem)
        value, products = jax.block_until_ready(runners[label]())
        error = truth.error(kind, value, from_peer=False)
        told[label] = {"error": error, "products": products}
    with warnings.catch_warnings(action="ignore"):
        timed = interleave(runners, flags.repeats)
    for label, seconds in timed.items():
        right = bool(told[label]["error"] <= RIGHT[task.kind])
        told[label] |= {"right": right, **seconds}
    return {"runners": told, "speed": speeds(task, told)}


def _steps(kind, peer, k):
    """What to tell a peer that does not stop by itself; hessian-eigenthings needs k at least."""
    if (kind, peer) == ("top", "hessian-eigenthings"):
        return [steps for steps in STEPS if steps >= k]
    return STEPS if (kind, peer) == ("inverse", "dattri") else (None,)


def interleave(runners: Mapping[str, Callable], repeats: int) -> dict[str, Any]:
    """Best and median wall and process seconds, all runners in turn in every round."""
    taken = {label: {"wall": [], "process": []} for label in runners}
    for _ in range(repeats):
        for label, run in runners.items():
            begun = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            taken[label]["wall"].append(time.perf_counter() - begun[0])
            taken[label]["process"].append(time.process_time() - begun[1])
    return {
        label: {
            clock: {"best": min(each), "median": float(np.median(each)), "n": len(each)}
            for clock, each in clocks.items()
        }
        for label, clocks in taken.items()
    }


def speeds(task: Task, told: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the best right peer over ours: above 1 we are faster."""
    right = {k: told[k]["wall"]["best"] for k in task.theirs if told.get(k, {}).get("right")}
    if not right:
        return {}
    best = min(right, key=right.get)
    return {
        label: {"peer": best, "ratio": right[best] / told[label]["wall"]["best"], "goal": goal}
        for label, goal in task.goals.items()
    }


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
            found = {
                name: min((each[name] for each in rounds), key=lambda used: used["wall"])
                for name in runners
            }
            found[label]["wall, nothing compiled"] = first["wall"]
            tasks[task.name]["cold"] = found


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


def gradients(problem: dict[str, Any], repeats: int) -> dict[str, Any]:
    """What a product costs, alone and each further one in a loop, in gradients."""
    runners = {
        "gradient": ours.gradient(problem),
        "product": ours.product(problem),
        "loop of 1": ours.loop(problem | {"loop": 1}),
        "loop of 11": ours.loop(problem | {"loop": 11}),
    }
    for run in runners.values():
        jax.block_until_ready(run())
    wall = {name: each["wall"]["best"] for name, each in interleave(runners, repeats).items()}
    wall["further product"] = (wall["loop of 11"] - wall["loop of 1"]) / 10
    costs = {"flops": ours.flops(problem), "wall": wall}
    return costs | {
        f"{name} / gradient": {cost: each[name] / each["gradient"] for cost, each in costs.items()}
        for name in ("product", "further product")
    }


def memory(problem: dict[str, Any], flags: Flags) -> dict[str, Any]:
    """Peak of a process that takes one product in micro-batches, by the number of examples."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "problem"
        for size in flags.flat:
            rows = np.arange(size) % len(problem["labels"])
            larger = problem | {"x": problem["x"][rows], "labels": problem["labels"][rows]}
            file.write_bytes(pickle.dumps(larger))
            used = fresh(("curvature_ours", "product"), file, {})
            found[size] = {"peak_mb": used["peak_mb"], "xla_mb": ours.working_memory(larger) / 1e6}
    return found


def headline(result: Mapping[str, Any]) -> list[str]:
    """The result in lines, as the docstring has them."""
    lines = [f"{'':<51}{'wall':>8}{'process':>8}{'HVPs':>5}{'error':>8}{'cold':>6}"]
    verdicts = []
    for name, task in result["results"]["tasks"].items():
        start = task.get("cold", {})
        for label, told in task["runners"].items():
            row = f"{name:<29}{label:<22}"
            if "failed" in told:
                lines.append(f"{row}  fails: {told['failed'].split(':')[0]}")
                continue
            wall, process = told["wall"]["best"], told["process"]["best"]
            row += f"{wall:8.3f}{process:8.3f}{told['products']:5d}{told['error']:8.0e}"
            row += f"{start[label]['wall']:6.1f}" if label in start else " " * 6
            lines.append(row.rstrip() + ("" if told["right"] else "  wrong"))
        for label, speed in task["speed"].items():
            verdict = f"{name}: {speed['ratio']:.2f} times as fast as {speed['peer']}"
            verdict += f" (goal {speed['goal']:g})"
            if speed["peer"] in start:
                verdict += f", cold {start[speed['peer']]['wall'] / start[label]['wall']:.2f}"
            verdicts.append(verdict)
    products = result["results"]["products"]
    for name in ("product", "further product"):
        cost = products[f"{name} / gradient"]
        verdicts.append(f"{name} / gradient: FLOPs {cost['flops']:.2f}, wall {cost['wall']:.2f}")
    peaks = [f"{size}: {each['peak_mb']:.0f}" for size, each in result["results"]["memory"].items()]
    return [*lines, *verdicts, "peak MB of a product by examples: " + ", ".join(peaks)]


if __name__ == "__main__":
    common.main(Flags, run)
