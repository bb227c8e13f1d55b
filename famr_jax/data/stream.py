"""Images on disk: a set that is read when asked for, by threads that read ahead."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax.types import Batch

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = max(2, min(16, os.cpu_count() or 1))
"""Threads that read and decode; Pillow lets them run at once."""
AHEAD = WORKERS + 1
"""Batches that are read, or being read, before they are asked for."""

_PIECE = 128  # images a thread reads at a time where no batch size is given


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class OnDisk:
    """Labelled images on disk: a `Source`. A subset is as cheap as its labels.

    Attributes:
        read: `read(row) -> pixels`, uint8 `[height, width, channels]`, of a row as stored; says
            which file or record it could not read.
        image_shape: Height, width and channels of every image.
        labels: Class indices, `[n]`, int32.
        digests: A hash of each image's bytes as stored, encoded, `[n, 16]`, uint8.
        rows: Where each image is stored, `[n]`: what `read` takes.
    """

    read: Callable[[int], np.ndarray]
    image_shape: tuple[int, int, int]
    labels: np.ndarray
    digests: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> "OnDisk":
        at = rows if isinstance(rows, slice) else np.asarray(rows)
        labels, digests, places = (array[at] for array in (self.labels, self.digests, self.rows))
        return OnDisk(self.read, self.image_shape, labels, digests, places)

    @property
    def x(self) -> Any:
        """Not there: images on disk are no array.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"`x` must be in memory for this, got {len(self)} images on disk: take the rows that "
            "are needed, `source[rows].batch()`, or do not stream."
        )

    def pixels(self, rows: Any = slice(None)) -> np.ndarray:
        """The images at some rows, or all, as stored: uint8 `[k, height, width, channels]`."""
        stored = self.rows[rows]
        out = np.empty((len(stored), *self.image_shape), np.uint8)

        def fill(piece):
            for i in piece:
                out[i] = self.read(int(stored[i]))

        for _ in read_ahead(fill, pieces(len(stored))):
            pass
        return out

    def batch(self) -> Batch:
        """All of the set on the default device: float32 images in [-1, 1], int32 labels."""
        return Batch(jnp.asarray(scaled(self.pixels())), jnp.asarray(self.labels))

    def stream(self, rows: Iterable[np.ndarray]) -> Generator[Batch]:
        """Yields the batch at each array of rows, in order, with `AHEAD` of them read ahead.

        Close it to end its threads early.

        Args:
            rows: Index arrays of any shape: that of `labels`, and the leading axes of `x`.

        Raises:
            ValueError: An image that cannot be read, when its batch is asked for.
        """

        def read(rows):
            flat = np.stack([self.read(row) for row in self.rows[rows].ravel()])
            return scaled(flat).reshape(*rows.shape, *self.image_shape), self.labels[rows]

        for x, labels in read_ahead(read, rows):
            yield Batch(jnp.asarray(x), jnp.asarray(labels))


def pieces(count: int) -> Iterator[range]:
    """The rows of a whole set in pieces of the size that a thread reads at a time."""
    return (range(i, min(i + _PIECE, count)) for i in range(0, count, _PIECE))


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yields `read(item)` of each item in order; threads have at most `AHEAD` in hand.

    What `read` raises is raised here, at the item's turn. Ends its threads when it ends or is
    closed; one that is reading finishes its item first.
    """
    pool, waiting = ThreadPoolExecutor(WORKERS, thread_name_prefix="read-ahead"), deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [-1, 1], by NumPy, so that every device sees the same bits."""
    x = pixels.astype(np.float32)
    x /= np.float32(127.5)
    x -= np.float32(1)
    return x
