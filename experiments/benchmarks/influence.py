"""Is the influence of 1000 training on 100 test examples faster than with any correct peer?

    python -m experiments.benchmarks.influence

Needs torch, dattri and kronfluence (the extra `[peers]`). Of dattri, the explicit Hessian; its
conjugate gradients, which did not end within eight minutes on the MLP, are left out. Medians of
seven rounds on two CPU cores that others used too, the error of all scores against float64, and
seconds over ours of the same round, median and range:

    logistic  ours                  118 ms  error 8.1e-07
    logistic  dattri explicit       325 ms  error 4.6e-07    2.8x (2.2-3.8)
    logistic  torch by hand         168 ms  error 4.9e-07    1.4x (0.9-1.8)
    logistic  kronfluence ekfac    6160 ms  error 9.9e-01   46.8x (41.4-62.0)
    mlp_32    ours                  934 ms  error 1.1e-06
    mlp_32    dattri explicit      6429 ms  error 5.4e-07    7.1x (4.9-10.1)
    mlp_32    torch by hand        2093 ms  error 5.2e-07    2.3x (1.6-3.0)
    mlp_32    kronfluence ekfac    7097 ms  error 2.8e+00    7.2x (6.5-11.1)

The goals, 3 times dattri's speed on the logistic model and 8 on the MLP, are missed by the medians
and inside both ranges. With 650 parameters for 100 queries the logistic model is solved by the
matrix itself, 650 products; the MLP by 17 products of each of 100 columns, where its Hessian has
2410. Our time holds that of lambda_min too, which no peer tells.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.benchmarks import influence_peers as peers
from experiments.benchmarks.ranges import Perceptron, Some
from experiments.benchmarks.timing import interleave, ratio, write
from famr_jax import data, losses, models
from famr_jax.cli.flags import Count, Positive, check
from famr_jax.cli.run import main
from famr_jax.influence import influence
from famr_jax.minimise import minimise
from famr_jax.types import Batch, Context, Pair, Params

GOALS = {"logistic": 3.0, "mlp_32": 8.0}
CORRECT = 1e-3  # relative error of all scores; an approximation is not a peer to beat


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    models: Annotated[tuple[Perceptron, ...], Some()] = ("logistic", "mlp_32")
    """Perceptrons on digits: logistic or mlp_SIZE."""
    train: Count = 1000
    """Training examples."""
    queries: Count = 100
    """Test examples."""
    l2: Positive = 1e-2
    """Ridge of the objective; the matrix is Hessian + l2."""
    tol: Positive = 1e-5
    """Wanted relative residual of our solves."""
    repeats: Count = 7
    """Interleaved rounds, whose median counts."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path = Path("experiments/results/benchmark-influence.json")
    """The JSON to write."""


SMALL = Flags(models=("logistic", "mlp_4"), train=60, queries=7, repeats=1)


def run(flags: Flags) -> None:
    """Checks that all compute the same, times them in turns, writes the JSON."""
    started = time.perf_counter()
    check(flags)
    torch = peers.import_peers()
    digits = data.load("digits", data_dir=flags.data_dir)
    train, queries = digits.train.batch()[: flags.train], digits.test.batch()[: flags.queries]
    results = {}
    for name in flags.models:
        model = models.create(name, num_classes=10, image_shape=digits.image_shape)
        results[name] = measure(torch, model, train, queries, flags)
    compiling = sum(result["first_call_seconds"] for result in results.values())
    content = write(
        "influence",
        flags,
        results,
        seconds={"run": time.perf_counter() - started - compiling, "compile": compiling},
        environment={},
        versions={name: metadata.version(name) for name in ("torch", "dattri", "kronfluence")},
        path=flags.out,
    )
    print("\n".join(headline(content["results"])))


def trained(model: models.Model, train: Batch, l2: float) -> tuple[Params, Callable]:
    """The minimum of the mean loss plus ridge, and the loss of each example.

    Only there is the Hessian plus ridge definite, which Cholesky and conjugate gradients need.
    """

    def loss_fn(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.labels)

    def objective(params, context, pair, key):
        del context, key
        ridge = l2 / 2 * optax.tree.norm(params, squared=True)
        return jnp.mean(loss_fn(params, pair.forget)) + ridge, {}

    flat, unravel = ravel_pytree(model.init(jax.random.key(0)))
    start = unravel(flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape))
    found = minimise(
        objective,
        start,
        Context(start),
        Pair(train, None),
        key=jax.random.key(2),
        tol=1e-5,
        max_steps=3000,
    )
    return found.params, loss_fn


def measure(torch: Any, model: models.Model, train: Batch, queries: Batch, flags: Flags):
    """One model: errors of all methods, their times in turns, and ratios to ours."""
    params, loss_fn = trained(model, train, flags.l2)
    ours = partial(
        influence,
        loss_fn,
        params,
        train,
        queries,
        l2=flags.l2,
        normaliser="n",
        tol=flags.tol,
        key=jax.random.key(3),
    )
    begun = time.perf_counter()
    answer = jax.block_until_ready(ours())
    cold = time.perf_counter() - begun

    sides = peers.torch_data(torch, train), peers.torch_data(torch, queries)
    net = partial(peers.torch_mlp, torch, params)
    calls = {
        "ours": lambda: len(train) * np.asarray(ours().values),
        "dattri explicit": peers.by_dattri(torch, net(), *sides, flags.l2),
        "torch by hand": peers.by_hand(torch, net(), *sides, flags.l2),
        "kronfluence ekfac": peers.by_kronfluence(torch, net(), *sides, flags.l2),
    }
    truth, residual = peers.reference(loss_fn, params, train, queries, flags.l2)
    accuracy = {}
    for name, call in calls.items():
        scores = call()
        accuracy[name] = {
            "error": float(np.linalg.norm(scores - truth) / np.linalg.norm(truth)),
            "correlation": float(np.corrcoef(scores.ravel(), truth.ravel())[0, 1]),
        }
    columns = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(answer.solution.value))
    accuracy["ours"]["residual"] = residual(columns)
    times = interleave({name: partial(_once, call) for name, call in calls.items()}, flags.repeats)
    correct = [name for name in calls if accuracy[name]["error"] <= CORRECT and name != "ours"]
    best = min(correct, key=lambda name: times[name]["wall_ms"]["median"]) if correct else None
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {
        "num_params": size,
        "solved": answer.why,
        "num_steps": answer.solution.num_steps[0],
        "first_call_seconds": cold,
        "accuracy": accuracy,
        "times": times,
        "best_correct_peer": best,
        "speedup": {
            name: ratio(times[name]["wall_ms"], times["ours"]["wall_ms"])
            for name in calls
            if name != "ours"
        },
        "goal": GOALS.get(model.name),
    }


def _once(call: Callable[[], Any]) -> int:
    call()
    return 1


def headline(results: dict[str, Any]) -> list[str]:
    """One line a model and method, for the docstring, from the JSON."""
    lines = []
    for model, result in results.items():
        for name, clocks in result["times"].items():
            wall, error = clocks["wall_ms"]["median"], result["accuracy"][name]["error"]
            line = f"{model:<9} {name:<18} {wall:>6.0f} ms  error {error:.1e}"
            if times := result["speedup"].get(name):
                line += f"  {times['ratio']:>5.1f}x ({times['low']:.1f}-{times['high']:.1f})"
            lines.append(line)
    return lines


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
