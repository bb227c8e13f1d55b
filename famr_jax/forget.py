"""Forget sets: boolean masks over the training set, which compose; words are parsed once."""

import difflib
import hashlib
import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


def by_class(labels: np.ndarray, classes: Sequence[int], *, num_classes: int) -> np.ndarray:
    """Every example of the given classes.

    Args:
        labels: Class indices of the training set, `[n]`.
        classes: The classes to forget.
        num_classes: C.

    Raises:
        ValueError: A class that is no integer, outside `[0, C)`, or named twice.
    """
    return np.isin(labels, _checked("class", classes, num_classes))


def by_index(indices: Sequence[int], *, size: int) -> np.ndarray:
    """The examples at the given rows of a training set of `size`.

    Raises:
        ValueError: A row that is no integer, outside `[0, size)`, or named twice.
    """
    mask = np.zeros(size, bool)
    mask[_checked("index", indices, size)] = True
    return mask


def at_random(fraction: float, *, size: int, seed: int) -> np.ndarray:
    """A uniformly random share of a training set of `size`, at least one example.

    Raises:
        ValueError: `fraction` not strictly between 0 and 1, or a negative `seed`.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be between 0 and 1, both excluded, got {fraction}.")
    if seed < 0:
        raise ValueError(f"`seed` must be >= 0, got {seed}.")
    count = max(1, round(fraction * size))
    return by_index(np.random.default_rng(seed).permutation(size)[:count].tolist(), size=size)


def by_attribute(attribute: np.ndarray, value: str) -> np.ndarray:
    """Every example whose attribute has a value: a style, a superclass.

    Args:
        attribute: One value an example, `[n]`.
        value: The one to forget.

    Raises:
        ValueError: No example has it.
    """
    mask = attribute == value
    if not np.any(mask):
        known = ", ".join(map(str, np.unique(attribute)))
        raise ValueError(f"`forget` attribute must be one of {known}, got {value!r}.")
    return mask


def with_duplicates(mask: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mask with every exact duplicate of a forgotten example added.

    Args:
        mask: Forget set, `[n]`.
        groups: Group number of each example, `[n]`, from `data.duplicate_groups`.
    """
    return np.isin(groups, groups[mask])


class ForgetSet(NamedTuple):
    """A forget set over the training set, and what it was described by.

    Attributes:
        spec: The words that describe it, as `class:3`; of a file, its name only.
        mask: Which examples are forgotten, `[n]`, boolean.
        classes: The forgotten classes, sorted; empty when samples are forgotten.
        duplicates: How many exact duplicates were taken along.
    """

    spec: str
    mask: np.ndarray
    classes: tuple[int, ...] = ()
    duplicates: int = 0

    @property
    def kind(self) -> Literal["class", "sample"]:
        """What is forgotten: whole classes, or samples."""
        return "class" if self.classes else "sample"

    @property
    def name(self) -> str:
        """The spec as a file name; of a long one the start and a hash."""
        words = re.sub(r"[^\w.]+", "-", self.spec)
        if len(words) <= 60:
            return words
        return f"{words[:50]}-{hashlib.sha256(self.spec.encode()).hexdigest()[:8]}"


def parse(
    spec: str,
    train: Any,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    groups: np.ndarray | None = None,
    attributes: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    files: Sequence[str] | None = None,
) -> ForgetSet:
    """The forget set that words describe, with the exact duplicates of its images.

    Args:
        spec: `class:3,cat` (indices or names; a name counts before an index), `random:0.05` (a
            share), `index:FILE` (row numbers in a text, or in a column of a CSV), `file:FILE` (a
            name of an image's file a line) or `NAME:VALUE` of an attribute.
        train: The training set, as a `data.Split`; or its labels alone, `[n]`.
        num_classes: C; one more than the largest label if not given.
        seed: Draws the examples of `random`.
        groups: As for `with_duplicates`; found by the `digests` of `train`, if it has them.
        attributes: What else is known of each example, `[n]` by name: `style`, `superclass`.
        class_names: Readable names of the classes, for `class`.
        files: The file of each example, as `cat/001.png`, for `file`.

    Raises:
        ValueError: Unknown or malformed words; an unreadable file; a class, row, share or value
            out of range; a set that is empty, or that is everything.
    """
    labels = np.asarray(getattr(train, "labels", train))
    if not len(labels):
        raise ValueError("`train` must hold at least one example, got 0.")
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    kind, _, value = spec.partition(":")
    shown, classes = spec, ()
    if kind == "class":
        named = _classes(value, class_names or (), num_classes)
        mask, classes = by_class(labels, named, num_classes=num_classes), tuple(sorted(named))
    elif kind == "random":
        mask = at_random(_fraction(spec, value), size=len(labels), seed=seed)
    elif kind in ("index", "file"):
        rows = _rows(value, len(labels)) if kind == "index" else _rows_of_files(value, files)
        mask, shown = by_index(rows, size=len(labels)), f"{kind}:{Path(value).name}"
    elif attributes and kind in attributes:
        mask = by_attribute(attributes[kind], value)
        if np.array_equal(mask, np.isin(labels, labels[mask])):
            classes = tuple(np.unique(labels[mask]).tolist())
    else:
        rule = "class:3,5 or random:0.05 or index:FILE or file:FILE"
        rule += "".join(f" or {name}:NAME" for name in attributes or ())
        raise ValueError(f"`forget` must be {rule}, got {spec!r}.")
    check(mask, name=spec)
    if groups is None and hasattr(train, "digests"):
        groups = np.unique(train.digests, axis=0, return_inverse=True)[1].ravel()
    whole = mask if groups is None else check(with_duplicates(mask, groups), name=spec)
    return ForgetSet(shown, whole, classes, int(whole.sum() - mask.sum()))


def parse_all(
    specs: Sequence[str],
    train: Any,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    attributes: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    files: Sequence[str] | None = None,
) -> list[ForgetSet]:
    """The forget sets that a command line names; see `parse`.

    Raises:
        ValueError: No set, the same set twice, or whatever `parse` refuses.
    """
    if not specs:
        raise ValueError("`forget` must name at least one set, got none.")
    sets = [
        parse(
            spec,
            train,
            num_classes=num_classes,
            seed=seed,
            attributes=attributes,
            class_names=class_names,
            files=files,
        )
        for spec in specs
    ]
    for one, other in itertools.combinations(sets, 2):
        if one.name == other.name or np.array_equal(one.mask, other.mask):
            raise ValueError(f"`forget` must name different sets, got {' '.join(specs)}.")
    return sets


def check(mask: np.ndarray, *, name: str = "mask") -> np.ndarray:
    """The mask itself, unless nothing or everything is in it.

    Raises:
        ValueError: The forget set is empty, or leaves nothing to retain.
    """
    if not mask.any() or mask.all():
        raise ValueError(
            f"`forget` must leave something on both sides, got {name!r}: {mask.sum()} of "
            f"{mask.size} examples."
        )
    return mask


def _checked(name: str, rows: Sequence[int], size: int) -> list[int]:
    seen = {}
    for row in rows:
        try:
            number = operator.index(row)
        except TypeError:
            raise ValueError(f"`forget` {name} must be an integer, got {row!r}.") from None
        if not 0 <= number < size:
            raise ValueError(f"`forget` {name} must be in [0, {size}), got {row}.")
        if number in seen:
            raise ValueError(f"`forget` {name} must be named once, got {row} twice.")
        seen[number] = None
    return list(seen)


def _fraction(spec: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"`forget` must give a share, as random:0.05, got {spec!r}.") from None


def _classes(value: str, names: Sequence[str], num_classes: int) -> list[int]:
    """Classes by name or index; a name may hold commas, and a number may be a name."""
    found = []
    for word in [value] if value in names else value.split(","):
        word = word.strip()
        if list(names).count(word) > 1:
            places = [c for c, name in enumerate(names) if name == word]
            raise ValueError(f"`forget` class {word!r} must be one of {places}, which share it.")
        if word in names:
            found.append(list(names).index(word))
        elif re.fullmatch(r"-?\d{1,18}", word, re.ASCII):
            found.append(int(word))
        elif not names:
            raise ValueError(f"`forget` class must list integers, got {word!r}.")
        else:
            near = difflib.get_close_matches(word, names, 1)
            known = ", ".join(names[:10]) + (f" or {len(names) - 10} others" if names[10:] else "")
            rule = f"must be a name or an index below {num_classes}"
            asked = f" did you mean {near[0]}?" if near else f" they are {known}."
            raise ValueError(f"`forget` class {rule}, got {word!r};{asked}")
    return found


class _Word(NamedTuple):
    """A word of a file of rows, and where it stands."""

    file: Path
    line: int
    text: str

    def refused(self, rule: str) -> ValueError:
        return ValueError(f"`forget` {self.file}, line {self.line}: {rule}, got {self.text!r}.")


def _rows(path: str, size: int) -> list[int]:
    """Row numbers of a text or of a CSV with a heading, each with the line it stands in."""
    lines = [
        [_Word(Path(path), number, word) for word in re.split(r"[\s,;]+", line) if word]
        for number, line in enumerate(_read(path).splitlines(), start=1)
    ]
    lines = [line for line in lines if line]
    column, heading = None, lines[0] if lines else []
    if heading and not any(re.fullmatch(r"[-+]?\d.*", word.text) for word in heading):
        names = [word.text.strip('"').lower() for word in heading]
        known = [i for i, name in enumerate(names) if name in ("index", "row", "id", "idx")]
        if len(names) > 1 and len(known) != 1:
            raise heading[0].refused("of several columns one must be named index, row, id or idx")
        column, lines = known[0] if known else 0, lines[1:]
    words = [word for line in lines for word in line]
    if column is not None:
        short = [line for line in lines if len(line) != len(heading)]
        if short:
            raise short[0][-1].refused(
                f"a line must have the {len(heading)} columns of its heading"
            )
        words = [line[column] for line in lines]
    seen: dict[int, int] = {}
    for word in words:
        if not re.fullmatch(r"[-+]?[0-9]{1,18}", word.text.strip('"')):
            raise word.refused("row numbers must be integers")
        row = int(word.text.strip('"'))
        if not 0 <= row < size:
            raise word.refused(f"row numbers must be in [0, {size})")
        if row in seen:
            raise word.refused(f"rows must be named once, this one was in line {seen[row]}")
        seen[row] = word.line
    return list(seen)


def _rows_of_files(path: str, files: Sequence[str] | None) -> list[int]:
    """The rows of examples by their files: `cat/001.png`, with directories before it or not."""
    if not files:
        raise ValueError("`forget` file:FILE must be of a data set folder:PATH, got another one.")
    whole = {name: row for row, name in enumerate(files)}
    alone: dict[str, list[int]] = {}
    for row, name in enumerate(files):
        alone.setdefault(name.rpartition("/")[2], []).append(row)
    seen: dict[int, int] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        word = _Word(Path(path), number, line.strip())
        if not word.text:
            continue
        last = "/".join(word.text.replace("\\", "/").split("/")[-2:])
        rows = [whole[last]] if last in whole else alone.get(word.text, [])
        if not rows:
            raise word.refused("must be the file of a training image, as CLASS/NAME")
        if len(rows) > 1:
            both = " and ".join(files[row] for row in rows[:2])
            raise word.refused(f"must be one file, {both} are both called so")
        if rows[0] in seen:
            raise word.refused(f"files must be named once, this one was in line {seen[rows[0]]}")
        seen[rows[0]] = number
    return list(seen)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: a path or a text that is not Unicode
        rule = "file must be a readable text in UTF-8"
        raise ValueError(f"`forget` {rule}, got {path!r}: {error}.") from None
