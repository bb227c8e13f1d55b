"""Statistics of a sweep: spread over runs, an interval for a mean, and the Pareto front."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, n, the values, and the 95 % confidence interval of the mean.

        mean +- t(n - 1, .975) s / sqrt(n)

    A single value has neither deviation nor interval.
    """
    values = [float(value) for value in values]
    found = {"mean": float(np.mean(values)), "sd": None, "n": len(values), "values": values}
    if len(values) < 2:
        return found | {"interval": None}
    sd = float(np.std(values, ddof=1))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
    return found | {"sd": sd, "interval": [found["mean"] - half, found["mean"] + half]}


def sign(found: dict[str, Any], *, least: int = 3) -> int:
    """1 or -1 where the interval of a mean leaves out 0, 0 where it does not or n is too small."""
    if found["n"] < least:
        return 0
    low, high = found["interval"]
    return int(low > 0) - int(high < 0)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto front of points whose two coordinates shall both be small: their indices, sorted.

    A point is on it unless another is at most as large in both coordinates and smaller in one.
    """
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        last = points[kept[-1]] if kept else (np.inf, np.inf)
        if points[i][1] < last[1] or points[i] == last:
            kept.append(i)
    return sorted(kept)


def difference(small: Sequence[float], large: Sequence[float]) -> dict[str, Any]:
    """The mean of one sample less that of another, with Welch's 95 % confidence interval.

    Args:
        small: Values that are subtracted.
        large: As many values of the other.
    """
    found = {"mean": float(np.mean(large) - np.mean(small)), "n": len(small)}
    if len(small) < 2:
        return found | {"interval": None}
    parts = [np.var(values, ddof=1) / len(values) for values in (small, large)]
    if not sum(parts):
        return found | {"interval": [found["mean"], found["mean"]]}
    freedom = sum(parts) ** 2 / sum(p**2 / (len(small) - 1) for p in parts)
    half = float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts)))
    return found | {"interval": [found["mean"] - half, found["mean"] + half]}
