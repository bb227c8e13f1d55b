"""Epochs as one jitted scan over a permutation, and the host loop between them.

Training and unlearning share it: a *learner* is any pytree with
`step(state, sets, key) -> (state, info)`, and `sets` is a `Batch` or a `Pair` of them.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax.mesh import gather, spread
from famr_jax.types import Batch, check_count


def draw(key: Array, size: int, num_steps: int, batch_size: int) -> Array:
    """Row indices of `num_steps` batches, `[num_steps, batch_size]`, from fresh permutations.

    Permutations of `range(size)` follow one another until the batches are full, so that every
    example comes once before any comes twice, and all come equally often in expectation.
    """
    passes = math.ceil(num_steps * batch_size / size)
    rows = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, passes))
    return rows.reshape(-1)[: num_steps * batch_size].reshape(num_steps, batch_size)


def run_epoch(learner: Any, state: Any, sets: Any, key: Array, *, num_steps: int, batch_size: int):
    """One epoch as a `lax.scan`: the state after it, and the mean of each entry of `info`.

    `info["finite"]` is added: whether every step's scalars and the last weights are finite.
    """
    order_key, step_key = jax.random.split(key)
    leaves, structure = jax.tree.flatten(sets, is_leaf=lambda node: isinstance(node, Batch))
    rows = [
        draw(jax.random.fold_in(order_key, i), len(leaf), num_steps, min(batch_size, len(leaf)))
        for i, leaf in enumerate(leaves)
    ]

    def body(state, xs):
        step_rows, key = xs
        batches = [spread(leaf[r]) for leaf, r in zip(leaves, step_rows, strict=True)]
        return learner.step(state, jax.tree.unflatten(structure, batches), key)

    state, info = jax.lax.scan(body, state, (rows, jax.random.split(step_key, num_steps)))
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((info, state.params))]
    info = jax.tree.map(jnp.mean, info)
    return state, gather({**info, "finite": jnp.all(jnp.stack(finite))})


@partial(jax.jit, static_argnames=("num_steps", "batch_size"), donate_argnames="state")
def _epoch(learner, state, sets, key, *, num_steps, batch_size):
    return run_epoch(learner, state, sets, key, num_steps=num_steps, batch_size=batch_size)


@partial(jax.jit, static_argnames=("num_steps", "batch_size", "swept"), donate_argnames="state")
def _epoch_of_members(learner, state, sets, key, *, num_steps, batch_size, swept):
    one = partial(run_epoch, num_steps=num_steps, batch_size=batch_size)
    return jax.vmap(one, in_axes=(0 if swept else None, 0, None, 0))(learner, state, sets, key)


def run_epochs(
    learner: Any,
    state: Any,
    sets: Any,
    *,
    size: int,
    epochs: int,
    batch_size: int,
    key: Array,
    start: int = 0,
    swept: bool = False,
) -> Iterator[tuple[int, Any, dict[str, Array]]]:
    """Yields `(epoch, state, info)` after each of the epochs `start + 1 .. epochs`.

    The key of epoch e, counted from 1, is `fold_in(key, e)`, so going on from a saved state with
    `start` gives bit for bit what an uninterrupted run gives. The yielded state is donated to the
    next epoch: save or copy what you keep of it before asking for more. Stops after the first
    epoch that is not finite.

    Args:
        learner: Pytree with `step(state, sets, key) -> (state, info)`.
        state: The state to go on from; its buffers are consumed. With a leading member axis if
            `key` has one: all members then run as one `vmap`ped program.
        sets: A `Batch`, or a pytree of them, whole; a step gets a minibatch of each.
        size: The number of examples that one epoch passes over, in ceil(size / batch_size) steps.
        epochs: Number of epochs in all, those before `start` included.
        batch_size: Examples a step, at most; a smaller set is used whole at every step.
        key: PRNG key, or `[members]` of them.
        start: Number of epochs that `state` has behind it.
        swept: Whether the numbers of `learner` have the member axis too: each member has its own.

    Raises:
        ValueError: A count below one; a legacy key; a set with more images than labels, or fewer; a
            sweep without a member axis, or of another number of members.
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    check_count("size", size)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"`key` must come from jax.random.key, got an array of {key.dtype}.")
    if swept:
        check_swept(learner, key)
    for leaf in jax.tree.leaves(sets, is_leaf=lambda node: isinstance(node, Batch)):
        if len(leaf.x) != len(leaf.labels):
            sizes = f"{len(leaf.x)} and {len(leaf.labels)}"
            raise ValueError(f"`x` and `labels` of a set must have equal lengths, got {sizes}.")
    sizes = {"num_steps": math.ceil(size / batch_size), "batch_size": batch_size}
    return _epochs(learner, state, sets, key, range(start + 1, epochs + 1), sizes, swept)


def check_swept(learner: Any, key: Array):
    """Raises a `ValueError` unless all numbers of `learner` have the member axis of `key`."""
    for leaf in jax.tree.leaves(learner):
        if not key.ndim or jnp.shape(leaf)[:1] != key.shape:
            axis, shape = list(key.shape), list(jnp.shape(leaf))
            raise ValueError(
                f"`swept` needs numbers with the member axis of `key`, {axis}, got {shape}."
            )


def _epochs(learner, state, sets, key, epochs, sizes, swept):
    run = partial(_epoch_of_members, swept=swept) if key.ndim else _epoch
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None)) if key.ndim else jax.random.fold_in
    for epoch in epochs:
        state, info = run(learner, state, sets, fold(key, epoch), **sizes)
        finite = bool(np.all(jax.device_get(info["finite"])))
        yield epoch, state, info
        if not finite:
            return
