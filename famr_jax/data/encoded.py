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
from PIL import ExifTags, Image, UnidentifiedImageError

from famr_jax.data.dataset import Split
from famr_jax.data.stream import OnDisk, pieces, read_ahead

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""How many channels there are in the modes of Pillow that images are decoded to."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = [turn for orientation, turn in _TURNS.items() if orientation >= 5]


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
        title: What to call the split in an error.
        count: How many rows there are.
        read: `read(rows) -> examples`.
        where: `where(row)`, what to call an example in an error.
    """

    title: str
    count: int  # type: ignore[assignment]  # hides the method of a tuple
    read: Callable[[Sequence[int]], list[Example]]
    where: Callable[[int], str]


class _Facts(NamedTuple):
    """The hash of an encoded image, and its sides and whether it is grey by its header."""

    digest: bytes
    shape: tuple[int, int]
    grey: bool


class _Found(NamedTuple):
    """Rows and labels of the examples that are kept, in order, and what was made of each image."""

    rows: np.ndarray
    labels: np.ndarray
    seen: list[Any]


def load(
    name: str,
    splits: Sequence[Encoded],
    *,
    num_classes: int,
    mode: str | None,
    size: int | None,
    stream: bool,
) -> list[Split | OnDisk]:
    """The splits of a data set, each image decoded now or, from a stream, when it is asked for.

    Args:
        name: The data set's, for errors.
        splits: Their encoded examples.
        num_classes: How many classes are kept, for errors.
        mode: Pillow's name of the channels. None where nothing is declared: grey if every image
            is, else RGB, and a `size` is forgotten if all images have one that is no larger.
        size: Side of the squares that images become; None where they must have one size.
        stream: Leave the images on disk.

    Raises:
        ValueError: A split without an example, images of several sizes, or one that is not a
            readable 8-bit image.
    """
    look = _facts if mode is None or stream else partial(_pixels, mode, size)
    decode = look is not _facts
    found = [_scan(split, look) for split in splits]
    for split, part in zip(splits, found, strict=True):
        if not part.seen:
            rule = f"must hold images of the {num_classes} classes"
            raise ValueError(f"{split.title} {rule}, got none.")
    first = found[0].seen[0]
    if mode is None:
        facts = [fact for part in found for fact in part.seen]
        mode = "L" if all(fact.grey for fact in facts) else "RGB"
        if max(first.shape) <= (size or 0) and len({fact.shape for fact in facts}) == 1:
            size = None
    if size is None:
        _check_one_size(name, splits, found)
    if decode:
        return [Split(np.stack(part.seen), part.labels) for part in found]
    height, width = first.shape if size is None else (size, size)
    shape = (height, width, CHANNELS[mode])
    sets: list[Split | OnDisk] = []
    for split, part in zip(splits, found, strict=True):
        digests = np.frombuffer(b"".join(fact.digest for fact in part.seen), np.uint8)
        read = partial(_decoded, split, mode, size)
        sets.append(OnDisk(read, shape, part.labels, digests.reshape(-1, 16), part.rows))
    return sets if stream else [Split(each.pixels(), each.labels) for each in sets]


def _scan(split: Encoded, look: Callable[[Image.Image, bytes], Any]) -> _Found:
    """Passes once over a split, with `look(picture, encoded)` of each image, by several threads."""

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
    return _Found(rows, labels, [seen for *_, seen in found])


def _facts(picture: Image.Image, encoded: bytes) -> _Facts:
    grey = picture.mode in ("1", "L") and "transparency" not in picture.info
    width, height = picture.size
    if _turn(picture) in _SWAPPING:
        width, height = height, width
    return _Facts(hashlib.blake2b(encoded, digest_size=16).digest(), (height, width), grey)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes a stored picture upright, by its EXIF orientation; None for nothing."""
    if picture.format == "TIFF":  # which Pillow turns itself, its size too
        return None
    try:
        stored: Any = picture.getexif().get(ExifTags.Base.Orientation)
        return _TURNS.get(stored)
    # A damaged EXIF block says nothing, as in viewers; its parsers raise many types.
    except Exception:
        return None


def _pixels(mode: str, size: int | None, picture: Image.Image, _encoded: bytes) -> np.ndarray:
    """The decoded image, uint8 `[height, width, channels]`: upright, on white where transparent.

    With a size, the largest square in the middle, resized by Pillow's bicubic filter: what resizing
    the short side and cropping the centre gives, without rounding the long side.
    """
    picture.load()
    if (turn := _turn(picture)) is not None:
        picture = picture.transpose(turn)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode != mode:
        picture = picture.convert(mode)
    if size is not None:
        side = min(picture.size)
        left, top = ((length - side) / 2 for length in picture.size)
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box)
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]


def _check_one_size(name: str, splits: Sequence[Encoded], found: Sequence[_Found]) -> None:
    height, width = found[0].seen[0].shape[:2]
    for split, part in zip(splits, found, strict=True):
        for row, seen in zip(part.rows, part.seen, strict=True):
            if seen.shape[:2] != (height, width):
                raise ValueError(
                    f"images of `{name}` must have one size (height x width), got {height}x{width} "
                    f"in {splits[0].where(found[0].rows[0])} and {seen.shape[0]}x{seen.shape[1]} "
                    f"in {split.where(row)}; an image size (`image_size`, `--image-size`) makes "
                    "squares of them."
                )


def _decoded(split: Encoded, mode: str, size: int | None, row: int) -> np.ndarray:
    with _named(split.where(row)):
        [example] = split.read([int(row)])
    return _opened(split.where(row), example.image, partial(_pixels, mode, size))


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
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{where} must be a readable 8-bit image, got none by its bytes."
        ) from error
    # Pillow's decoders raise whatever they stumble on: OSError, SyntaxError, ValueError, ...
    except Exception as error:
        raise ValueError(f"{where} must be a readable 8-bit image, got {error}.") from error
