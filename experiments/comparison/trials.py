"""Eight trials of one method on one forget set, and the two that are chosen of them.

What is here sees training images, validation images and the one oracle that is kept out, and
neither the test images nor the oracles that judge later.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famr_jax import loop, unlearn
from famr_jax.cli import choosing
from famr_jax.curvature import Eigenspace
from famr_jax.types import ApplyFn, Batch, Params, Source, Unlearner, pytree, static

BUDGET = 0.2
"""Most examples that a trial may process, as a share of those of one retraining."""
PART = 0.6
"""Of the budget, what a trial spends whose length is not searched: eight cost a retraining."""
NUM_TRIALS = 8
OWN = ("lr", "part")
"""Numbers of a trial that are not the method's: its step, and its part of the budget."""
OPTIMIZERS = {
    "adam": optax.inject_hyperparams(optax.adam)(learning_rate=1.0),
    "training": optax.inject_hyperparams(optax.adam)(learning_rate=1.0, b2=0.99),
    "sgd": optax.inject_hyperparams(optax.sgd)(learning_rate=1.0),
}
"""By name, with a step of 1 that `AtStep` replaces; "training" has the moments of the training."""


class Search(NamedTuple):
    """The eight settings of a method that are tried, and what each costs.

    Whatever is put through the network counts once each time, for a gradient or not.

    Attributes:
        method: A name of `BY_NAME`, or `FILE.py:FUNCTION`.
        grid: The numbers to try; all combinations are. `lr` is the step, `part` the part of the
            budget that is spent, else `PART`; every other is an argument of the method.
        optimizer: Its name in `OPTIMIZERS`; None for a one-shot method.
        fixed: Arguments that are the same in all trials.
        forget: How often a step puts an example of its forget batch through the network.
        retain: The same of its retained batch.
        once: The same of every example of the forget set and of the retained set, in preparation.
        extra: Examples more, in preparation.
        over: Why a trial may cost more than the budget; none may, if empty.
        most: Largest forget set that it is run on, where its memory or time grows fast; 0 for any.
    """

    method: str
    grid: Mapping[str, tuple]
    optimizer: str | None = None
    fixed: Mapping[str, Any] = {}
    forget: int = 0
    retain: int = 0
    once: tuple[int, int] = (0, 0)
    extra: int = 0
    over: str = ""
    most: int = 0

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the grid."""
        values = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, each, strict=True)) for each in values]

    @property
    def sees(self) -> Literal["forget", "retain", "store"]:
        """What it sees: the forget set alone, retained data too, or a store of the curvature."""
        if self.over:
            return "store"
        return "retain" if self.retain or self.once[1] else "forget"


class Sizes(NamedTuple):
    """How many examples there are, how a retraining passes over them, and what a trial may spend.

    Attributes:
        forget: Examples of the forget set.
        retain: Of the retained set.
        batch_size: Of a step.
        epochs: Of a retraining.
        budget: Most examples of a trial, as a share of those of a retraining.
        part: Of the budget, what a trial spends whose length is not searched.
    """

    forget: int
    retain: int
    batch_size: int
    epochs: int
    budget: float = BUDGET
    part: float = PART

    @property
    def retraining(self) -> int:
        """Examples that a retraining processes."""
        return self.epochs * self.epoch("retain")

    def epoch(self, over: str) -> int:
        """Examples of one set in an epoch over it: steps times those of a step."""
        size = getattr(self, over)
        return math.ceil(size / self.batch_size) * min(size, self.batch_size)


def epochs_of(search: Search, setting: Mapping[str, Any], sizes: Sizes) -> int:
    """The most epochs that a trial's part of the budget pays for, at least one."""
    if search.optimizer is None:
        return 1
    left = sizes.budget * setting.get("part", sizes.part) * sizes.retraining - _prepared(
        search, sizes
    )
    return max(1, math.floor(left / _epoch(search, sizes)))


def examples(search: Search, setting: Mapping[str, Any], sizes: Sizes) -> int:
    """How many examples a trial puts through the network."""
    steps = epochs_of(search, setting, sizes) * _epoch(search, sizes)
    return _prepared(search, sizes) + (steps if search.optimizer else 0)


def _prepared(search, sizes):
    forget, retain = search.once
    return forget * sizes.forget + retain * sizes.retain + search.extra


def _epoch(search, sizes):
    over = "retain" if search.retain else "forget"
    steps = math.ceil(getattr(sizes, over) / sizes.batch_size)
    batches = (min(each, sizes.batch_size) for each in (sizes.forget, sizes.retain))
    return steps * sum(n * b for n, b in zip((search.forget, search.retain), batches, strict=True))


@pytree
class AtStep:
    """An unlearner whose optimizer has the step `lr`, a number that does not retrace.

    The optimizer is one of `optax.inject_hyperparams`, which keeps the step in its state.
    """

    method: Unlearner
    lr: float
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params, forget, retain, key):
        state = self.method.init(params, forget, retain, key)
        like = optax.tree.get(state, "learning_rate")
        return optax.tree.set(state, learning_rate=jnp.asarray(self.lr, like.dtype))

    def step(self, state, pair, key):
        return self.method.step(state, pair, key)


@pytree
class Edited:
    """A one-shot method without its log, so that XLA leaves out what only judges the edit."""

    method: unlearn.OneShot
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params, forget, retain, key):
        return unlearn.OneShotState(self.method.init(params, forget, retain, key).params, {})

    def step(self, state, pair, key):
        return self.method.step(state, pair, key)


def made(
    search: Search, setting: Mapping[str, Any], apply_fn: ApplyFn, store: Eigenspace | None = None
) -> Unlearner:
    """The unlearner of a trial."""
    numbers = {name: value for name, value in setting.items() if name not in OWN}
    _, constructor, _ = choosing.found(search.method)
    build = partial(constructor, apply_fn, **search.fixed, **numbers)
    if search.optimizer is None:
        method = build(store=store) if search.sees == "store" else build()
        return Edited(method, method.epoch_over)
    method = build(optimizer=OPTIMIZERS[search.optimizer])
    return AtStep(method, setting["lr"], method.epoch_over)


def unlearned(
    search: Search,
    setting: Mapping[str, Any],
    apply_fn: ApplyFn,
    originals: Sequence[Params],
    stores: Sequence[Eigenspace],
    train: Batch | Source,
    mask: np.ndarray,
    *,
    sizes: Sizes,
    key: jax.Array,
) -> list[Params]:
    """Every original after one trial, each under its own key."""
    masks = np.stack([mask] * len(originals))
    return loop.members(
        unlearned_each(
            search,
            setting,
            apply_fn,
            originals,
            stores,
            train,
            masks,
            ~masks,
            epochs=epochs_of(search, setting, sizes),
            batch_size=sizes.batch_size,
            key=key,
        )
    )


def unlearned_each(
    search: Search,
    setting: Mapping[str, Any],
    apply_fn: ApplyFn,
    originals: Sequence[Params],
    stores: Sequence[Eigenspace],
    train: Batch | Source,
    forget: np.ndarray,
    retain: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
) -> Params:
    """Models after each unlearned its own forget set by one setting, with a member axis.

    Args:
        search: The method.
        setting: Its numbers.
        apply_fn: The model.
        originals: The trained weights of every member.
        stores: Their curvature stores, for methods that work from one.
        train: The training set.
        forget: What each forgets, masks `[members, n]`.
        retain: What each retains, which methods that see the forget set alone are not given.
        epochs: Passes over what the method's epochs pass over.
        batch_size: Examples a step.
        key: PRNG key of all of them.
    """
    keys, stacked = jax.random.split(key, len(originals)), partial(jax.tree.map, _stacked)
    if search.sees != "store":
        return unlearn.run_each(
            made(search, setting, apply_fn),
            stacked(*originals),
            train,
            forget,
            None if search.sees == "forget" else retain,
            epochs=epochs,
            batch_size=batch_size,
            key=keys,
        ).params
    done = []
    for original, store, mask, own in zip(originals, stores, forget, keys, strict=True):
        method = made(search, setting, apply_fn, store)
        run = unlearn.run(
            method, original, train[mask], epochs=epochs, batch_size=batch_size, key=own
        )
        done.append(run.params)
    return stacked(*done)


def _stacked(*leaves):
    return jnp.stack(leaves)


def tug_of_war(row: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """(1 - |dForget|) (1 - |dRetain|) (1 - |dTest|), accuracies against those of an oracle."""
    names = ("for_acc", "ret_acc", "test_acc")
    return math.prod(1 - abs(row[name] - oracle[name]) for name in names)


def alone(row: Mapping[str, float], num_classes: int | None) -> float:
    """How good a trial is as far as one can say without an oracle.

        Ret-Acc - |For-Acc - goal|,    goal: 1/C or less of classes, validation Acc of samples

    Args:
        row: Accuracies of a trial, `test_acc` on validation images.
        num_classes: C where classes are forgotten, None for samples.
    """
    if num_classes is None:
        return row["ret_acc"] - abs(row["for_acc"] - row["test_acc"])
    return row["ret_acc"] - max(0.0, row["for_acc"] - 1 / num_classes)


def best(scores: Sequence[float]) -> int:
    """The first trial of the highest score; one without a finite score is the worst."""
    return int(np.argmax([score if math.isfinite(score) else -math.inf for score in scores]))
