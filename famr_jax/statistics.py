"""Statistics of a comparison with retrained models, and of a sweep over settings."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats

ORACLES_FOR_A_VERDICT = 8
"""With fewer oracles the prediction interval is too wide and too uncertain to judge by."""

Verdict = Literal["inside band", "outside band", "not resolved", "too few oracles", "not finite"]


def prediction_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Where one more value of the same normal population falls with probability `level`.

        mean +- t(n - 1, (1 + level) / 2) s sqrt(1 + 1/n)

    Raises:
        ValueError: Fewer than two values.
    """
    values = np.asarray(values, np.float64)
    if values.size < 2:
        raise ValueError(f"`values` must hold at least 2 oracles, got {values.size}.")
    quantile = scipy.stats.t.ppf((1 + level) / 2, values.size - 1)
    half = quantile * values.std(ddof=1) * np.sqrt(1 + 1 / values.size)
    return float(values.mean() - half), float(values.mean() + half)


def gap(value: float, oracles: Sequence[float]) -> float:
    """Distance of a value to the oracles' mean."""
    return float(abs(value - np.mean(oracles)))


def null_gap(oracles: Sequence[float]) -> float | None:
    """Mean gap of each oracle to the others: what a perfect unlearner would score. None for one."""
    if len(oracles) < 2:
        return None
    others = [np.delete(np.asarray(oracles), i) for i in range(len(oracles))]
    return float(np.mean([gap(value, rest) for value, rest in zip(oracles, others, strict=True)]))


def verdict(
    value: float, original: float, oracles: Sequence[float], *, resolution: float = 0.0
) -> Verdict:
    """Whether a value is one that another oracle could have had.

    "not resolved" if doing nothing lies in the band too: then the metric cannot tell the original
    model from the oracle, nor the unlearned one. No verdict below `ORACLES_FOR_A_VERDICT` oracles.

    Args:
        value: Of the unlearned model.
        original: Of the original.
        oracles: Of each oracle.
        resolution: Smallest difference the metric can show, 1/N for an accuracy; the band is that
            much wider on both sides, since oracles that all agree have a band of no width.
    """
    if not np.all(np.isfinite([value, original, *oracles])):
        return "not finite"
    if len(oracles) < ORACLES_FOR_A_VERDICT:
        return "too few oracles"
    low, high = prediction_interval(oracles)
    low, high = low - resolution, high + resolution
    if not low <= value <= high:
        return "outside band"
    return "not resolved" if low <= original <= high else "inside band"


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
