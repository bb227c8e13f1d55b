"""Newton's method on many small problems at once, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

Derivatives = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def newton(
    derivatives: Derivatives,
    start: np.ndarray,
    *,
    num_steps: int,
    scale: Any,
    tol: float,
    longest: float = np.inf,
) -> np.ndarray:
    """The minima that Newton's method finds from `start`, `[..., dim]`, NaN where it finds none.

    Args:
        derivatives: `w -> (gradient, step, convex)`: the gradient and what Newton's method takes
            from w, `[..., dim]`, and whether the Hessian is positive definite there, `[...]`.
        start: Where each problem starts, `[..., dim]`.
        num_steps: Steps, the same for all.
        scale: Of the gradient, `[...]`.
        tol: A minimum's gradient is at most this, relative to `scale`.
        longest: Longer steps are cut to this length.
    """
    w = start
    with np.errstate(all="ignore"):
        for _ in range(num_steps):
            _, step, _ = derivatives(w)
            length = np.linalg.norm(step, axis=-1, keepdims=True)
            w = w - step / np.maximum(1, length / longest)
        gradient, _, convex = derivatives(w)
        found = convex & (np.linalg.norm(gradient, axis=-1) <= tol * scale)
    return np.where(found[..., None], w, np.nan)
