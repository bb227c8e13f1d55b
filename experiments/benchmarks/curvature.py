"""Is our exact curvature as fast as the libraries on PyTorch, and as right? On a CPU.

python -m experiments.benchmarks.curvature
"""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

from experiments import common
from experiments.benchmarks import curvature_ours as ours
from experiments.benchmarks import torch_peers as peers
from experiments.benchmarks.torch_vit import torch_layout
from famr_jax import train
from famr_jax.curvature import eigenvalues, solve
from famr_jax.loop import run_epochs
from famr_jax.types import Batch, check_count

LOOP = 10
MICRO_BATCH = 50
TOLERANCE = 1e-4
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
        theirs: Runners of the peers, by label: a task of `torch_peers` and a peer.
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
    epochs: int = 5
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


SMALL = Flags(
    vit=(4, 8, 1, 2), mlp="mlp_4", size=60, epochs=1, k=2, steps=6, probes=2, repeats=1,
    flat=(60, 120), cold=False,
)  # fmt: skip


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
    truths = {name: Truth(problem, peers.has_torch()) for name, problem in problems.items()}
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
        "faults": clock.show("faults", lambda: faults(problems, truths, absent)),
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
        common.console.print(line, highlight=False)


def make_problems(flags: Flags) -> dict[str, Any]:
    """Networks trained on scikit-learn's digits, with a random unit vector: plain arrays."""
    digits = load_digits()
    x = (digits.images[: flags.size, :, :, None] / 8 - 1).astype(np.float32)
    data = Batch(jnp.asarray(x), jnp.asarray(digits.target[: flags.size], jnp.int32))
    sizes = {"k": flags.k, "steps": flags.steps, "probes": flags.probes, "loop": LOOP}
    sizes |= {"tol": TOLERANCE, "batch_size": min(MICRO_BATCH, flags.size)}
    problems = {}
    for name, architecture, damping in (("ViT", flags.vit, 20.0), ("MLP", flags.mlp, 1.0)):
        problem = {"model": architecture, "image_shape": (8, 8, 1), "num_classes": 10}
        model = ours.model_of(problem)
        init_key, fit_key, vector_key = jax.random.split(jax.random.key(flags.seed), 3)
        learner = train.Supervised(model.apply, optax.adam(1e-3))
        state = learner.init(model.init(init_key))
        fit = {"size": flags.size, "epochs": flags.epochs, "batch_size": 100, "key": fit_key}
        *_, (_, fitted, _) = run_epochs(learner, state, data, **fit)
        flat, unravel = ravel_pytree(fitted.params)
        v = jax.random.normal(vector_key, flat.shape)
        arrays = {"params": fitted.params, "v": unravel(v / jnp.linalg.norm(v))}
        arrays |= {"x": data.x, "labels": data.labels}
        problem |= jax.tree.map(np.asarray, arrays) | sizes | {"damping": damping}
        problems[name] = problem
    tenth = max(1, flags.size // 10)
    first = {"x": x[:tenth], "labels": np.asarray(data.labels[:tenth])}
    return problems | {"ViT of 100": problems["ViT"] | first}


class Truth:
    """Products in float64, and with them the error of any result.

    Attributes:
        agreement: Relative difference of one product to PyTorch's double backward in float64.
        order: Where each entry of a peer's flat vector stands in ours.
    """

    def __init__(self, problem: Mapping[str, Any], with_torch: bool):
        self.problem = problem
        cast = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf  # noqa: E731
        arrays = {name: problem[name] for name in ("params", "x", "labels", "v")}
        double = {**problem, **jax.tree.map(cast, arrays)}
        flat, unravel = ravel_pytree(problem["params"])
        numbers = unravel(jnp.arange(flat.size, dtype=jnp.float32))
        with jax.enable_x64(True):
            self.matvec = ours.hessian(double, problem["batch_size"])
            self.v = np.asarray(ravel_pytree(double["v"])[0])
        self.agreement, self.order = None, np.arange(flat.size)
        if with_torch:
            net = peers.Net(double, "float64")
            names, indices = [n for n, _ in net.net.named_parameters()], torch_layout(numbers)
            self.order = np.concatenate([indices[name].ravel() for name in names]).astype(int)
            theirs = self.to_ours(net.kept()(net.v))
            self.agreement = _relative(theirs, self(self.v))

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """H v of a flat vector in our order."""
        with jax.enable_x64(True):
            return np.asarray(_flat_product(self.matvec, jnp.asarray(v, jnp.float64)))

    def to_ours(self, value: Any) -> np.ndarray:
        """A peer's flat vectors, in rows, in our order and float64."""
        value = np.asarray(value.detach() if hasattr(value, "detach") else value, np.float64)
        moved = np.empty_like(value)
        moved[..., self.order] = value
        return moved

    def error(self, task: str, value: Any, from_peer: bool) -> float:
        """How wrong a result is.

        Product: relative error. Eigenpairs: the largest ||H u - e u|| / e_1. Density: Wasserstein
        distance to the exact spectrum, of its range. Inverse: ||b - (H + damping I) x|| / ||b||.
        """
        move = self.to_ours if from_peer else _flatten
        if task in ("product", "fresh product", "held product"):
            return _relative(move(value), self(self.v))
        if task == "loop":
            v = self.v
            for _ in range(self.problem["loop"]):
                v = self(v)
                v = v / np.linalg.norm(v)
            return _relative(move(value), v)
        if task == "top":
            values, vectors = np.asarray(value[0], np.float64), move(value[1])
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            pairs = zip(values, vectors, strict=True)
            return max(np.linalg.norm(self(u) - e * u) for e, u in pairs) / values.max()
        if task == "density":
            nodes, weights = (np.asarray(part, np.float64).ravel() for part in value)
            exact = self.spectrum
            distance = scipy.stats.wasserstein_distance(nodes, exact, weights)
            return distance / np.ptp(exact)
        x = move(value)
        return float(np.linalg.norm(self.v - self(x) - self.problem["damping"] * x))

    @property
    def spectrum(self) -> np.ndarray:
        """All eigenvalues of the float64 matrix."""
        size = len(self.v)
        with jax.enable_x64(True):
            columns = jax.lax.map(partial(_flat_product, self.matvec), jnp.eye(size))
        return np.linalg.eigvalsh(np.asarray(columns))


@jax.jit
def _flat_product(matvec, v):
    return ravel_pytree(matvec(ravel_pytree(matvec.params)[1](v)))[0]


def _flatten(value):
    flat = value if isinstance(value, jax.Array) else ravel_pytree(value)[0]
    return np.asarray(flat, np.float64)


def _relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def measure(
    task: Task, problem: dict[str, Any], truth: Truth, absent: Mapping[str, str], flags: Flags
) -> dict[str, Any]:
    """Error, products and seconds of every runner, and our speed against the best right peer.

    A peer that fails says why. One that takes a number of steps gets the fewest that do.
    """
    runners, told = {}, {}
    for label, (kind, peer) in task.theirs.items():
        if peer in absent or not peers.has_torch():
            continue
        for steps in STEPS if _takes_steps(kind, peer) else (None,):
            try:
                runners[label] = peers.TASKS[kind](problem | {"max_steps": steps}, peer)
                value, products = runners[label]()
                error = truth.error(kind, value, from_peer=True)
            except Exception as failure:
                runners.pop(label, None)
                told[label] = {"failed": f"{type(failure).__name__}: {failure}".split("\n")[0]}
                break
            told[label] = {"error": error, "products": products}
            if error <= RIGHT[task.kind]:
                break
    for label, kind in task.ours.items():
        runners[label] = ours.TASKS[kind](problem)
        value, products = jax.block_until_ready(runners[label]())
        error = truth.error(kind, value, from_peer=False)
        told[label] = {"error": error, "products": products}
    for label, seconds in interleave(runners, flags.repeats).items():
        told[label] |= {"right": bool(told[label]["error"] <= RIGHT[task.kind]), **seconds}
    return {"runners": told, "speed": speeds(task, told)}


def _takes_steps(kind, peer):
    return (kind, peer) in (("top", "hessian-eigenthings"), ("inverse", "dattri"))


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
                runners = {best: ("torch_peers", *task.theirs[best])} | runners
            problem = Path(directory) / "problem"
            steps = tasks[task.name]["runners"].get(best, {}).get("products")
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
    environment = {**os.environ, **variables}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        line = child.stdout.readline()
        wall = time.perf_counter() - begun
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if line.strip() != b"ready" or child.returncode:
        raise RuntimeError(f"`{' '.join(command)}` must print ready, got {line!r}.")
    process = used.ru_utime + used.ru_stime
    return {"wall": wall, "process": process, "peak_mb": used.ru_maxrss / 1024}


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


def faults(
    problems: Mapping[str, Any], truths: Mapping[str, Truth], absent: Mapping[str, str]
) -> dict[str, Any]:
    """Where the peers are known to go wrong, and we on the same: errors, copies, words."""
    mlp, truth = problems["MLP"], truths["MLP"]
    n = len(mlp["labels"])
    ragged, key = (2 * n // 5, 2 * n // 5, n - 2 * (2 * n // 5)), jax.random.key(0)
    matvec = ours.hessian(mlp, None)
    value, _ = ours.product(mlp | {"batch_size": ragged[0]})()
    top = eigenvalues(matvec, matvec.params, k=mlp["k"], tol=TOLERANCE, key=key).values
    b, damping = mlp["v"], 1e-3
    solved = solve(matvec, b, damping=damping, tol=TOLERANCE, max_steps=500)
    silent, info = jax.scipy.sparse.linalg.cg(
        jax.jit(lambda v: jax.tree.map(lambda a, c: a + damping * c, matvec(v), v)),
        b, tol=TOLERANCE, maxiter=500,
    )  # fmt: skip
    x = _flatten(silent)
    found = {
        "ragged batches": {"ours": truth.error("product", value, from_peer=False)},
        "copies of the largest eigenvalue": {"ours": _copies(top)},
        "solve of an indefinite matrix": {
            "ours": solved.why,
            "jax.scipy": f"info {info}",
            "jax.scipy, true residual": float(np.linalg.norm(truth.v - truth(x) - damping * x)),
        },
    }
    if "hessian-eigenthings" not in absent:
        product, values = peers.eigenthings_faults(mlp, ragged, steps=200)
        wrong = truth.error("product", product, from_peer=True)
        found["ragged batches"]["hessian-eigenthings"] = wrong
        found["copies of the largest eigenvalue"]["hessian-eigenthings"] = _copies(values)
    return found


def _copies(values):
    values = np.asarray(values)
    return int(np.sum(values > values.max() * (1 - 1e-3)))


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
    lines = []
    for name, task in result["results"]["tasks"].items():
        told = task["runners"]
        for label, each in told.items():
            if "failed" in each:
                lines.append(f"{name:<30} {label:<24} failed: {each['failed'][:40]}")
                continue
            start = task.get("cold", {}).get(label)
            lines.append(
                f"{name:<30} {label:<24} {each['wall']['best']:8.3f} "
                f"{each['process']['best']:8.3f} "
                f"{each['products']:4d} {each['error']:.0e} {'' if each['right'] else 'wrong':<5} "
                + (f"{start['wall']:6.1f}" if start else "")
            )
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    common.main(Flags, run)
