"""Encoded images, as folders and TFDS hand them over: hashed, checked and decoded here alone."""

import contextlib
import hashlib
import io
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from famr_jax.data.dataset import Split
from famr_jax.data.stream import OnDisk, pieces, read_ahead


class Example(NamedTuple):
    """One labelled image as it is stored.

    Attributes:
        image: The encoded bytes, or the file that holds them.
        label: The class, or None for an example to be left out.
        rank: What examples are sorted by; None keeps them in the order of their rows.
    """

    image: bytes | Path
    label: int | None
    rank: Any = None


class Encoded(NamedTuple):
    """The examples of one split, each with its image encoded.

    Attributes:
        count: How many rows there are.
        read: `read(rows) -> examples`.
        where: `where(row)`, what to call an example in an error.
    """

    count: int
    read: Callable[[Sequence[int]], list[Example]]
    where: Callable[[int], str]


class Facts(NamedTuple):
    """What an encoded image tells without being decoded.

    Attributes:
        digest: A hash of its bytes, 16 of them.
        shape: Height and width.
        grey: Whether it has one channel and every pixel is opaque.
    """

    digest: bytes
    shape: tuple[int, int]
    grey: bool


class Form(NamedTuple):
    """What images are decoded to.

    Attributes:
        mode: Pillow's name of the channels.
        size: Side of the squares that come out; None leaves images as they are.
    """

    mode: str
    size: int | None


class Found(NamedTuple):
    """The examples of a split that were not left out, in order.

    Attributes:
        rows: Where each is stored, `[n]`.
        labels: Class indices, `[n]`, int32.
        seen: What was made of each image: `Facts`, or pixels.
    """

    rows: np.ndarray
    labels: np.ndarray
    seen: list[Any]


CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


def scan(split: Encoded, look: Callable[[Image.Image, bytes], Any]) -> Found:
    """Passes once over a split, with `look(picture, encoded)` of each image, by several threads.

    Raises:
        ValueError: An example that is not a readable 8-bit image, by its name.
    """

    def piece(rows):
        return [
            (row, example.label, example.rank, _opened(split.where(row), example.image, look))
            for row, example in zip(rows, split.read(rows), strict=True)
            if example.label is not None
        ]

    found = [one for several in read_ahead(piece, pieces(split.count)) for one in several]
    if found and found[0][2] is not None:
        found.sort(key=operator.itemgetter(2))
    rows = np.array([row for row, *_ in found], np.int64)
    labels = np.array([label for _, label, *_ in found], np.int32)
    return Found(rows, labels, [seen for *_, seen in found])


def facts(picture: Image.Image, encoded: bytes) -> Facts:
    """The hash, size and greyness of an image that is not decoded for it."""
    grey = picture.mode in ("1", "L") and "transparency" not in picture.info
    return Facts(hashlib.blake2b(encoded, digest_size=16).digest(), picture.size[::-1], grey)


def pixels(form: Form, picture: Image.Image, _encoded: bytes) -> np.ndarray:
    """The decoded image, uint8 `[height, width, channels]`.

    With a size, the largest square in the middle, resized by Pillow's bicubic filter: what resizing
    the short side and cropping the centre gives, without rounding the long side.
    """
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode != form.mode:
        picture = picture.convert(form.mode)
    if form.size is not None:
        side = min(picture.size)
        left, top = ((length - side) / 2 for length in picture.size)
        box = (left, top, left + side, top + side)
        picture = picture.resize((form.size, form.size), Image.Resampling.BICUBIC, box)
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]


def check_one_size(name: str, splits: Sequence[Encoded], found: Sequence[Found]) -> None:
    """Raises a `ValueError` that names two images, unless all of all splits have one size."""
    first = found[0].seen[0].shape[:2]
    for split, part in zip(splits, found, strict=True):
        for row, seen in zip(part.rows, part.seen, strict=True):
            if seen.shape[:2] != first:
                height, width = seen.shape[:2]
                raise ValueError(
                    f"images of `{name}` must have one size (height x width), got "
                    f"{first[0]}x{first[1]} in {splits[0].where(found[0].rows[0])} and "
                    f"{height}x{width} in {split.where(row)}; an image size (`image_size`, "
                    "`--image-size`) makes squares of them."
                )


def in_memory(found: Found) -> Split:
    """The split of a scan that made pixels of its images."""
    return Split(np.stack(found.seen), found.labels)


def on_disk(split: Encoded, found: Found, form: Form) -> OnDisk:
    """The split of a scan that made `Facts` of its images, which are decoded when asked for."""
    sides = found.seen[0].shape if form.size is None else (form.size, form.size)
    digests = np.frombuffer(b"".join(seen.digest for seen in found.seen), np.uint8)
    return OnDisk(
        partial(_decoded, split, form),
        (*sides, CHANNELS[form.mode]),
        found.labels,
        digests.reshape(-1, 16),
        found.rows,
    )


def _decoded(split: Encoded, form: Form, row: int) -> np.ndarray:
    with _named(split.where(row)):
        [example] = split.read([int(row)])
    return _opened(split.where(row), example.image, partial(pixels, form))


def _opened(where: str, image: bytes | Path, look: Callable[[Image.Image, bytes], Any]) -> Any:
    with _named(where):
        encoded = image if isinstance(image, bytes) else image.read_bytes()
        with Image.open(io.BytesIO(encoded)) as picture:
            if picture.mode[0] in "IF":
                raise ValueError(f"mode {picture.mode} is not 8-bit")
            return look(picture, encoded)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    # Pillow's decoders raise whatever they stumble on: OSError, SyntaxError, ValueError, ...
    except Exception as error:
        raise ValueError(f"{where} must be a readable 8-bit image, got {error}.") from error
