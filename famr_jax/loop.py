"""Epochs as one jitted scan over a permutation, and the host loop between them.

Training and unlearning share it: a *learner* is any pytree with
`step(state, sets, key) -> (state, info)`, and `sets` is a `Batch` or a `Pair` of them. With a
`Source` among the sets an epoch is a loop on the host over one jitted step, on the same rows and
keys.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax.mesh import gather, spread
from famr_jax.types import Batch, Source, check_count, check_key, check_labels, pytree


@pytree
class Subsets:
    """Some examples of one set for each member of an ensemble, which draws from its own alone.

    A member's steps are those on `images[rows]`, bit for bit, but the images are held once.

    Attributes:
        images: The whole set, in memory.
        rows: Positions in it, `[members, size]`; inside a member's program its own, `[size]`.
    """

    images: Batch
    rows: Array

    @property
    def labels(self) -> Array:
        """Labels of the whole set."""
        return self.images.labels

    def __len__(self) -> int:
        return self.rows.shape[-1]

    def __getitem__(self, rows: Any) -> Batch:
        return self.images[self.rows[rows]]


def draw(key: Array, size: int, num_steps: int, batch_size: int) -> Array:
    """Row indices of `num_steps` batches, `[num_steps, batch_size]`, from fresh permutations.

    Permutations of `range(size)` follow one another until the batches are full, so that every
    example comes once before any comes twice, and all come equally often in expectation.
    """
    check_key(key)
    passes = math.ceil(num_steps * batch_size / size)
    rows = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, passes))
    return rows.reshape(-1)[: num_steps * batch_size].reshape(num_steps, batch_size)


def member_width() -> int:
    """How many members of an ensemble run as one `vmap`ped program, on the default backend.

    Programs of different widths are different trainings, so it is fixed: 1 on a CPU, where a `vmap`
    gains nothing, and 8 on an accelerator.
    """
    return 1 if jax.default_backend() == "cpu" else 8


def chunks(count: int, width: int) -> list[np.ndarray]:
    """Positions of `count` members in chunks of `width`, the last one padded by its last member."""
    return [
        np.minimum(np.arange(start, start + width), count - 1) for start in range(0, count, width)
    ]


def subsets(data: Batch | Source, masks: np.ndarray, rows: Any) -> Batch | Source | Subsets:
    """What the members at some positions of an ensemble draw from: each its own part of a set.

    Args:
        data: The set.
        masks: The examples of each member, `[members, n]`, boolean.
        rows: Positions of members, `[width]`; one int gives that member's part itself.

    Raises:
        ValueError: Several members whose parts differ in size, or lie on disk.
    """
    if np.ndim(rows) == 0:
        return data[masks[rows]]
    if isinstance(data, Source):
        rule = "must be in memory where members with parts of their own run side by side"
        raise ValueError(f"`data` {rule}, got {type(data).__name__}.")
    sizes = masks[rows].sum(axis=1)
    if np.ptp(sizes):
        raise ValueError(f"`masks` of one program must have equal sizes, got {sizes.tolist()}.")
    return Subsets(data, jnp.asarray([np.flatnonzero(mask) for mask in masks[rows]]))


def images_held(data: Batch | Source | Subsets) -> Batch | Source:
    """The set itself, or the whole set that `Subsets` are parts of."""
    return data.images if isinstance(data, Subsets) else data


def check_masks(name: str, masks: Any, members: int, size: int) -> np.ndarray:
    """The masks of an ensemble's members, `[members, size]`, each with an example.

    Raises:
        ValueError: Another dtype or shape; an empty one.
    """
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.shape != (members, size):
        got = f"{masks.dtype} of shape {list(masks.shape)}"
        raise ValueError(f"`{name}` must be boolean, [{members}, {size}], got {got}.")
    if not masks.any(axis=1).all():
        empty = int(np.argmin(masks.any(axis=1)))
        raise ValueError(f"`{name}` must hold an example each, got none for member {empty}.")
    return masks


def alike(sizes: Any, width: int) -> list[np.ndarray]:
    """Positions of members in chunks of `width` that agree in all of their sizes, as in `chunks`.

    Args:
        sizes: The sizes of each member's sets, `[members, sets]`.
        width: Members a program.
    """
    _, group = np.unique(np.asarray(sizes), axis=0, return_inverse=True)
    found = [np.flatnonzero(group.ravel() == g) for g in range(group.max() + 1)]
    return [each[rows] for each in found for rows in chunks(len(each), width)]


def members(stacked: Any) -> list[Any]:
    """The trees that one with a leading member axis holds."""
    count = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)]


def parted(done: Any, rows: Any) -> dict[int, Any]:
    """The results of a chunk's members by their positions, from that of the chunk.

    Args:
        done: A named tuple of `params`, `log` and `finite`, of all members.
        rows: Their positions, some twice in a padded chunk; of one member, without an axis, an int.
    """
    if np.ndim(rows) == 0:
        return {int(rows): done}
    logs = [{name: values[i] for name, values in done.log.items()} for i in range(len(rows))]
    each = zip(rows.tolist(), members(done.params), logs, strict=True)
    return {row: type(done)(params, log, done.finite) for row, params, log in each}


def joined(found: list[Any]) -> Any:
    """One result with a member axis, from that of every member; see `parted`.

    A member that stopped early has NaN in the log after its last epoch.
    """
    log = {}
    for name in found[0].log:
        values = [each.log[name] for each in found]
        log[name] = np.full((len(values), max(map(len, values))), np.nan)
        for row, value in zip(log[name], values, strict=True):
            row[: len(value)] = value
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(each.params for each in found))
    return type(found[0])(params, log, all(each.finite for each in found))


def run_epoch(learner: Any, state: Any, sets: Any, key: Array, *, num_steps: int, batch_size: int):
    """One epoch as a `lax.scan`: the state after it, and the mean of each entry of `info`.

    `info["finite"]` is added: whether every step's scalars and the last weights are finite.
    """
    check_key(key)
    leaves, structure = _flatten(sets)
    sizes = tuple(len(leaf) for leaf in leaves)
    rows, keys = _plan(key, sizes=sizes, num_steps=num_steps, batch_size=batch_size)

    def body(state, xs):
        step_rows, key = xs
        batches = [spread(leaf[r]) for leaf, r in zip(leaves, step_rows, strict=True)]
        return learner.step(state, jax.tree.unflatten(structure, batches), key)

    state, info = jax.lax.scan(body, state, (rows, keys))
    return state, _summary(info, state.params)


def _flatten(sets):
    kinds = (Batch, Source, Subsets)
    return jax.tree.flatten(sets, is_leaf=lambda node: isinstance(node, kinds))


def member_axes(sets: Any) -> Any:
    """Where the sets of a program have a member axis, for `vmap`: only in the rows of `Subsets`."""
    leaves, structure = _flatten(sets)
    return jax.tree.unflatten(structure, [_member_axis(leaf) for leaf in leaves])


def _member_axis(leaf) -> Any:
    axes: dict[str, Any] = {"images": None, "rows": 0}
    return Subsets(axes["images"], axes["rows"]) if isinstance(leaf, Subsets) else None


def _plan(key, *, sizes, num_steps, batch_size):
    """The rows that every step takes from each set, and every step's key."""
    order_key, step_key = jax.random.split(key)
    rows = [
        draw(jax.random.fold_in(order_key, i), size, num_steps, min(batch_size, size))
        for i, size in enumerate(sizes)
    ]
    return rows, jax.random.split(step_key, num_steps)


def _summary(info, params):
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((info, params))]
    info = jax.tree.map(jnp.mean, info)
    return gather({**info, "finite": jnp.all(jnp.stack(finite))})


@partial(jax.jit, static_argnames=("num_steps", "batch_size"), donate_argnames="state")
def _epoch(learner, state, sets, key, *, num_steps, batch_size):
    return run_epoch(learner, state, sets, key, num_steps=num_steps, batch_size=batch_size)


@partial(jax.jit, static_argnames=("num_steps", "batch_size", "swept"), donate_argnames="state")
def _epoch_of_members(learner, state, sets, key, *, num_steps, batch_size, swept):
    one = partial(run_epoch, num_steps=num_steps, batch_size=batch_size)
    axes = (0 if swept else None, 0, member_axes(sets), 0)
    return jax.vmap(one, in_axes=axes)(learner, state, sets, key)


@partial(jax.jit, static_argnames=("sizes", "num_steps", "batch_size"))
def _plans(key, *, sizes, num_steps, batch_size):
    plan = partial(_plan, sizes=sizes, num_steps=num_steps, batch_size=batch_size)
    return jax.vmap(plan)(key) if key.ndim else plan(key)


@partial(jax.jit, static_argnames=("structure", "swept"), donate_argnames="state")
def _streamed_step(learner, state, i, keys, parts, structure, *, swept):
    """Step i; a part is a set in memory and all rows drawn from it, or a batch read, and None."""

    def one(learner, state, keys, parts):
        batches = [spread(batch if r is None else batch[r[i]]) for batch, r in parts]
        state, info = learner.step(state, jax.tree.unflatten(structure, batches), keys[i])
        return state, gather(info)

    if keys.ndim == 1:
        return one(learner, state, keys, parts)
    axes = [(0, None) if r is None else (_member_axis(batch), 0) for batch, r in parts]
    return jax.vmap(one, (0 if swept else None, 0, 0, axes))(learner, state, keys, parts)


@jax.jit
def _streamed_summary(info, params, key):
    return (jax.vmap(_summary) if key.ndim else _summary)(info, params)


def _streamed_epoch(learner, state, sets, key, *, num_steps, batch_size, swept):
    """`run_epoch`, or members of it, as a loop on the host."""
    leaves, structure = _flatten(sets)
    sizes = tuple(len(leaf) for leaf in leaves)
    rows, keys = _plans(key, sizes=sizes, num_steps=num_steps, batch_size=batch_size)
    streams, infos = {}, []
    with contextlib.ExitStack() as stack:
        for n, (leaf, drawn) in enumerate(zip(leaves, rows, strict=True)):
            if isinstance(leaf, Source):
                by_step = np.moveaxis(np.asarray(drawn), -2, 0)
                streams[n] = stack.enter_context(contextlib.closing(leaf.stream(by_step)))
        whole = list(zip(leaves, rows, strict=True))
        for i in range(num_steps):
            parts = [(next(streams[n]), None) if n in streams else p for n, p in enumerate(whole)]
            state, info = _streamed_step(learner, state, i, keys, parts, structure, swept=swept)
            infos.append(info)
            # Else the host queues step upon step, and the batch of each takes device memory.
            jax.block_until_ready(infos[-2:-1])
    stacked = partial(np.stack, axis=key.ndim)
    info = jax.tree.map(lambda *steps: stacked(steps), *jax.device_get(infos))
    return state, _streamed_summary(info, state.params, key)


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
    donate: bool = False,
) -> Iterator[tuple[int, Any, dict[str, Array]]]:
    """Yields `(epoch, state, info)` after each of the epochs `start + 1 .. epochs`.

    The key of epoch e, counted from 1, is `fold_in(key, e)`, so going on from a saved state with
    `start` gives bit for bit what an uninterrupted run gives. A yielded state stays as it is, as in
    `best = state.params`, and each epoch works on a copy. Stops after the first epoch that is not
    finite.

    Args:
        learner: Pytree with `step(state, sets, key) -> (state, info)`.
        state: The state to go on from. With a leading member axis if `key` has one: all members
            then run as one `vmap`ped program.
        sets: A `Batch`, or a pytree of them, whole; a step gets a minibatch of each. Any may be a
            `Source`: its minibatches are read ahead, for each member its own; or `Subsets`.
        size: The number of examples that one epoch passes over, in ceil(size / batch_size) steps.
        epochs: Number of epochs in all, those before `start` included.
        batch_size: Examples a step, at most; a smaller set is used whole at every step.
        key: PRNG key, or `[members]` of them.
        start: Number of epochs that `state` has behind it.
        swept: Whether the numbers of `learner` have the member axis too: each member has its own.
        donate: Lets each epoch consume the state before it, the first included, in place of a copy:
            half the memory, for a caller who keeps none.

    Raises:
        ValueError: A count below one; a legacy key; a set with more images than labels, or fewer; a
            label below 0; a sweep, or `Subsets`, of another number of members than keys.
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    check_count("size", size)
    check_key(key, members=True)
    if swept:
        check_swept(learner, key)
    for leaf in _flatten(sets)[0]:
        if isinstance(leaf, Batch) and len(leaf.x) != len(leaf.labels):
            sizes = f"{len(leaf.x)} and {len(leaf.labels)}"
            raise ValueError(f"`x` and `labels` of a set must have equal lengths, got {sizes}.")
        check_labels(leaf.labels)
        if isinstance(leaf, Subsets) and (not key.ndim or len(leaf.rows) != len(key)):
            count = key.size if key.ndim else "one key"
            raise ValueError(f"`Subsets` must be of as many members as keys, got {count}.")
    run = partial(_epoch_of_members, swept=swept) if key.ndim else _epoch
    if any(isinstance(leaf, Source) for leaf in _flatten(sets)[0]):
        run = partial(_streamed_epoch, swept=swept)
    run = partial(run, num_steps=math.ceil(size / batch_size), batch_size=batch_size)
    return _epochs(run, learner, state, sets, key, range(start + 1, epochs + 1), donate)


def check_swept(learner: Any, key: Array):
    """Raises a `ValueError` unless all numbers of `learner` have the member axis of `key`."""
    for leaf in jax.tree.leaves(learner):
        if not key.ndim or jnp.shape(leaf)[:1] != key.shape:
            axis, shape = list(key.shape), list(jnp.shape(leaf))
            raise ValueError(
                f"`swept` needs numbers with the member axis of `key`, {axis}, got {shape}."
            )


def _epochs(run, learner, state, sets, key, epochs, donate):
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None)) if key.ndim else jax.random.fold_in
    for epoch in epochs:
        mine = state if donate else jax.tree.map(jnp.copy, state)
        state, info = run(learner, mine, sets, fold(key, epoch))
        finite = bool(np.all(jax.device_get(info["finite"])))
        yield epoch, state, info
        if not finite:
            return
