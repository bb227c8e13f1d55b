"""KLoM: how far the margins of many unlearned models are from those of many retrained ones.

For every example the margins of both ensembles are counted in bins; the divergence between the two
histograms is the example's value, and the 95th percentile over a set is what is reported. Even
identical ensembles do not score 0: print `klom_null` at your N beside every value.
"""

import numpy as np

from famr_jax.attacks import arrays
from famr_jax.types import check_count, check_number

BINS, FLOOR, MOST = 20, 1e-5, 100.0
"""Bins of the common range, the least probability of a bin, and the bound of margins."""


def klom(unlearned: np.ndarray, oracles: np.ndarray, *, floor: float | None = FLOOR) -> np.ndarray:
    """Divergence of each example's margins, KL(unlearned || oracles), between histograms.

        sum_b p_b log(p_b / max(q_b, floor)),    over the bins b with p_b > 0

    Both have 20 bins over their common range, margins clipped to +-100.

    Args:
        unlearned: Margins of N unlearned models, `[N, n]`, by `margin`.
        oracles: Margins of retrained models, `[M, n]`.
        floor: The least probability of an oracles' bin; None leaves the bins out that it does not
            reach. Public codes disagree: report both.

    Returns:
        One value in nats per example, `[n]`; NaN where a margin is NaN. Without a floor it can be
        negative.

    Raises:
        ValueError: Other shapes; fewer than two models on a side; a floor that is not in (0, 1).

    Source: Ascent Fails to Forget (arXiv 2509.26427), section 3.
    """
    if floor is not None:
        check_number("floor", floor, above=0)
        check_number("1 - floor", 1 - floor, above=0)
    p, q, bad = _histograms(unlearned, oracles)
    return np.where(bad, np.nan, _divergence(p, q, floor))


def klom_reversed(
    unlearned: np.ndarray, oracles: np.ndarray, *, floor: float | None = FLOOR
) -> np.ndarray:
    """Divergence of each example's margins the other way, KL(oracles || unlearned); see `klom`."""
    return klom(oracles, unlearned, floor=floor)


def klom_as_published(unlearned: np.ndarray, oracles: np.ndarray) -> np.ndarray:
    """What the public benchmark computes in place of `klom`.

    It loses the largest margin of all, which no bin holds, and divides what is left, the floored
    histogram of the oracles too, by its sum.

    Source: the code of EasyDUB (data-unlearning-bench), `compute_binned_KL_div`.
    """
    p, q, bad = _histograms(unlearned, oracles, drop_largest=True)
    q = np.where(p > 0, np.maximum(q, FLOOR), q)
    bad |= p.sum(0) == 0  # all of them were the largest
    return np.where(bad, np.nan, _divergence(p, q / np.where(bad, 1, q.sum(0)), None))


def klom_null(
    num_unlearned: int,
    num_oracles: int,
    *,
    floor: float | None = FLOOR,
    num_examples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """KLoM of ensembles that do not differ: both Gaussian, whose mean and width do not matter.

    What a perfect method scores at these numbers of models, where margins are near Gaussian.

    Args:
        num_unlearned: Models on the one side.
        num_oracles: Models on the other.
        floor: As `klom`.
        num_examples: Examples to draw.
        seed: Of the draw.

    Returns:
        One value per example, `[num_examples]`; take of it what you take of the values.
    """
    check_count("num_unlearned", num_unlearned)
    check_count("num_oracles", num_oracles)
    check_count("num_examples", num_examples)
    generator = np.random.default_rng(seed)
    one = generator.normal(size=(num_unlearned, num_examples))
    return klom(one, generator.normal(size=(num_oracles, num_examples)), floor=floor)


def klom_dealt(
    unlearned: np.ndarray, oracles: np.ndarray, *, deals: int = 200, seed: int = 0
) -> np.ndarray:
    """KLoM's 95th percentile where models do not differ: all of both sides dealt out at random.

    Margins of one example are far from Gaussian, so that `klom_null` is too low for real models.

    Args:
        unlearned: Margins of N models, `[N, n]`.
        oracles: Margins of M models, `[M, n]`; each deal has N and M of the pool.
        deals: How many.
        seed: Of the deals.

    Returns:
        A percentile of each deal, `[deals]`.
    """
    check_count("deals", deals)
    generator, pool, found = np.random.default_rng(seed), np.concatenate([unlearned, oracles]), []
    for _ in range(deals):
        dealt = generator.permutation(pool)
        found.append(percentile(klom(dealt[: len(unlearned)], dealt[len(unlearned) :])))
    return np.array(found)


def klom_resampled(
    unlearned: np.ndarray, oracles: np.ndarray, *, samples: int = 200, seed: int = 0
) -> np.ndarray:
    """KLoM's 95th percentile of bootstrap samples of the models, `[samples]`.

    Those of one seed are the same models at every call, so that methods are compared in pairs. Some
    models come twice, so that all values lie above `klom`'s: compare them with one another.
    """
    pairs = bootstrap_pairs(len(unlearned), len(oracles), samples=samples, seed=seed)
    return np.array([percentile(klom(unlearned[a], oracles[b])) for a, b in pairs])


def bootstrap_pairs(
    num_unlearned: int, num_oracles: int, *, samples: int = 200, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which models are in each bootstrap sample of two ensembles, those of `klom_resampled`."""
    check_count("samples", samples)
    generator, sizes = np.random.default_rng(seed), (num_unlearned, num_oracles)
    first, second = zip(
        *([generator.integers(0, n, n) for n in sizes] for _ in range(samples)), strict=True
    )
    return list(zip(first, second, strict=True))


def percentile(values: np.ndarray) -> float:
    """The 95th percentile over examples, which KLoM is reported at; NaN if one of them is."""
    return float(np.percentile(values, 95)) if np.isfinite(values).all() else float("nan")


def _divergence(p, q, floor):
    if floor is not None:
        q = np.maximum(q, floor)
    both = (p > 0) & (q > 0)
    ratio = np.where(both, p, 1) / np.where(both, q, 1)
    return (np.where(both, p, 0) * np.log(ratio)).sum(0)


def _histograms(unlearned, oracles, *, drop_largest=False):
    """Shares of each bin, `[BINS, n]` of both sides, and the examples with a NaN."""
    sides = [arrays.numbers(name, values, ndim=2)
             for name, values in (("unlearned", unlearned), ("oracles", oracles))]  # fmt: skip
    if sides[0].shape[1] != sides[1].shape[1]:
        shapes = " and ".join(str(list(side.shape)) for side in sides)
        raise ValueError(f"`unlearned` and `oracles` must be of the same examples, got {shapes}.")
    fewest = min(map(len, sides))
    if fewest < 2:
        raise ValueError(f"`unlearned` and `oracles` must hold 2 models each, got {fewest}.")
    bad = np.isnan(sides[0]).any(0) | np.isnan(sides[1]).any(0)
    sides = [np.clip(np.where(bad, 0, side), -MOST, MOST) for side in sides]
    low = np.minimum(sides[0].min(0), sides[1].min(0))
    high = np.maximum(sides[0].max(0), sides[1].max(0))
    width = np.where(high > low, high - low, 1)
    shares = []
    for side in sides:
        bins = np.floor((side - low) / width * BINS).astype(int)
        if not drop_largest:
            bins = np.minimum(bins, BINS - 1)
        at = bins + (BINS + 1) * np.arange(bins.shape[1])  # the last bin of all is for the dropped
        counts = np.bincount(at.ravel(), minlength=(BINS + 1) * bins.shape[1])
        counts = counts.reshape(-1, BINS + 1)[:, :BINS].T
        shares.append(counts / np.maximum(counts.sum(0), 1))
    return *shares, bad
