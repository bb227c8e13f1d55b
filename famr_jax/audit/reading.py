"""Reading one model's arrays, from a file of any framework, and refusing what is no such thing."""

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from famr_jax import forget
from famr_jax.types import check_labels

NEEDED = ("logits", "labels", "split", "forget")
OPTIONAL = ("ids", "features")
SPLITS = ("train", "test")
NEAR_ONE = 0.01
"""How far the sums of a row of probabilities may lie from one, as those of float16 do."""

Given = str | os.PathLike | Mapping[str, Any]
"""One model's arrays: a `.npz` file, or the arrays themselves by name."""
Arrays = dict[str, np.ndarray]


def read(role: str, given: Given) -> tuple[str, Arrays]:
    """One model's arrays, checked, and how messages call it."""
    if isinstance(given, Mapping):
        name = role
        found = {key: _array(name, key, given[key]) for key in _known(name, given)}
    else:
        name = f"{role.split()[0]} {Path(given).name}"
        found = _loaded(name, Path(given))
    for key, array in found.items():
        if array.dtype == object:
            raise ValueError(f"{name}: `{key}` must be a plain array, got one of Python objects.")
    _check_logits(name, found["logits"])
    for key, array in found.items():
        rows, wanted = len(found["logits"]), 2 if key in ("logits", "features") else 1
        if array.ndim != wanted or len(array) != rows:
            shape = "[n, dim]" if wanted == 2 else "[n]"
            rule = f"must be {shape} with the {rows} rows of `logits`"
            raise ValueError(f"{name}: `{key}` {rule}, got {list(array.shape)}.")
    for key in ("logits", "features"):
        if key in found:
            found[key] = _finite(name, key, found[key])
    logits = found["logits"]
    if logits.min() >= 0 and np.all(np.abs(logits.sum(1, dtype=float) - 1) < NEAR_ONE):
        rule = "must be logits, or logarithms of probabilities"
        raise ValueError(f"{name}: `logits` {rule}, got probabilities: rows that sum to 1.")
    try:
        check_labels(found["labels"], logits.shape[1])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    found["labels"] = found["labels"].astype(np.int32)
    _check_examples(name, found)
    return name, found


def _known(name: str, keys: Iterable[str]) -> list[str]:
    """Those of the names that an audit reads, unless one that it needs is missing."""
    keys = list(keys)
    if not set(NEEDED) <= set(keys):
        got = ", ".join(map(str, keys)) or "nothing"
        raise ValueError(f"{name} must hold {', '.join(NEEDED)}, got {got}.")
    return [key for key in (*NEEDED, *OPTIONAL) if key in keys]


def _array(name: str, key: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: `{key}` must be an array, got {error}") from None


def _loaded(name: str, path: Path) -> Arrays:
    try:
        # Opened here, as np.load leaves a file open that is no whole archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = archive.files
            found = {key: archive[key] for key in keys if key in (*NEEDED, *OPTIONAL)}
    except (AttributeError, TypeError):  # one array, which is no file of several
        reason = "a file of one array"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error) or type(error).__name__
        if "Object arrays" in reason:
            reason = "an array of Python objects: give it a dtype of numbers or of text"
        elif "pickled" in reason:
            reason = "another kind of file"
        elif isinstance(error, FileNotFoundError):
            reason = "no file"
    else:
        return {key: found[key] for key in _known(name, keys)}
    raise ValueError(f"{name} must be a .npz file of arrays, got {reason}.") from None


def _check_logits(name: str, logits: np.ndarray) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2 or not len(logits):
        rule = "must be [n, num_classes] of one example and two classes at least"
        raise ValueError(f"{name}: `logits` {rule}, got {list(logits.shape)}.")


def _finite(name: str, key: str, array: np.ndarray) -> np.ndarray:
    """The array in float32, unless a number is none there."""
    if not np.issubdtype(array.dtype, np.floating):
        rule = "must be float16, float32 or float64"
        raise ValueError(f"{name}: `{key}` {rule}, got {array.dtype}.")
    with np.errstate(over="ignore"):
        found = np.asarray(array, np.float32)
    bad = np.logical_not(np.isfinite(found).all(axis=1))
    if not bad.any():
        return found
    got = "NaN" if np.isnan(found).any() else "infinity"
    hint = ""
    if got == "infinity":
        half = array.dtype == np.float16
        hint = ": float16 ends at 65504" if half else ": float32 ends at 3e38"
        hint = ": of a class that is masked give -1e4" if np.isneginf(array).any() else hint
    rows = f"in {bad.sum()} of {len(bad)} rows"
    raise ValueError(f"{name}: `{key}` must be finite, got {got} {rows}{hint}.")


def _check_examples(name: str, found: Arrays) -> None:
    """Checks split, forget and ids of one model, and makes the split one of Unicode words."""
    split, mask = found["split"], found["forget"]
    found["split"] = split = split.astype(str) if split.dtype.kind in "US" else split
    words = list(np.unique(split).astype(str))
    if split.dtype.kind != "U" or not set(words) <= set(SPLITS):
        got = ", ".join(words[:4])
        raise ValueError(f"{name}: `split` must be the words train and test, got {got}.")
    if mask.dtype != bool:
        raise ValueError(f"{name}: `forget` must be boolean, got an array of {mask.dtype}.")
    if np.any(mask & (split == "test")):
        rule = "must mark training rows alone, test images of a class are found by their labels"
        count = np.sum(mask & (split == "test"))
        raise ValueError(f"{name}: `forget` {rule}, got {count} of the split test.")
    try:
        forget.check(mask[split == "train"], name="forget")
    except ValueError:
        got = f"{mask.sum()} of {np.sum(split == 'train')}"
        rule = "must mark some training rows and leave some"
        raise ValueError(f"{name}: `forget` {rule}, got {got}.") from None
    if "ids" in found and len(np.unique(found["ids"])) < len(split):
        raise ValueError(f"{name}: `ids` must differ from row to row, got some of them twice.")


def check_same_rows(first: str, table: Arrays, name: str, other: Arrays) -> None:
    """Refuses a second model whose rows are not, one by one, those of the first."""
    if other["logits"].shape != table["logits"].shape:
        shapes = f"{list(table['logits'].shape)} of {first}"
        raise ValueError(f"{name}: `logits` must be {shapes}, got {list(other['logits'].shape)}.")
    if ("ids" in other) != ("ids" in table):
        got = f"them in {first if 'ids' in table else name} alone"
        raise ValueError(f"{name}: `ids` must be in all models or in none, got {got}.")
    for key in ("ids", "labels", "split", "forget"):
        if key in table and not np.array_equal(table[key], other[key]):
            count = np.sum(table[key] != other[key])
            got = f"others in {count} of {len(table[key])} rows"
            raise ValueError(f"{name}: `{key}` must be those of {first}, row by row, got {got}.")


def check_apart(models: Sequence[tuple[str, np.ndarray]]) -> None:
    """Refuses an oracle that is another of the models: it would be judged by itself."""
    for i, (name, logits) in enumerate(models[2:], start=2):
        for other, others in models[:i]:
            if np.array_equal(logits, others):
                rule = "must be a model of its own, retrained without the forget set"
                raise ValueError(f"{name} {rule}, got the logits of {other}.")
