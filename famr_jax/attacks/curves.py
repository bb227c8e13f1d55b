"""How well scores tell members from others: the curve, the area under it, its error."""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from famr_jax.attacks import arrays
from famr_jax.types import check_number

LEAST_FALSE = 10
"""False positives that a rate of them must allow, or the sample cannot show it."""


class Auc(NamedTuple):
    """An area under a curve.

    Attributes:
        value: Share of pairs of a member and another in which the member scores higher; ties half.
        error: Its standard error, where scores are independent; NaN with one example on a side.
        members: How many members there are.
        others: How many others.
    """

    value: float
    error: float
    members: int
    others: int


def roc(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve of an attack: rates of false and of true positives, by falling threshold.

    Args:
        scores: Higher for what the attack takes for a member, of any shape.
        members: Which are members, boolean, of the same shape.

    Returns:
        False and true positive rate, from (0, 0) to (1, 1), a point for each score that occurs;
        both NaN where a score is NaN. For logarithmic axes leave the first point out.

    Raises:
        ValueError: Another shape; nobody on a side.
    """
    inside, outside = _sides(scores, members)
    if np.isnan(inside).any() or np.isnan(outside).any():
        return np.full(2, np.nan), np.full(2, np.nan)
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]

    def rate(values):
        return 1 - np.searchsorted(np.sort(values), thresholds) / len(values)

    return np.append(0, rate(outside)), np.append(0, rate(inside))


def auc(scores: np.ndarray, members: np.ndarray) -> Auc:
    """The area under the curve of `roc`, with DeLong's standard error; 0.5 is chance.

    The error takes scores for independent. Scores of the same examples by several models are not:
    take the spread of the areas of the models then.

    Args:
        scores: As `roc`.
        members: As `roc`.

    Raises:
        ValueError: As `roc`.

    Source: DeLong et al., Biometrics 44 (1988).
    """
    inside, outside = _sides(scores, members)
    m, n = len(inside), len(outside)
    if np.isnan(inside).any() or np.isnan(outside).any():
        return Auc(float("nan"), float("nan"), m, n)
    both = rankdata(np.concatenate([inside, outside]))
    above = (both[:m] - rankdata(inside)) / n  # of each member, the share of others below it
    below = 1 - (both[m:] - rankdata(outside)) / m
    error = np.nan
    if min(m, n) > 1:
        error = np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return Auc(float(above.mean()), float(error), m, n)


def tpr_at(scores: np.ndarray, members: np.ndarray, *, fpr: float) -> float | None:
    """The rate of true positives where at most `fpr` of the others are called members.

    None where `fpr` times the number of others is below 10: so few false positives say nothing.

    Args:
        scores: As `roc`.
        members: As `roc`.
        fpr: Rate of false positives, in (0, 1).

    Raises:
        ValueError: As `roc`; a rate out of range.
    """
    check_number("fpr", fpr)
    if not 0 < fpr < 1:
        raise ValueError(f"`fpr` must be in (0, 1), got {fpr!r}.")
    _, outside = _sides(scores, members)
    if fpr * len(outside) < LEAST_FALSE * (1 - 1e-9):
        return None
    false, true = roc(scores, members)
    return float("nan") if np.isnan(false).any() else float(true[false <= fpr + 1e-12].max())


def _sides(scores, members):
    scores = arrays.numbers("scores", scores)
    members = arrays.mask("members", members, scores.shape)
    inside, outside = scores[members], scores[~members]
    if not (len(inside) and len(outside)):
        counts = f"{len(inside)} and {len(outside)}"
        raise ValueError(f"`members` must leave examples on both sides, got {counts}.")
    return inside, outside
