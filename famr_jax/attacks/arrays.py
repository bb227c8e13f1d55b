"""Checks of the arrays that attacks take: each fault is a sentence with name, rule and value."""

from typing import Any

import numpy as np


def numbers(name: str, values: Any, *, ndim: int | None = None) -> np.ndarray:
    """The values as float64; NaN and infinite ones pass, and make what is computed of them NaN.

    Raises:
        ValueError: What is no array of real numbers, is empty, or has another number of axes.
    """
    try:
        array = np.asarray(values)
        found = array.astype(np.float64, casting="same_kind" if array.dtype != bool else "unsafe")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be real numbers, got {_told(values)}.") from error
    if ndim is not None and found.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {list(found.shape)}.")
    if not found.size:
        raise ValueError(f"`{name}` must not be empty, got shape {list(found.shape)}.")
    return found


def mask(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The values as a boolean array of a shape.

    Raises:
        ValueError: Another dtype or shape.
    """
    array = np.asarray(values)
    if array.dtype != bool or array.shape != tuple(shape):
        got = f"{array.dtype} of shape {list(array.shape)}"
        raise ValueError(f"`{name}` must be boolean of shape {list(shape)}, got {got}.")
    return array


def classes(name: str, labels: Any, shape: tuple[int, ...], num_classes: int) -> np.ndarray:
    """The labels as integers of a shape, each a class.

    Raises:
        ValueError: Another dtype or shape, or a label that is no class.
    """
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer) or array.shape != tuple(shape):
        got = f"{array.dtype} of shape {list(array.shape)}"
        raise ValueError(f"`{name}` must be integers of shape {list(shape)}, got {got}.")
    if array.size and not (array.min() >= 0 and array.max() < num_classes):
        rule = f"classes of {num_classes}, 0 to {num_classes - 1}"
        raise ValueError(f"`{name}` must be {rule}, got {array.min()} to {array.max()}.")
    return array


def _told(values: Any) -> str:
    dtype = getattr(values, "dtype", None)
    return type(values).__name__ if dtype is None else f"an array of {dtype}"
