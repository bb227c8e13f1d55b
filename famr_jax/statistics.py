"""Statistics of a comparison with retrained models, and of a sweep over settings."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import scipy.stats

ORACLES_FOR_A_VERDICT = 8
"""With fewer oracles the prediction interval is too wide and too uncertain to judge by."""

Verdict = Literal["inside band", "outside band", "not resolved", "too few oracles", "not finite"]

Values: TypeAlias = Sequence[float] | np.ndarray
"""One number of each model: a list, or an array of one dimension."""


def resolution_of(unit: str, n: int | None) -> float:
    """The smallest difference that a measure can show: 1/n for a share of n examples, else 0."""
    return 1 / n if unit == "share" and n else 0.0


@overload
def widened(pair: Sequence[float], by: float) -> tuple[float, float]: ...
@overload
def widened(pair: None, by: float) -> None: ...
def widened(pair: Sequence[float] | None, by: float) -> tuple[float, float] | None:
    """An interval that is no narrower than what the measure can show; None stays None.

        low - by, high + by

    Values that all agree have an interval of no width, which says more than N examples can.

    Args:
        pair: Both ends.
        by: Smallest difference the measure can show, by `resolution_of`.
    """
    return None if pair is None else (pair[0] - by, pair[1] + by)


def share_interval(share: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Where the true share lies, of which n examples gave one: Clopper and Pearson's interval.

        k = n share,  low = Beta(k, n - k + 1)^-1(a),  high = Beta(k + 1, n - k)^-1(1 - a),
        a = (1 - level) / 2

    Args:
        share: Of the examples, in [0, 1]; k need not be whole, as ties in accuracies count in part.
        n: How many examples.
        level: Least probability that the interval holds the true share.

    Raises:
        ValueError: A share outside [0, 1], or no example.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if n < 1:
        raise ValueError(f"`n` must be >= 1, got {n}.")
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], got {share}.")
    k, a = n * share, (1 - level) / 2
    low = scipy.stats.beta.ppf(a, k, n - k + 1) if k > 0 else 0.0
    high = scipy.stats.beta.ppf(1 - a, k + 1, n - k) if k < n else 1.0
    return float(low), float(high)


def prediction_interval(
    values: Values, *, level: float = 0.95, resolution: float = 0.0
) -> tuple[float, float]:
    """Where one more value of the same normal population falls with probability `level`.

        mean +- (t(n - 1, (1 + level) / 2) s sqrt(1 + 1/n) + resolution)

    Args:
        values: Of each oracle.
        level: The probability.
        resolution: Smallest difference the measure can show, by `resolution_of`.

    Raises:
        ValueError: Fewer than two values.
    """
    sample = np.asarray(values, np.float64)
    if sample.size < 2:
        raise ValueError(f"`values` must hold at least 2 oracles, got {sample.size}.")
    quantile = scipy.stats.t.ppf((1 + level) / 2, sample.size - 1)
    half = quantile * sample.std(ddof=1) * np.sqrt(1 + 1 / sample.size)
    return widened((float(sample.mean() - half), float(sample.mean() + half)), resolution)


def gap(value: float, oracles: Values) -> float:
    """Distance of a value to the oracles' mean."""
    return float(abs(value - np.mean(oracles)))


def null_gap(oracles: Values) -> float | None:
    """Mean gap of each oracle to the others: what a perfect unlearner would score. None for one."""
    if len(oracles) < 2:
        return None
    others = [np.delete(np.asarray(oracles), i) for i in range(len(oracles))]
    return float(np.mean([gap(value, rest) for value, rest in zip(oracles, others, strict=True)]))


def verdict(value: float, original: float, oracles: Values, *, resolution: float = 0.0) -> Verdict:
    """Whether a value is one that another oracle could have had.

    "not resolved" if doing nothing lies in the band too: then the metric cannot tell the original
    model from the oracle, nor the unlearned one. No verdict below `ORACLES_FOR_A_VERDICT` oracles.

    Args:
        value: Of the unlearned model.
        original: Of the original.
        oracles: Of each oracle.
        resolution: Smallest difference the metric can show, by `resolution_of`; the band is that
            much wider on both sides.
    """
    if not np.all(np.isfinite([value, original, *oracles])):
        return "not finite"
    if len(oracles) < ORACLES_FOR_A_VERDICT:
        return "too few oracles"
    low, high = prediction_interval(oracles, resolution=resolution)
    if not low <= value <= high:
        return "outside band"
    return "not resolved" if low <= original <= high else "inside band"


def spread(values: Values) -> dict[str, Any]:
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


def sign(found: dict[str, Any], *, least: int = 3, resolution: float = 0.0) -> int:
    """1 or -1 where the interval of a mean leaves out 0, 0 where it does not or n is too small.

    The interval is `widened` by the resolution.
    """
    if found["n"] < least:
        return 0
    low, high = widened(found["interval"], resolution)
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


def difference(small: Values, large: Values) -> dict[str, Any]:
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
