"""Training until a given accuracy on held-out images, so that models are compared as equals."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.workbench import Workbench
from famr_jax import loop, mesh, metrics, train
from famr_jax.types import Batch, Params


class Reaching(NamedTuple):
    """Members on their way to an accuracy.

    Attributes:
        params: The weights at the first epoch that reached it; before, those of the last epoch.
        train: The state of training, which goes on until all have reached it.
        epoch: That first epoch, `[members]`; 0 before.
        accuracy: On the held-out images, of `params`, `[members]`.
    """

    params: Params
    train: train.TrainState
    epoch: jax.Array
    accuracy: jax.Array


class Reached(NamedTuple):
    """Members after training: stacked weights, first epoch that reached (0: none), accuracy."""

    params: Params
    epoch: list[int]
    accuracy: list[float]


def fit(
    bench: Workbench,
    name: str,
    *,
    mask: np.ndarray,
    held_out: np.ndarray,
    target: float,
    init_keys: jax.Array,
    keys: jax.Array,
) -> Reached:
    """Trains members of the bench's model, each to the first epoch at which it is accurate enough.

    The schedule is that of `train_epochs` whole epochs: a member that is stopped early is stopped
    at a large step.

    Args:
        bench: Data, model and training.
        name: Of the phase in the store.
        mask: Training rows, `[n]`.
        held_out: Rows that accuracy is taken on, `[n]`, disjoint from them.
        target: Accuracy to reach.
        init_keys: PRNG keys of the fresh weights, `[members]`.
        keys: Those of the batches and augmentations.
    """
    flags, rows = bench.flags, bench.train[np.flatnonzero(mask)]
    held = bench.train[np.flatnonzero(held_out)]
    sizes = {"size": len(rows), "epochs": flags.train_epochs, "batch_size": flags.batch_size}
    learner, members = bench.learner(len(rows)), keys.shape[0]

    def begin() -> Reaching:
        state = jax.jit(jax.vmap(lambda key: learner.init(bench.model.init(key))))(init_keys)
        kept = jax.tree.map(jnp.copy, state.params)
        return Reaching(kept, state, jnp.zeros(members, jnp.int32), jnp.zeros(members))

    def advance(state: Reaching, start: int) -> Iterator[tuple[int, Reaching, dict[str, Any]]]:
        steps = loop.run_epochs(
            learner, mesh.split(state.train), rows, **sizes, key=keys, start=start
        )
        for epoch in range(start + 1, flags.train_epochs + 1):
            info = {"finite": True}
            if not np.all(state.epoch):
                _, training, info = next(steps)
                state = _keep(state, training, epoch, target, bench, held)
            yield epoch, state, info | {"accuracy": state.accuracy, "reached": state.epoch}

    settings = {"target": target, "held_out": np.packbits(held_out).tobytes().hex()}
    config = bench.config(mask) | settings | {"members": members}
    fitted = bench.store.fit(name, config, begin, advance, epochs=flags.train_epochs)
    last = fitted.log[-1]
    return Reached(fitted.params, last["reached"], last["accuracy"])


def _keep(
    state: Reaching, training: train.TrainState, epoch: int, target: float, bench: Workbench,
    held: Batch,
) -> Reaching:  # fmt: skip
    before = state.epoch > 0
    choose = lambda old, new: jnp.where(before.reshape(-1, *[1] * (new.ndim - 1)), old, new)  # noqa: E731
    accuracies = jnp.stack(
        [
            metrics.accuracy(metrics.predict(bench.model.apply, params, held.x), held.labels)
            for params in common.members(training.params)
        ]
    )
    reached = ~before & (accuracies >= target)
    return Reaching(
        jax.tree.map(choose, state.params, training.params),
        training,
        jnp.where(reached, epoch, state.epoch),
        choose(state.accuracy, accuracies),
    )
