"""Sums over a data set in micro-batches: memory bounded by one of them, a ragged last one masked.

A data set is any pytree of arrays with a common leading axis, or a `Source` in the place of one:
its images are read a micro-batch at a time, inside the compiled loop, by a call of the host.
"""

import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax.mesh import spread
from famr_jax.progress import Pass
from famr_jax.types import Batch, Source, check_count

ON_DISK = 256
"""Micro-batch of a set on disk where none is given: all of it at once would not fit."""


_reading: dict[Any, "_Reading"] = {}
"""The passes that are under way over sets on disk, by set."""


class _Reading(NamedTuple):
    """A pass over a set on disk: the batches read ahead, the next one's first row and size."""

    batches: Generator[Batch]
    next: tuple[int, int]
    shown: Pass


def _is_source(leaf: Any) -> bool:
    return isinstance(leaf, Source) and not isinstance(leaf, Batch)


def _leaves(data: Any) -> list:
    return jax.tree.leaves(data, is_leaf=_is_source)


def size_of(data: Any) -> int:
    """How many examples.

    Raises:
        ValueError: Arrays of different numbers of examples, or none.
    """
    sizes = {len(leaf) if _is_source(leaf) else leaf.shape[0] for leaf in _leaves(data)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"`data` must hold arrays of one length >= 1, got {sorted(sizes)}.")
    return sizes.pop()


def one_each(losses: Any, data: Any) -> Any:
    """The losses as they are, if there is one for each example.

    A mean or a sum over examples, or a loss for each class, would be a curvature of another size.

    Args:
        losses: What a `loss_fn` gave, or the shape of it by `jax.eval_shape`.
        data: What it was given.

    Raises:
        ValueError: Another shape than `[n]`.
    """
    n = size_of(data)
    if getattr(losses, "shape", None) != (n,):
        raise ValueError(
            f"`loss_fn` must give one value per example, [n], got {_told(losses)} of {n} examples."
        )
    return losses


def some_each(outputs: Any, data: Any, *, name: str = "outputs_fn") -> Any:
    """The outputs as they are, if there is a row for each example; see `one_each`."""
    n = size_of(data)
    if getattr(outputs, "shape", ())[:1] != (n,):
        got = f"{_told(outputs)} of {n} examples"
        raise ValueError(f"`{name}` must give a row per example, [n, ...], got {got}.")
    return outputs


def _told(found: Any) -> str:
    """The shape of an array, or what else it is."""
    return str(list(found.shape)) if hasattr(found, "shape") else f"a {type(found).__name__}"


def in_batches(data: Any, batch_size: int | None) -> bool:
    """Whether the data set is more than one micro-batch, or on disk."""
    n, on_disk = size_of(data), any(map(_is_source, _leaves(data)))
    if batch_size is None:
        return on_disk
    check_count("batch_size", batch_size)
    return on_disk or batch_size < n


def _batches(n: int, batch_size: int | None) -> Array:
    """Row numbers, `[steps, batch_size]`; those of the last batch go on beyond n."""
    batch_size = min(batch_size or ON_DISK, n)
    num_steps = math.ceil(n / batch_size)
    return jnp.arange(num_steps * batch_size).reshape(num_steps, batch_size)


def _take(data: Any, rows: Array) -> Any:
    def pick(leaf):
        if _is_source(leaf):
            return _read(leaf, jnp.minimum(rows, len(leaf) - 1))
        return jnp.asarray(leaf)[jnp.minimum(rows, leaf.shape[0] - 1)]

    return spread(jax.tree.map(pick, data, is_leaf=_is_source))


def _read(source: Source, rows: Array) -> Batch:
    """The batch at some rows, when the compiled loop gets there; those behind it are read ahead."""

    def read(rows):
        batch = _next(source, np.asarray(rows))
        array: Any = np.asarray  # of the host: a callback must not wait for JAX
        return Batch(array(batch.x, np.float32), array(batch.labels, np.int32))

    shape: Any = jax.ShapeDtypeStruct
    like = Batch(shape((rows.size, *source.image_shape), np.float32), shape((rows.size,), np.int32))
    return jax.pure_callback(read, like, rows, vmap_method="sequential")


def _next(source: Source, rows: np.ndarray) -> Batch:
    """The batch at rows that follow one another, of the pass that has come to them or of a new one.

    Of who asks nothing else is known. What comes after an interrupted loop, or from another one,
    asks for other rows or sizes.
    """
    n, first, size = len(source), int(rows[0]), len(rows)
    reading = _reading.pop(source, None)
    if reading is None or reading.next != (first, size):
        if reading is not None:
            reading.batches.close()
        ahead = (np.arange(i, i + size).clip(max=n - 1) for i in range(first, n, size))
        reading = _Reading(source.stream(ahead), (first, size), Pass(n))
    reading.shown.tell(first)
    try:
        batch = next(reading.batches)
    except BaseException:
        reading.batches.close()
        raise
    if first + size < n:
        _reading[source] = reading._replace(next=(first + size, size))
    else:
        reading.batches.close()
    return batch


def rows_of(product: Callable, data: Any, batch_size: int | None) -> Array:
    """`product(batch)`, `[n, ...]`, of all examples."""
    n = size_of(data)
    if not in_batches(data, batch_size):
        return product(spread(data))
    parts = jax.lax.map(lambda rows: product(_take(data, rows)), _batches(n, batch_size))
    return parts.reshape(-1, *parts.shape[2:])[:n]


def sum_of(product: Callable, data: Any, batch_size: int | None) -> Any:
    """What `product(batch, weight)` sums over the examples of weight one."""
    n = size_of(data)
    if not in_batches(data, batch_size):
        return product(spread(data), jnp.ones(n))

    def body(total, rows):
        part = product(_take(data, rows), (rows < n).astype(jnp.float32))
        return jax.tree.map(jnp.add, total, part), None

    like = jax.eval_shape(lambda: product(_take(data, jnp.arange(1)), jnp.ones(1)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return jax.lax.scan(body, zeros, _batches(n, batch_size))[0]


def mean_of(product: Callable, data: Any, batch_size: int | None) -> Any:
    """The sum of `sum_of`, divided once by the number of examples."""
    n = size_of(data)
    return jax.tree.map(lambda leaf: leaf / n, sum_of(product, data, batch_size))
