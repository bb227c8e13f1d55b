"""Retraining without the forget set: the oracle, as a row among the methods."""

from collections.abc import Callable
from typing import Literal

from jax import Array

from famr_jax.train import Supervised, TrainState
from famr_jax.types import Params, pytree, static


@pytree
class Retrain:
    """The unlearner behind `retrain`."""

    learner: Supervised
    init_fn: Callable[[Array], Params] = static()
    epoch_over: Literal["forget", "retain"] = static(default="retain")

    def init(self, params, forget, retain, key) -> TrainState:
        del params, forget, retain
        return self.learner.init(self.init_fn(key))

    def step(self, state, pair, key):
        return self.learner.step(state, pair.retain, key)


def retrain(learner: Supervised, init_fn: Callable[[Array], Params]) -> Retrain:
    """Trains fresh weights on the retained set alone; ignores the trained ones.

    Args:
        learner: The supervised learner that trained the original model.
        init_fn: `init_fn(key) -> params`, the model's initialiser.
    """
    return Retrain(learner, init_fn)
