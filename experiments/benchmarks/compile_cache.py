"""How long does the second process of a command wait for its compiled programs, kept or not?

    python -m experiments.benchmarks.compile_cache

Each command runs in a process of its own, models trained anew (`--fresh`) into directories that
are thrown away: without kept programs, then twice with them, of which the first fills the store and
the second finds it. Seconds of compiling are what JAX reports, wall seconds and those of processors
hold the start of Python too; of a busy machine only the last say much.

Seconds of compiling, without and then with what an earlier process left, and of the processors, on
2 cores that others used too:

    demo          compile 69.3 to 11.4    processor 192.5 to 110.1
    conditioning  compile 172.6 to 12.0   processor 527.8 to 478.6
    step          compile 22.2 to 4.4     processor 24.6 to 12.5
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from experiments.benchmarks.ranges import Some
from experiments.benchmarks.timing import write
from famr_jax import models
from famr_jax.cli.flags import Count, OneOf, check
from famr_jax.cli.run import main
from famr_jax.progress import working

ROOT = Path(__file__).parents[2]
STEP = """
import sys, json, jax, jax.numpy as jnp
from dataclasses import dataclass
from pathlib import Path
from famr_jax import loop, models, train
from famr_jax.cli import programs
from famr_jax.progress import Clock
from famr_jax.types import Batch

out, cache, name, size, batch_size = sys.argv[1:]
with programs.kept(Path(cache) / "compiled"):
    size, batch_size = int(size), int(batch_size)
    model = models.create(name, num_classes=10, image_shape=(size, size, 3))
    recipe = train.Recipe(epochs=1, batch_size=batch_size, lr=1e-3)
    rows = Batch(jnp.zeros((batch_size, size, size, 3)), jnp.zeros(batch_size, jnp.int32))
    learner, clock = recipe.learner(model.apply, batch_size), Clock()
    key = jax.random.key(0)
    state = clock.time("step", lambda: train.begin(learner, model.init, key))
    epochs = loop.run_epochs(
        learner, state, rows, size=batch_size, epochs=1, batch_size=batch_size, key=key
    )
    clock.time("step", lambda: list(epochs)[-1][2])
Path(out).mkdir(parents=True, exist_ok=True)
(Path(out) / "metrics.json").write_text(json.dumps({"config": {"seconds": clock.seconds()}}))
"""
"""One training step, by the words OUT CACHE MODEL SIZE BATCH_SIZE."""
CASES = ("demo", "conditioning", "step")
CaseName = Annotated[str, OneOf(CASES)]
"""A flag's type: one of them."""
RUNS = ("without", "first", "second")
KINDS = ("wall", "processor", "run", "compile")


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    cases: Annotated[tuple[CaseName, ...], Some()] = CASES
    """The demo, the conditioning study, one training step of a ViT."""
    step_model: str = "vit_Ti/16"
    """The ViT of the step."""
    step_size: Count = 224
    """Side of its images."""
    step_batch_size: Count = 32
    """Images of the step."""
    small: bool = False
    """Small settings of the demo and the study, to try the benchmark itself."""
    out: Path = ROOT / "experiments" / "results" / "benchmark-compile_cache.json"
    """The JSON."""


def command(case: str, flags: Flags, out: Path, cache: Path) -> list[str]:
    """What one process runs."""
    places = ["--out", str(out), "--cache", str(cache), "--fresh"]
    small = ["--model", "mlp_8", "--train-epochs", "2", "--oracles", "2"] if flags.small else []
    if case == "demo":
        return ["-m", "experiments.class_forgetting", *places, *small]
    if case == "conditioning":
        return ["-m", "experiments.famr.hessian_conditioning", *places, *small[:4]]
    size, batch_size = str(flags.step_size), str(flags.step_batch_size)
    return ["-c", STEP, str(out), str(cache), flags.step_model, size, batch_size]


def timed(words: list[str], out: Path, *, kept: bool) -> dict[str, float]:
    """Wall and processor seconds of a process, and what it booked as running and compiling."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "true" if kept else "false"
    begun, used = time.perf_counter(), processor_seconds()
    subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall, used = time.perf_counter() - begun, processor_seconds() - used
    booked = json.loads((out / "metrics.json").read_text())["config"]["seconds"]
    return {"wall": wall, "processor": used, "run": booked["run"], "compile": booked["compile"]}


def processor_seconds() -> float:
    """Of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(flags: Flags) -> list[dict[str, Any]]:
    """A row a case and process."""
    rows = []
    for case in flags.cases:
        with tempfile.TemporaryDirectory() as place:
            for run in RUNS:
                out = Path(place) / run
                # Without kept programs nothing is shared; the two others share their store.
                cache = Path(place) / ("alone" if run == "without" else "shared")
                with working(f"{case} {run}"):
                    found = timed(command(case, flags, out, cache), out, kept=run != "without")
                rows.append({"case": case, "process": run} | found)
            programs = list((Path(place) / "shared" / "compiled").glob("*-cache"))
            size = sum(program.stat().st_size for program in programs)
            rows[-1] |= {"programs": len(programs), "mebibytes": size / 2**20}
    return rows


def headline(content: dict[str, Any]) -> list[str]:
    """A line a case: seconds without kept programs, and in the second process with them."""
    rows = {(row["case"], row["process"]): row for row in content["results"]["rows"]}
    lines = []
    for case in dict.fromkeys(case for case, _ in rows):
        ends = rows[case, "without"], rows[case, "second"]
        told = "  ".join(
            f"{kind + ' ' + ' to '.join(f'{end[kind]:.1f}' for end in ends):<22}"
            for kind in ("compile", "processor")
        )
        lines.append(f"{case:<14}{told}".rstrip())
    return lines


def run(flags: Flags) -> dict[str, Any]:
    """Measures, writes the JSON, prints a line a row, and returns the JSON."""
    check(flags)
    if "step" in flags.cases:
        shape = (flags.step_size, flags.step_size, 3)
        models.create(flags.step_model, num_classes=10, image_shape=shape)
    rows = measure(flags)
    content = write(
        "compile_cache",
        flags,
        {"rows": rows},
        seconds={kind: sum(row[kind] for row in rows) for kind in ("run", "compile")},
        environment={},
        versions={},
        path=flags.out,
    )
    print("\n".join(headline(content)))
    for row in content["results"]["rows"]:
        told = "  ".join(f"{kind} {row[kind]:.1f} s" for kind in KINDS)
        print(f"{row['case']:<14}{row['process']:<9}{told}")
    return content


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
