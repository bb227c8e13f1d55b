"""Training until a given accuracy on held-out images, so that models are compared as equals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import loop, mesh, metrics, train
from famr_jax.cli.bench import WATCHED_RETAIN, Bench
from famr_jax.evaluation import Part
from famr_jax.forget import ForgetSet
from famr_jax.types import Batch, Params


class Division(NamedTuple):
    """Which images every model is trained, stopped and measured on.

    Attributes:
        gone: What is forgotten.
        held_out: The rows of the training set that are held out, `[n]`.
        sets: What is measured on; "probed" are images that no model was trained on.
    """

    gone: ForgetSet
    held_out: np.ndarray
    sets: dict[str, Part]


def divide(bench: Bench, gone: ForgetSet, share: float) -> Division:
    """Draws the held-out share of the training images, and what every model is measured on."""
    rng, count = np.random.default_rng(bench.flags.seed), len(bench.train)
    held_out = np.zeros(count, bool)
    held_out[rng.permutation(count)[: round(share * count)]] = True
    retained = rng.permutation(np.flatnonzero(~held_out & ~gone.mask))[:WATCHED_RETAIN]
    lost, held, test = np.isin(bench.test.labels, gone.classes), bench.train[held_out], bench.test
    sets = {
        "forget": bench.train[~held_out & gone.mask],
        "retain": bench.train[np.sort(retained)],
        "test_forgotten": test[lost],
        "test": test[~lost],
        "probed": Batch(
            jnp.concatenate([held.x, test.x]), jnp.concatenate([held.labels, test.labels])
        ),
    }
    return Division(gone, held_out, {name: Part(batch) for name, batch in sets.items()})


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
    bench: Bench,
    division: Division,
    role: Literal["original", "oracle"],
    *,
    target: float,
    members: int,
) -> Reached:
    """Trains members of the bench's model, each to the first epoch at which it is accurate enough.

    The schedule is that of `train_epochs` whole epochs: a member that is stopped early is stopped
    at a large step. An oracle is neither trained nor stopped by what is forgotten.

    Args:
        bench: Data, model and training.
        division: The images to train on, and those held out.
        role: What is trained.
        target: Accuracy to reach on held-out images.
        members: How many.
    """
    flags, keys, used = bench.flags, bench.keys, np.ones_like(division.held_out)
    init_key, key = keys.init, keys.train
    if role == "oracle":
        init_key, key, used = keys.oracle_init, keys.oracle_train, ~division.gone.mask
    init_keys, keys = (jax.random.split(each, members) for each in (init_key, key))
    mask, held_out = ~division.held_out & used, division.held_out & used
    rows, held = bench.train[mask], bench.train[held_out]
    learner = bench.recipe.learner(bench.model.apply, len(rows), bench.model.batch_norm)

    def accuracies(params):
        logits = (metrics.predict(bench.model.apply, p, held.x) for p in loop.members(params))
        return jnp.stack([metrics.accuracy(each, held.labels) for each in logits])

    def begin() -> Reaching:
        state = train.begin(learner, train.init_of(bench.model), init_keys)
        kept = jax.tree.map(jnp.copy, state.params)
        return Reaching(kept, state, jnp.zeros(members, jnp.int32), jnp.zeros(members))

    def advance(state: Reaching, start: int) -> Iterator[tuple[int, Reaching, dict[str, Any]]]:
        steps = loop.run_epochs(
            learner,
            mesh.split(state.train),
            rows,
            size=len(rows),
            epochs=flags.train_epochs,
            batch_size=flags.batch_size,
            key=keys,
            start=start,
        )
        for epoch in range(start + 1, flags.train_epochs + 1):
            info = {"finite": True}
            if not np.all(state.epoch):
                _, training, info = next(steps)
                state = _keep(state, training, epoch, accuracies(training.params), target)
            yield epoch, state, info | {"accuracy": state.accuracy, "reached": state.epoch}

    settings = {"target": target, "held_out": np.packbits(held_out).tobytes().hex()}
    fitted = bench.store.fit(
        f"{role}s {bench.model.name}",
        bench.config(mask) | settings | {"members": members},
        begin,
        advance,
        epochs=flags.train_epochs,
        sources=(*bench.sources, "famr_jax.metrics", Path(__file__)),
    )
    last = fitted.log[-1]
    return Reached(fitted.params, last["reached"], last["accuracy"])


def _keep(state, training, epoch, accuracies, target):
    """Weights and accuracies of members that had reached the target stay; those of others go on."""
    before = state.epoch > 0

    def choose(old, new):
        return jnp.where(before.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    reached = ~before & (accuracies >= target)
    return Reaching(
        jax.tree.map(choose, state.params, training.params),
        training,
        jnp.where(reached, epoch, state.epoch),
        choose(state.accuracy, accuracies),
    )
