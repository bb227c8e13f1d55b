"""What choosing sees: the training set, a third of the test images, and one oracle."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from experiments.comparison import trials
from famr_jax import evaluation, train
from famr_jax.cli.bench import Bench
from famr_jax.evaluation import Evaluator
from famr_jax.forget import ForgetSet
from famr_jax.progress import Clock
from famr_jax.types import Params

CHOSEN_BY = ("for_acc", "ret_acc", "test_acc")
TIMED = 3
"""Epochs of training that are timed beside each method's trials."""


def validation_of(labels: np.ndarray, seed: int, *, every: int = 3) -> np.ndarray:
    """Which images are for choosing, every third of each class or another share of it, `[n]`."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    chosen[order[::every]] = True
    return chosen


class Choosing:
    """What choosing sees: the training set, validation images, and one oracle.

    Attributes:
        evaluate: Takes the accuracies of any weights; `test_acc` is on validation images.
        wanted: Those of the oracle.
        num_classes: C where classes are forgotten, None for samples.
    """

    def __init__(self, bench: Bench, gone: ForgetSet, judge: Params, validation: Any):
        self.bench, self.gone, self.warm = bench, gone, False
        measures = evaluation.named(*CHOSEN_BY)
        self.evaluate = Evaluator(bench.model, bench.train, validation, gone, measures=measures)
        self.wanted = self.evaluate(judge)
        self.num_classes = bench.dataset.num_classes if gone.classes else None

    def __call__(self, params: Params) -> dict[str, float]:
        """Accuracies and both scores of one trial's weights."""
        row = self.evaluate(params)
        numbers = {name: row[name] for name in CHOSEN_BY}
        by_oracle = trials.tug_of_war(row, self.wanted)
        return numbers | {"by_oracle": by_oracle, "alone": trials.alone(row, self.num_classes)}

    def training(self) -> float:
        """Seconds of a retraining, from those of a few epochs now: the load of a machine varies."""
        recipe = replace(self.bench.recipe, epochs=TIMED)
        rows, key = self.bench.train[~self.gone.mask], self.bench.keys.oracle_train
        run = partial(train.run, self.bench.model, rows, recipe, key=key)
        if not self.warm:
            self.warm = bool(run().finite)
        clock = Clock()
        clock.time("epochs", lambda: run().params)
        return clock.phases["epochs"]["run"] * self.bench.flags.train_epochs / TIMED
