"""Flat vectors: steps from one model's weights to another's, how they compare, derivatives."""

import numpy as np
from jax.flatten_util import ravel_pytree

from famr_jax import minimise
from famr_jax.types import Context, Objective, Pair, Params


def between(start: Params, end: Params) -> np.ndarray:
    """The step from some weights to others, flat, `[dim]`."""
    return np.asarray(ravel_pytree(end)[0]) - np.asarray(ravel_pytree(start)[0])


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cosine of the angle of two vectors; None if one of them is zero."""
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / norms) if norms > 0 else None


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b||."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def derivatives(objective: Objective, params: Params, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """The gradient, `[dim]`, and the dense Hessian, `[dim, dim]`, of an objective at its anchor."""
    slope, curvature = minimise.derivatives(objective, params, Context(params), pair)
    return np.asarray(slope), np.asarray(curvature)
