"""A random forget set: ascent and descent-ascent over a grid of steps, beside retrained models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from famr_jax import data, evaluation, forget, mesh, metrics, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.evaluation import Evaluator, Measure
from famr_jax.forget import ForgetSet
from famr_jax.methods import descent_ascent, gradient_ascent
from famr_jax.types import Unlearner

CONTROL = "fine-tuning"
DISTANCES = ("for_tv", "test_tv")


def total_variation(view: Any, oracles: Sequence[Any], *, name: str) -> float:
    """Mean total variation between the predictions of a model and of the oracles, over a set."""
    return view.divergence(metrics.total_variation, oracles, name)


MEASURES = (
    *evaluation.named("for_acc", "ret_acc", "test_acc"),
    Measure("for_tv", "", "forget", partial(total_variation, name="forget"), "TV, forget"),
    Measure("test_tv", "", "test", partial(total_variation, name="test"), "TV, test"),
)


def hoeffding(*sizes: int, confidence: float = 0.95) -> float:
    """Hoeffding's bound on the error of an accuracy, or on the difference of two.

        eps = sqrt(log(2 / (1 - confidence)) / 2 * sum_i 1 / n_i)

    On n images drawn at random, independently of the model, the accuracy is off by eps or more with
    a probability of at most 1 - confidence; so is the difference of two such accuracies.
    """
    return math.sqrt(math.log(2 / (1 - confidence)) / 2 * sum(1 / size for size in sizes))


def draw(bench: Bench, share: float) -> ForgetSet:
    """A random share of the training images, with their exact duplicates.

    Raises:
        ValueError: Nothing would be retained.
    """
    drawn = forget.at_random(share, size=len(bench.train), seed=bench.flags.seed)
    (groups,) = data.duplicate_groups(bench.dataset.train)
    mask = forget.check(forget.with_duplicates(drawn, groups), name=f"random:{share}")
    return ForgetSet(f"random:{share}", mask, duplicates=int(mask.sum() - drawn.sum()))


def grid(flags: Any, bench: Bench, gone: ForgetSet) -> Iterator[tuple[dict[str, Any], Unlearner]]:
    """Every method at every step of the experiment's flags, by SGD: what it is, the unlearner."""
    apply_fn, num_forget, num_retain = bench.model.apply, gone.mask.sum(), (~gone.mask).sum()
    for lr in flags.ascent_lrs:
        method = gradient_ascent(apply_fn, optimizer=make_optimizer("sgd", lr))
        yield {"method": "gradient ascent", "lr": lr}, method
    weights = {
        "descent-ascent": 1.0,
        "rescaled descent-ascent": float(num_forget / num_retain),
        CONTROL: 0.0,
    }
    steps = flags.ascent_epochs * math.ceil(num_retain / bench.flags.batch_size)
    for name, weight in weights.items():
        for lr in flags.descent_ascent_lrs:
            optimizer = make_optimizer("sgd", lr)
            method = descent_ascent(
                apply_fn, forget_weight=weight, ascent_steps=steps, optimizer=optimizer
            )
            yield {"method": name, "lr": lr, "forget_weight": weight}, method


def follow(
    flags: Any, bench: Bench, gone: ForgetSet, method: Unlearner, evaluate: Evaluator
) -> dict[str, Any]:
    """The measures before the first epoch and after each, up to one that is not finite."""
    forgotten, retained = bench.train[gone.mask], bench.train[~gone.mask]
    original, key = evaluate.original, bench.keys.unlearn
    seen, finite = [numbers(evaluate(original))], True
    steps = unlearn.run_epochs(
        method,
        mesh.split(unlearn.begin(method, original, forgotten, retained, key=key)),
        forgotten,
        retained,
        epochs=flags.epochs,
        batch_size=bench.flags.batch_size,
        key=key,
    )
    for _, state, info in steps:
        finite = bool(info["finite"])
        if finite:
            seen.append(numbers(evaluate(state.params)))
    return {"finite": finite} | {name: [entry[name] for entry in seen] for name in seen[0]}


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of one model, of a row of the evaluator."""
    return {measure.name: row[measure.name] for measure in MEASURES if measure.name in row}


def measure(flags: Any, bench: Bench, gone: ForgetSet) -> dict[str, Any]:
    """The original, the oracles, the bounds, and every path of `grid`."""
    original = bench.original()
    evaluate = bench.evaluator(
        gone, original.params, bench.oracles(gone), measures=MEASURES, sampled=True
    )
    before, *oracles = evaluate.references()
    paths = []
    for about, method in grid(flags, bench, gone):
        walk = partial(follow, flags, bench, gone, method, evaluate)
        paths.append(about | bench.clock.show(f"{about['method']} {about['lr']:g}", walk))
    num_forget, num_test = int(gone.mask.sum()), len(bench.test)
    result = {
        "bench": bench.describe(original),
        "forget": gone.spec,
        "num_forget": num_forget,
        "num_retain": int((~gone.mask).sum()),
        "num_test": num_test,
        "num_watched_retain": before["n"]["ret_acc"],
        "duplicates_taken": gone.duplicates,
        "ascent_epochs": flags.ascent_epochs,
        "eps": {"forget": hoeffding(num_forget), "difference": hoeffding(num_forget, num_test)},
        "original": numbers(before),
        "oracles": [numbers(row) for row in oracles],
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

    def nearer(points):
        return {n: sum(point[n] < original[n] for point in points) for n in DISTANCES}

    def from_oracles(point):
        return abs(point["for_acc"] - mean["for_acc"])

    return {
        "oracle_mean": mean,
        "largest_difference": max(abs(each["for_acc"] - each["test_acc"]) for each in oracles),
        "original_difference": abs(original["for_acc"] - original["test_acc"]),
        "too_low_below": low,
        "points": len(points),
        "too_low": len(too_low),
        "nearer": nearer(points),
        "too_low_nearer": nearer(too_low),
        "chosen": min(points, key=from_oracles, default=None),
    }
