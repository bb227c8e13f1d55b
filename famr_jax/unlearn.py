"""Unlearning: `descend` turns an objective into an unlearner, `run` runs any unlearner."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from famr_jax import loop
from famr_jax.models.checking import check
from famr_jax.types import (
    Batch,
    Context,
    Objective,
    Pair,
    Params,
    Source,
    Unlearner,
    as_pytree,
    check_kept,
    check_key,
    check_labels_of,
    images_of,
    pytree,
    static,
)


class DescentState(NamedTuple):
    """What the next step of a descent needs; `context` holds the trained weights."""

    params: Params
    context: Context
    opt_state: Any


@pytree
class Descent:
    """The unlearner that descends one objective; built by `descend`."""

    objective: Objective
    prepare: Callable | None
    optimizer: optax.GradientTransformation = static()
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params, forget, retain, key) -> DescentState:
        prepare = self.prepare or getattr(self.objective, "prepare", None)
        start = getattr(self.objective, "start", None)
        prepared = None if prepare is None else prepare(params, forget, retain, key)
        anchor = jax.tree.map(jnp.copy, params)
        context = Context(anchor, prepared, jnp.zeros((), jnp.int32))
        if start is not None:
            params = start(params, context, forget)
        return DescentState(params, context, self.optimizer.init(params))

    def step(self, state, pair, key):
        objective = jax.value_and_grad(self.objective, has_aux=True)
        (value, terms), grads = objective(state.params, state.context, pair, key)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        info = {"objective": value, **terms, "grad_norm": optax.tree.norm(grads)}
        context = state.context._replace(step=state.context.step + 1)
        return DescentState(params, context, opt_state), info


def descend(
    objective: Objective | Callable,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Callable[[Params, Any, Any, Array], Any] | None = None,
    epoch_over: Literal["forget", "retain"] = "forget",
) -> Descent:
    """The unlearner that descends `objective` from the trained weights with any optax optimizer.

    Args:
        objective: A pytree dataclass or a plain function
            `(params, context, pair, key) -> (scalar, terms)`. The numbers of a dataclass are
            leaves, which a sweep may `vmap`; those that a function closes over are constants.
            It may have two methods besides its call: a `prepare`, in place of the argument, and
            `start(params, context, forget) -> params`, the weights of the first step where those
            are not the trained ones; the anchor stays trained.
        optimizer: Any optax transformation. Build it once: jit knows it by identity.
        prepare: `prepare(params, forget, retain, key)`, called once on the trained weights and the
            whole sets; the pytree that it returns is `context.prepared` at every step.
        epoch_over: The set that one epoch passes over.

    Raises:
        ValueError: `epoch_over` is neither "forget" nor "retain".
    """
    if epoch_over not in ("forget", "retain"):
        raise ValueError(f"`epoch_over` must be 'forget' or 'retain', got {epoch_over!r}.")
    prepare = prepare and as_pytree(prepare)
    return Descent(as_pytree(objective), prepare, optimizer, epoch_over)


class OneShotState(NamedTuple):
    """The edited weights, and the scalars that every step logs."""

    params: Params
    info: dict[str, Array]


@pytree
class OneShot:
    """The unlearner that edits the weights once, in `init`; its steps change nothing.

    Attributes:
        edit: `edit(params, forget, retain, key) -> (params, scalars)`, a pytree dataclass.
        epoch_over: "retain" for an edit that needs retained data.
    """

    edit: Callable
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params, forget, retain, key) -> OneShotState:
        return OneShotState(*self.edit(params, forget, retain, key))

    def step(self, state, pair, key):
        del pair, key
        return state, state.info


def in_memory(name: str, data: Any) -> Batch:
    """The set itself, for a method that computes on all of it once.

    Raises:
        ValueError: It is on disk.
    """
    if not isinstance(data, Batch):
        raise ValueError(f"`{name}` must be in memory, a Batch, got {type(data).__name__}.")
    return data


def place(step: Array | int, size: Any, batch_size: int) -> tuple[Array, Array, Array]:
    """The epoch of a step, both from 0, its place in that epoch, and the steps of an epoch.

    Args:
        step: How many steps were taken.
        size: Examples of the set that an epoch passes over.
        batch_size: Those of a step.
    """
    steps = -(-size // batch_size)
    return step // steps, step % steps, jnp.asarray(steps)


def subtree(params: Params, path: tuple[str, ...]) -> Any:
    """The part of nested weights at a path of names, such as `("head", "kernel")`.

    Raises:
        ValueError: The weights have no such part.
    """
    for name in path:
        if not isinstance(params, dict) or name not in params:
            raise ValueError(f"`params` must have the part {'/'.join(path)}, got no {name!r}.")
        params = params[name]
    return params


def with_subtree(params: Params, path: tuple[str, ...], value: Any) -> Params:
    """The weights with another part at a path of names; see `subtree`."""
    if not path:
        return value
    first, *rest = path
    return {**params, first: with_subtree(subtree(params, (first,)), tuple(rest), value)}


class Unlearned(NamedTuple):
    """What a run gives.

    Attributes:
        params: The weights after the last epoch that ran.
        log: Mean of each logged scalar per epoch, `[epochs]`, or `[members, epochs]`.
        finite: False if the run stopped because a scalar or a weight was no longer finite.
    """

    params: Params
    log: dict[str, np.ndarray]
    finite: bool


def run(
    unlearner: Unlearner,
    params: Params,
    forget: Batch | Source | loop.Subsets,
    retain: Batch | Source | loop.Subsets | None = None,
    *,
    epochs: int,
    batch_size: int,
    key: Array,
    donate: bool = False,
    swept: bool = False,
) -> Unlearned:
    """Runs an unlearner from trained weights: jitted epochs, one after the other.

    To look, save or evaluate between epochs, iterate over `begin` and `run_epochs` yourself; this
    function does nothing else.

    Args:
        unlearner: The method.
        params: The trained weights.
        forget: The whole forget set: a `Batch`, or a `Source` that is streamed.
        retain: The whole retained set, likewise, for methods that use one.
        epochs: Passes over the unlearner's `epoch_over` set.
        batch_size: Examples of each set a step, at most.
        key: PRNG key; `[members]` keys run as many members from the same weights in one program.
        donate: Let the run consume the buffers of `params` instead of copying them.
        swept: Whether each member has its own numbers, stacked along the member axis:
            `jax.vmap(lambda lam: famr(apply_fn, lam=lam))(lams)`, with as many keys, is a sweep.

    Raises:
        ValueError: A model that `models.check` refuses; a set that is missing, empty or of another
            type, or has a label that is none of the classes; `epochs` or `batch_size` below one;
            a sweep whose numbers have another member axis than `key`.
    """
    state = begin(unlearner, params, forget, retain, key=key, donate=donate, swept=swept)
    steps = run_epochs(
        unlearner,
        state,
        forget,
        retain,
        epochs=epochs,
        batch_size=batch_size,
        key=key,
        swept=swept,
        donate=True,
    )
    log = []
    for _, state, info in steps:  # noqa: B007
        log.append(jax.device_get(info))
    log = {name: np.stack([entry[name] for entry in log], axis=-1) for name in log[0]}
    return Unlearned(state.params, log, bool(np.all(log.pop("finite"))))


def run_each(
    unlearner: Unlearner,
    params: Params,
    train: Batch | Source,
    forget: np.ndarray,
    retain: np.ndarray | None = None,
    *,
    epochs: int,
    batch_size: int,
    key: Array,
) -> Unlearned:
    """Lets each of many models forget its own part of the training set, as `run` would alone.

    Members run in chunks of `loop.member_width()` that agree in the sizes of their sets, so that
    the bits of one depend on neither their number nor its place among them.

    Args:
        unlearner: The method, of all of them.
        params: The trained weights of every member, with a leading member axis, as
            `train.run` gives them.
        train: The training set.
        forget: What each member forgets, masks `[members, n]`.
        retain: What each retains, likewise, for methods that use it.
        epochs: As in `run`.
        batch_size: As in `run`.
        key: `[members]` PRNG keys.

    Raises:
        ValueError: As `run`; masks of another shape, or one that is empty; one key.
    """
    check_key(key, members=True)
    count = len(jax.tree.leaves(params)[0])
    if key.shape != (count,):
        rule = f"must be as many keys as members of `params`, {count}"
        raise ValueError(f"`key` {rule}, got {list(key.shape)}.")
    masks = [("forget", forget)] + ([] if retain is None else [("retain", retain)])
    masks = [loop.check_masks(name, mask, count, len(train)) for name, mask in masks]
    width, found = loop.member_width(), {}
    for rows in loop.alike(np.stack([mask.sum(1) for mask in masks], axis=1), width):
        rows = int(rows[0]) if width == 1 else rows
        chosen = jax.tree.map(lambda leaf, rows=rows: leaf[rows], params)
        done = run(
            unlearner,
            chosen,
            *(loop.subsets(train, mask, rows) for mask in masks),
            epochs=epochs,
            batch_size=batch_size,
            key=key[rows],
            donate=True,
        )
        found |= loop.parted(done, rows)
    return loop.joined([found[i] for i in range(count)])


def begin(
    unlearner: Unlearner,
    params: Params,
    forget: Batch | Source | loop.Subsets,
    retain: Batch | Source | loop.Subsets | None = None,
    *,
    key: Array,
    donate: bool = False,
    swept: bool = False,
) -> Any:
    """The state before the first epoch: `init`, jitted, on checked input. Arguments as in `run`.

    Members that have `loop.Subsets` to forget have their own `params` too, with a member axis.
    """
    _check_sets(unlearner, forget, retain)
    check_key(key, members=True)
    check_kept("params", params)
    apply_fn, each = _apply_fn_of(unlearner), isinstance(forget, loop.Subsets)
    like = jax.eval_shape(loop.members, params)[0] if each else params
    if apply_fn is not None:
        for data in (forget, retain):
            if data is not None:
                check(apply_fn, like, images_of(loop.images_held(data)))
                check_labels_of(apply_fn, like, loop.images_held(data))
    if swept:
        loop.check_swept(unlearner, key)
    if not donate:
        params = jax.tree.map(jnp.copy, params)
    if key.ndim:
        return _init_members(unlearner, params, forget, retain, key, swept=swept)
    return (_init_donating if donate else _init)(unlearner, params, forget, retain, key)


def run_epochs(
    unlearner: Unlearner,
    state: Any,
    forget: Batch | Source | loop.Subsets,
    retain: Batch | Source | loop.Subsets | None = None,
    *,
    epochs: int,
    batch_size: int,
    key: Array,
    start: int = 0,
    swept: bool = False,
    donate: bool = False,
) -> Iterator[tuple[int, Any, dict[str, Array]]]:
    """Yields `(epoch, state, info)` after each epoch; see `famr_jax.loop.run_epochs`.

    Going on from a saved state with `start` and the same key gives the uninterrupted run's bits.
    """
    _check_sets(unlearner, forget, retain)
    whole: Any = (forget, retain)  # a step's pair has batches alone
    return loop.run_epochs(
        unlearner,
        state,
        Pair(*whole),
        size=len(whole[0 if unlearner.epoch_over == "forget" else 1]),
        epochs=epochs,
        batch_size=batch_size,
        key=key,
        start=start,
        swept=swept,
        donate=donate,
    )


def _apply_fn_of(unlearner):
    """The model of an unlearner: its own, or that of what it wraps, descends or edits by."""
    while hasattr(unlearner, "method"):
        unlearner = unlearner.method
    for part in ("objective", "edit"):
        unlearner = getattr(unlearner, part, unlearner)
    return getattr(unlearner, "apply_fn", None)


def _begin(unlearner, params, forget, retain, key):
    return unlearner.init(params, forget, retain, jax.random.fold_in(key, 0))


_init = jax.jit(_begin)
_init_donating = jax.jit(_begin, donate_argnames="params")


@partial(jax.jit, static_argnames="swept")
def _init_members(unlearner, params, forget, retain, keys, *, swept):
    own = 0 if isinstance(forget, loop.Subsets) else None
    axes = (0 if swept else None, own, *map(loop.member_axes, (forget, retain)), 0)

    def one(unlearner, params, forget, retain, key):
        forget, retain = (
            each[:] if isinstance(each, loop.Subsets) else each for each in (forget, retain)
        )
        return _begin(unlearner, params, forget, retain, key)

    return jax.vmap(one, in_axes=axes)(unlearner, params, forget, retain, keys)


def _check_sets(unlearner, forget, retain):
    for name, batch in (("forget", forget), ("retain", retain)):
        needed = name == "forget" or unlearner.epoch_over == name
        if batch is None and needed:
            raise ValueError(f"`{name}` must be given, because the method uses it; got None.")
        if batch is not None and not isinstance(batch, (Batch, Source, loop.Subsets)):
            raise ValueError(f"`{name}` must be a Batch or a Source, got {type(batch).__name__}.")
        if batch is not None and len(batch) == 0:
            raise ValueError(f"`{name}` must hold at least one example, got 0.")
