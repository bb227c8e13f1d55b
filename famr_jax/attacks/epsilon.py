"""The forgetting score of the NeurIPS 2023 challenge: how well thresholds tell two ensembles apart.

For every example an attacker sees one margin and says whether it is of an unlearned or of a
retrained model. It needs hundreds of models: with N a share below 1/N cannot be seen.
"""

import math
from typing import NamedTuple

import numpy as np

from famr_jax.attacks import arrays
from famr_jax.types import check_count, check_number

DELTA, CAP, BUCKET = 1e-5, 50.0, 0.5


class ForgettingScore(NamedTuple):
    """The score of an unlearning method.

    Attributes:
        forgetting: Mean points of the examples, between 0 and 1; a perfect method's at this number
            of models is that of `epsilons` between two halves of the oracles, not 1.
        retain: Accuracy on retained data over the oracles'.
        test: Accuracy on test data over the oracles'.
        final: Their product.
    """

    forgetting: float
    retain: float
    test: float
    final: float


def epsilons(unlearned: np.ndarray, oracles: np.ndarray) -> np.ndarray:
    """How far one threshold on its margin tells unlearned models from oracles, for each example.

        eps = max over thresholds of max{log(1 - d - FPR) - log FNR, log(1 - d - FNR) - log FPR},
        d = 1e-5, within 0 and 50

    Positive is the ensemble with the larger median. A threshold at which one of both rates is 0 is
    left out; where both are, eps is 50, as it is where one ensemble is a hundred times narrower.
    The challenge's code tries pairs of thresholds too, which no paper defines: left out here.

    Args:
        unlearned: Margins of unlearned models, `[N, n]`, by `margin`.
        oracles: Margins of retrained models, `[M, n]`.

    Returns:
        One value per example, `[n]`; NaN where a margin is not finite.

    Raises:
        ValueError: Other shapes; fewer than two models on a side.

    Source: Triantafillou et al. (arXiv 2406.09073), section 3, and the challenge's code.
    """
    sides = [arrays.numbers("unlearned", unlearned, ndim=2)]
    sides += [arrays.numbers("oracles", oracles, ndim=2)]
    if sides[0].shape[1] != sides[1].shape[1]:
        shapes = f"{list(sides[0].shape)} and {list(sides[1].shape)}"
        raise ValueError(f"`unlearned` and `oracles` must be of the same examples, got {shapes}.")
    if min(map(len, sides)) < 2:
        fewest = min(map(len, sides))
        raise ValueError(f"`unlearned` and `oracles` must hold 2 models each, got {fewest}.")
    pairs = zip(sides[0].T, sides[1].T, strict=True)
    return np.array([_epsilon(one, other) for one, other in pairs])


def forgetting_score(
    epsilons: np.ndarray,
    *,
    num_models: int,
    retain: tuple[float, float],
    test: tuple[float, float],
) -> ForgettingScore:
    """The challenge's score: points for each example, times what is left of both accuracies.

    An eps below 0.5 gives one point, below 1 half of one, and so on; none from log(N - 1), rounded
    up, where N models can show nothing.

    Args:
        epsilons: Of each example of the forget set, by `epsilons`.
        num_models: N, models on each side; the smaller number where they differ.
        retain: Accuracy on retained data of the unlearned models, and of the oracles.
        test: Accuracy on test data of both.

    Raises:
        ValueError: Fewer than three models; a number out of range; oracles that are never right.

    Source: As `epsilons`.
    """
    epsilons = arrays.numbers("epsilons", epsilons, ndim=1)
    if np.any(epsilons < 0):
        raise ValueError(f"`epsilons` must be >= 0, got {np.nanmin(epsilons)}.")
    check_count("num_models", num_models)
    if num_models < 3:
        raise ValueError(f"`num_models` must be >= 3, got {num_models}.")
    for name, pair in (("retain", retain), ("test", test)):
        if np.shape(pair) != (2,):
            raise ValueError(f"`{name}` must be two accuracies, got {pair!r}.")
        mine, theirs = pair
        if not np.isnan([mine, theirs]).any():  # of a model that broke, the score is NaN
            check_number(f"{name}, unlearned", mine, least=0)
            check_number(f"{name}, oracles", theirs, above=0)
    buckets = np.floor(epsilons / BUCKET)
    last = math.ceil(math.log(num_models - 1)) / BUCKET
    points = np.where(buckets < last, 0.5**buckets, 0)
    forgetting = float(np.where(np.isnan(epsilons), np.nan, points).mean())
    kept, tested = (float(mine / theirs) for mine, theirs in (retain, test))
    return ForgettingScore(forgetting, kept, tested, forgetting * kept * tested)


def _epsilon(one, other):
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return np.nan
    narrow, wide = sorted((np.ptp(one), np.ptp(other)))
    if wide == 0:
        return 0.0 if one[0] == other[0] else CAP
    if narrow < wide / 100:
        return CAP
    positive, negative = (one, other) if np.median(one) > np.median(other) else (other, one)
    thresholds = np.unique(np.concatenate([one, other]))
    missed = np.searchsorted(np.sort(positive), thresholds) / len(positive)
    false = 1 - np.searchsorted(np.sort(negative), thresholds) / len(negative)
    if np.any((missed == 0) & (false == 0)):
        return CAP
    seen = (missed > 0) & (false > 0)
    missed, false = missed[seen], false[seen]
    ratios = np.concatenate([(1 - DELTA - false) / missed, (1 - DELTA - missed) / false])
    return float(np.log(np.clip(np.max(ratios, initial=1), 1, np.exp(CAP))))
