"""Relearning: how few steps on few examples bring a forgotten class back."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax

from famr_jax import metrics
from famr_jax.models.checking import check
from famr_jax.train import Supervised
from famr_jax.types import ApplyFn, Batch, Params, check_count, check_labels_of, check_number


class Relearned(NamedTuple):
    """How a class came back.

    Attributes:
        steps: The fewest steps after which the accuracy reached the level, 0 if it was there
            before the first; None if no step reached it.
        accuracy: On the held-out examples before the first step and after each,
            `[num_steps + 1]`.
    """

    steps: int | None
    accuracy: np.ndarray


def relearn(
    apply_fn: ApplyFn,
    params: Params,
    examples: Batch,
    held_out: Batch,
    *,
    optimizer: optax.GradientTransformation,
    level: float,
    num_steps: int,
) -> Relearned:
    """Fine-tunes on few examples until other examples are recognised again, and counts the steps.

    Each step is one of training (`train.Supervised`) on all examples at once, so that nothing is
    drawn. Give examples of every class: of one class alone any model learns to name it always. The
    number says something beside that of a retrained model under the same examples, optimizer and
    level.

    Args:
        apply_fn: The model.
        params: The weights to start from.
        examples: What is trained on, such as five images of each class.
        held_out: What the accuracy is taken on, such as other images of the forgotten class.
        optimizer: Of the fine-tuning, fresh.
        level: The accuracy that counts as returned, > 0 and <= 1.
        num_steps: Steps that are taken, whether or not it is reached before.

    Raises:
        ValueError: A number out of range, an empty set, images and labels of different number, a
            label that is none of the classes, what is no optimizer, or a model that `models.check`
            refuses.
    """
    check_count("num_steps", num_steps)
    check_number("level", level)
    if not 0 < level <= 1:
        raise ValueError(f"`level` must be in (0, 1], got {level!r}.")
    if not isinstance(optimizer, optax.GradientTransformation):
        got = type(optimizer).__name__
        raise ValueError(f"`optimizer` must be an optax transformation, got {got}.")
    for name, batch in (("examples", examples), ("held_out", held_out)):
        if not isinstance(batch, Batch):
            raise ValueError(f"`{name}` must be a Batch, got {type(batch).__name__}.")
        if not len(batch):
            raise ValueError(f"`{name}` must hold at least 1 example, got 0.")
        if len(batch.x) != len(batch):
            both = f"{len(batch.x)} and {len(batch)}"
            raise ValueError(f"`{name}` must have a label for each image, got {both}.")
        check_labels_of(apply_fn, params, batch)
    check(apply_fn, params, examples.x)
    learner = Supervised(apply_fn, optimizer)
    accuracy = np.asarray(_run(learner, params, examples, held_out, num_steps=num_steps))
    reached = np.flatnonzero(accuracy >= level - 1e-6)
    return Relearned(int(reached[0]) if reached.size else None, accuracy)


@partial(jax.jit, static_argnames="num_steps")
def _run(learner, params, examples, held_out, *, num_steps):
    def accuracy(state):
        return metrics.accuracy(learner.apply_fn(state.params, held_out.x), held_out.labels)

    def body(state, key):
        state, _ = learner.step(state, examples, key)
        return state, accuracy(state)

    state = learner.init(params)
    keys = jax.random.split(jax.random.key(0), num_steps)  # a step that augments nothing uses none
    _, found = jax.lax.scan(body, state, keys)
    return jax.numpy.concatenate([accuracy(state)[None], found])
