"""A random forget set: ascent and descent-ascent over a grid of steps, beside retrained models."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.workbench import Case, Workbench, make_optimizer
from famr_jax import mesh, metrics, unlearn
from famr_jax.methods import descent_ascent, gradient_ascent
from famr_jax.types import Batch, Params, Unlearner

WATCHED_RETAIN = 2000
CONTROL = "fine-tuning"
DISTANCES = ("for_tv", "test_tv")


def hoeffding(*sizes: int, confidence: float = 0.95) -> float:
    """Hoeffding's bound on the error of an accuracy, or on the difference of two.

        eps = sqrt(log(2 / (1 - confidence)) / 2 * sum_i 1 / n_i)

    On n images drawn at random, independently of the model, the accuracy is off by eps or more with
    a probability of at most 1 - confidence; so is the difference of two such accuracies.
    """
    return math.sqrt(math.log(2 / (1 - confidence)) / 2 * sum(1 / size for size in sizes))


class Watch:
    """Measures weights: accuracies on forget, retain and test, and distances to the oracles.

    A distance is the mean total variation of the predictions, averaged over the oracles; for an
    oracle, over the others.
    """

    def __init__(self, bench: Workbench, case: Case, oracles: Sequence[Params]):
        retained = np.flatnonzero(~case.mask)
        order = np.random.default_rng(bench.flags.seed).permutation(len(retained))
        self.apply_fn = bench.model.apply
        self.sets = {
            "for": bench.train[np.flatnonzero(case.mask)],
            "ret": bench.train[np.sort(retained[order[:WATCHED_RETAIN]])],
            "test": bench.test,
        }
        self.oracles = [self._logits(params) for params in oracles]

    def __call__(self, params: Params) -> dict[str, float]:
        """The numbers of one model."""
        return self._numbers(self._logits(params), self.oracles)

    def each_oracle(self) -> list[dict[str, float]]:
        """The numbers of every oracle."""
        others = [[o for o in self.oracles if o is not oracle] for oracle in self.oracles]
        pairs = zip(self.oracles, others, strict=True)
        return [self._numbers(oracle, rest) for oracle, rest in pairs]

    def _logits(self, params):
        predict = metrics.predict
        return {name: predict(self.apply_fn, params, batch.x) for name, batch in self.sets.items()}

    def _numbers(self, logits, oracles):
        numbers = {
            f"{name}_acc": float(metrics.accuracy(logits[name], batch.labels))
            for name, batch in self.sets.items()
        }
        if oracles:
            for name in ("for", "test"):
                distances = [metrics.total_variation(logits[name], o[name]) for o in oracles]
                numbers[f"{name}_tv"] = float(np.mean(distances))
        return numbers


def grid(
    bench: Workbench,
    case: Case,
    *,
    ascent_lrs: Sequence[float],
    descent_ascent_lrs: Sequence[float],
    ascent_epochs: int,
) -> Iterator[tuple[dict[str, Any], Unlearner]]:
    """Every method at every step, by SGD: what it is, and the unlearner."""
    apply_fn, num_forget, num_retain = bench.model.apply, case.mask.sum(), (~case.mask).sum()
    for lr in ascent_lrs:
        method = gradient_ascent(apply_fn, optimizer=make_optimizer("sgd", lr))
        yield {"method": "gradient ascent", "lr": lr}, method
    weights = {
        "descent-ascent": 1.0,
        "rescaled descent-ascent": float(num_forget / num_retain),
        CONTROL: 0.0,
    }
    steps = ascent_epochs * math.ceil(num_retain / bench.flags.batch_size)
    for name, weight in weights.items():
        for lr in descent_ascent_lrs:
            settings = {"forget_weight": weight, "ascent_steps": steps}
            method = descent_ascent(apply_fn, **settings, optimizer=make_optimizer("sgd", lr))
            yield {"method": name, "lr": lr, "forget_weight": weight}, method


def follow(
    method: Unlearner,
    params: Params,
    forget: Batch,
    retain: Batch,
    watch: Callable[[Params], dict[str, float]],
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
) -> dict[str, Any]:
    """What `watch` sees before the first epoch and after each, up to one that is not finite."""
    seen, finite = [watch(params)], True
    start = mesh.split(unlearn.begin(method, params, forget, retain, key=key))
    sizes = {"epochs": epochs, "batch_size": batch_size}
    for _, state, info in unlearn.run_epochs(method, start, forget, retain, **sizes, key=key):
        finite = bool(info["finite"])
        if finite:
            seen.append(watch(state.params))
    return {"finite": finite} | {name: [entry[name] for entry in seen] for name in seen[0]}


def measure(
    bench: Workbench,
    case: Case,
    *,
    epochs: int,
    ascent_epochs: int,
    ascent_lrs: Sequence[float],
    descent_ascent_lrs: Sequence[float],
) -> dict[str, Any]:
    """The original, the oracles, the bounds, and every path of `grid`."""
    original, oracles = bench.original(), bench.oracles(case)
    watch = Watch(bench, case, oracles)
    forget, retain = (bench.train[np.flatnonzero(mask)] for mask in (case.mask, ~case.mask))
    settings = {"epochs": epochs, "batch_size": bench.flags.batch_size}
    settings["key"] = bench.key("unlearn")
    lrs = {"ascent_lrs": ascent_lrs, "descent_ascent_lrs": descent_ascent_lrs}
    paths = []
    for about, method in grid(bench, case, ascent_epochs=ascent_epochs, **lrs):
        walk = lambda m=method: follow(m, original.params, forget, retain, watch, **settings)  # noqa: E731
        phase = f"{about['method']} {about['lr']:g}"
        paths.append(about | bench.clock.show(phase, walk))
    num_forget, num_test = len(forget), len(bench.test)
    result = {
        "bench": bench.describe(original),
        "forget": case.spec,
        "num_forget": num_forget,
        "num_retain": len(retain),
        "num_test": num_test,
        "num_watched_retain": len(watch.sets["ret"]),
        "duplicates_taken": case.duplicates_taken,
        "ascent_epochs": ascent_epochs,
        "eps": {"forget": hoeffding(num_forget), "difference": hoeffding(num_forget, num_test)},
        "original": watch(original.params),
        "oracles": watch.each_oracle(),
        "paths": paths,
    }
    return result | {"summary": summarise(result)}


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """How many points of the paths push For-Acc too low, and how far from the oracles they are.

    Too low is below the oracles' mean test accuracy by more than Hoeffding's bound on the
    difference. `chosen` is the point that a search by For-Acc would choose. The control, which only
    fine-tunes, counts nowhere.
    """
    oracles, original = result["oracles"], result["original"]
    mean = {name: float(np.mean([oracle[name] for oracle in oracles])) for name in oracles[0]}
    low = mean["test_acc"] - result["eps"]["difference"]
    points = [
        {"method": path["method"], "lr": path["lr"], "epoch": epoch}
        | {name: path[name][epoch] for name in original}
        for path in result["paths"]
        if path["method"] != CONTROL
        for epoch in range(1, len(path["for_acc"]))
    ]
    too_low = [point for point in points if point["for_acc"] < low]
    nearer = lambda points, name: sum(point[name] < original[name] for point in points)  # noqa: E731
    apart = [abs(oracle["for_acc"] - oracle["test_acc"]) for oracle in oracles]
    distance = lambda point: abs(point["for_acc"] - mean["for_acc"])  # noqa: E731
    return {
        "oracle_mean": mean,
        "largest_difference": max(apart),
        "original_difference": abs(original["for_acc"] - original["test_acc"]),
        "too_low_below": low,
        "points": len(points),
        "too_low": len(too_low),
        "nearer": {name: nearer(points, name) for name in DISTANCES},
        "too_low_nearer": {name: nearer(too_low, name) for name in DISTANCES},
        "chosen": min(points, key=distance, default=None),
    }
