"""What diluted_rbm makes of its rows: quality that is left, transitions, and the claims' verdicts.

The thresholds were fixed before the recorded run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.results import setting
from experiments.rbm import RBM
from experiments.rbm.machines import MEASURES
from famr_jax import statistics

TESTED = 0.8
"""The dilution that the claims speak of."""
KEPT, LOST = 0.9, 0.5
"""Share of the quality from which a machine counts as good, and below which as lost."""
SHARP, GRADUAL = 0.2, 0.4
"""Width of a transition, in dilution, up to which it is sharp, and from which it is none."""
CUTS = ("random", "magnitude")


def row_of(results: Mapping[str, Any], size: int, kind: str, dilution: float) -> dict[str, Any]:
    """The row of some machines."""
    wanted = (size, kind, dilution)
    return next(r for r in results["rows"] if (r["size"], r["kind"], r["dilution"]) == wanted)


def sizes_of(results: Mapping[str, Any]) -> list[int]:
    """Hidden units, ascending."""
    return sorted({row["size"] for row in results["rows"]})


def dilutions_of(results: Mapping[str, Any]) -> list[float]:
    """Shares that are cut, ascending."""
    return sorted({row["dilution"] for row in results["rows"]})


def quality(results: Mapping[str, Any], row: Mapping[str, Any], measure: str) -> np.ndarray:
    """The quality of each seed above independent pixels, in parts of the uncut machines' mean.

        Q = (m - m_independent) / (m_uncut - m_independent)

    1 is as good as uncut, 0 as independent pixels; below 0 is worse than those.
    """
    floor = results["references"]["independent"][measure]
    dense = np.mean(row_of(results, row["size"], "sparse", 0.0)[measure])
    span = dense - floor or np.nan
    return (np.asarray(row[measure], float) - floor) / span


def crossing(dilutions: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """The first dilution at which a falling curve crosses a level, by linear interpolation."""
    for i in range(1, len(values)):
        if values[i - 1] >= level > values[i]:
            share = (values[i - 1] - level) / (values[i - 1] - values[i])
            return float(dilutions[i - 1] + share * (dilutions[i] - dilutions[i - 1]))
    return None


def transition(results: Mapping[str, Any], size: int, kind: str, measure: str) -> dict[str, Any]:
    """Where the quality falls to a half, over what width from 3/4 to 1/4, and how steeply at most.

    Each of them by seed; a seed whose curve does not cross a level has none.
    """
    dilutions = dilutions_of(results)
    rows = [row_of(results, size, kind, dilution) for dilution in dilutions]
    curves = np.array([quality(results, row, measure) for row in rows]).T
    ends = [[crossing(dilutions, curve, level) for level in (0.75, 0.5, 0.25)] for curve in curves]
    return {
        "middle": [middle for _, middle, _ in ends if middle is not None],
        "width": [low - high for high, _, low in ends if None not in (high, low)],
        "slope": (-np.diff(curves) / np.diff(dilutions)).max(1).tolist(),
        "n": len(curves),
    }


def deficit(
    results: Mapping[str, Any], size: int, good: tuple[str, float], bad: tuple[str, float]
) -> dict[str, Any]:
    """How much log-likelihood, in nats an image, one kind has less than another, seed by seed."""
    first, second = (row_of(results, size, *each)["log_likelihood"] for each in (good, bad))
    return statistics.spread(np.subtract(first, second))


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's four claims, each judged where its dilutions were measured."""
    del flags
    made = [_sharp(results), _worse(results)]
    if TESTED in dilutions_of(results):
        made = [_before(results), _after(results), *made]
    return made


def _before(results):
    left = {
        (size, name): quality(results, row_of(results, size, "sparse", TESTED), name).mean()
        for size in sizes_of(results)
        for name in MEASURES
    }
    good = sum(value >= KEPT for value in left.values())
    lost = sum(value < LOST for value in left.values())
    verdict = "holds" if good == len(left) else "fails" if lost == len(left) else "mixed"
    by_size = "; ".join(
        f"{size} hidden: "
        + ", ".join(f"{name} {100 * left[size, name]:.0f} %" for name in map(str, MEASURES))
        for size in sizes_of(results)
    )
    words = (
        f"At a dilution of {TESTED:g} before training, of the quality above independent pixels is "
        f"left ({by_size.replace('_', '-')}); {good} of {len(left)} keep {100 * KEPT:.0f} %."
    )
    return RBM.judge("before", verdict, _where(results) + words)


def _after(results):
    hurt, unrepaired, told = [], [], []
    for size in sizes_of(results):
        for cut in CUTS:
            fall = deficit(results, size, ("sparse", 0.0), (f"cut, {cut}", TESTED))
            rest = deficit(results, size, ("sparse, twice", 0.0), (f"retrained, {cut}", TESTED))
            hurt.append(statistics.sign(fall) > 0)
            unrepaired.append(statistics.sign(rest) > 0)
            told.append(f"{size} {cut} {fall['mean']:.2f} and {rest['mean']:.2f}")
    n = len(row_of(results, sizes_of(results)[0], "sparse", 0.0)["score"])
    if n < 3:
        verdict = "not resolved"
    else:
        verdict = "holds" if all(hurt) and all(unrepaired) else "mixed"
        verdict = "fails" if not any(hurt) or not any(unrepaired) else verdict
    words = (
        f"Cutting {TESTED:g} after training costs log-likelihood (nats an image, {n} paired seeds)"
        f" in {sum(hurt)} of {len(hurt)} cases, and after retraining the machine is still worse "
        f"than the uncut one of as many updates in {sum(unrepaired)} (hidden units, cut, loss "
        f"before and after retraining: {'; '.join(told)})."
    )
    return RBM.judge("after", verdict, _where(results) + words)


def _sharp(results):
    sizes, told, verdicts = sizes_of(results), [], []
    for cut in CUTS:
        found = [
            transition(results, size, f"cut, {cut}", "score") for size in (sizes[0], sizes[-1])
        ]
        small, large = (each["width"] for each in found)
        if min(map(len, (small, large))) < 3 or len(small) != len(large):
            verdicts.append("not resolved")
        else:
            narrower = statistics.difference(large, small)["interval"][0] > 0
            width = np.mean(large)
            if width <= SHARP and (narrower or len(sizes) < 2):
                verdicts.append("holds")
            else:
                verdicts.append("fails" if width >= GRADUAL else "mixed")
        for size in sizes:
            each = transition(results, size, f"cut, {cut}", "score")
            if each["middle"] and each["width"]:
                told.append(
                    f"{cut} {size}: {np.mean(each['middle']):.2f}, {np.mean(each['width']):.2f}, "
                    f"{np.mean(each['slope']):.1f}"
                )
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "mixed"
    words = (
        "The classifier score falls to a half at a dilution of, from 3/4 to 1/4 over a width of, "
        f"and by at most a share per unit of dilution of (cut, hidden units): {'; '.join(told)}. "
        f"Sharp is a width of at most {SHARP:g} that shrinks from {sizes[0]} to {sizes[-1]} hidden "
        f"units, with an interval that leaves out 0: {' and '.join(verdicts)}."
    )
    return RBM.judge("sharp", verdict, _where(results) + words)


def _worse(results):
    cells = {"sparse": [], "sparse, twice": []}
    for size in sizes_of(results):
        for cut in CUTS:
            for dilution in dilutions_of(results)[1:]:
                for kind, found in cells.items():
                    against = (f"retrained, {cut}", dilution)
                    gap = deficit(results, size, (kind, dilution), against)
                    found.append((cut, statistics.sign(gap), gap["mean"]))
    n = len(results["rows"][0]["score"])
    every = [sign for found in cells.values() for _, sign, _ in found]
    worse, better = (sum(s == side for s in every) for side in (1, -1))
    if n < 3:
        verdict = "not resolved"
    else:
        verdict = "holds" if worse >= 0.9 * len(every) else "mixed"
        verdict = "fails" if worse <= 0.1 * len(every) else verdict
    told = [
        f"{cut}, against {kind.replace('sparse', 'scratch')}: worse in "
        f"{sum(s > 0 for c, s, _ in found if c == cut)}, better in "
        f"{sum(s < 0 for c, s, _ in found if c == cut)} of {sum(c == cut for c, *_ in found)}, "
        f"{np.mean([gap for c, _, gap in found if c == cut]):+.2f} nats on average"
        for kind, found in cells.items()
        for cut in CUTS
    ]
    words = (
        f"Retrained after the cut is worse in log-likelihood than sparse from scratch in {worse} "
        f"of {len(every)} cells and better in {better}, {n} seeds in pairs ({'; '.join(told)}; "
        "'twice' has as many updates in all, the other as many after the cut)."
    )
    return RBM.judge("worse", verdict, _where(results) + words)


def _where(results):
    return (
        f"{setting(results).partition(' on ')[2]}, {results['num_visible']} binary pixels, "
        f"{results['updates']} updates. "
    )
