"""Diagnosis of an unlearning run: FAMR's failure signatures, each answered with its number."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from famr_jax.report import number

RETAIN_DROP = 0.05  # the paper reports a loss of 2-4 points: more than 5 is not its result
CHANCE_ERRORS = 2.0  # binomial standard errors of 1/C: 98 % of guessers stay below two of them
CHANCE_FLOOR = 0.02  # nearer than 2 points to chance is chance, however many images there are
ORACLE_FLOOR = 0.02  # the same for nearness to the oracle's For-Acc while there is no band
ENTROPY_REACHED = 0.98  # share of log C: at C = 10 no class can then hold more than about 20 %
ENTROPY_BELOW = 0.95  # share of log C under which a plateau is clearly not the target
PLATEAU_EPOCHS = 3  # two equal epochs can be chance, three are a plateau
PLATEAU_CHANGE = 0.01  # of log C: at 1 % in three epochs the whole way takes 300
SEED_SPREAD = 0.02  # the paper claims agreement within 2-4 points; seeds must spread less than that
STATIONARY_RATIO = 0.01  # the gradient has lost two digits, a mild test of convergence
WEAK_PULL = 0.1  # of the gradient: an anchor that pulls with less is not what stops a run
CONVERGED_RATIO = 0.05  # of the converged point's distance from the anchor

NATS = " nats"
TOO_FEW = "Not measured: too few forgotten images to tell For-Acc from chance."


def diagnose(case: dict) -> list[dict]:
    """Check one case of a run for the failure signatures of FAMR.

    The thresholds are the constants of this module. For random samples the oracle's For-Acc is the
    target where the paper names 1/C: a retrained model still recognises most of them.

    Args:
        case: One entry of results.cases of a run's metrics.json; not changed.

    Returns:
        One entry for each check: "sign" its name; "found" True or False, None where a number it
        needs is missing or not finite; "words" a sentence with the number; "advice" a sentence, or
        "" where there is nothing to do.

    Source: failure signatures of FAMR (arXiv 2506.14515); the thresholds are ours.
    """
    return [check(case) for check in CHECKS]


def _entry(sign: str, found: bool | None, words: str, advice: str = "") -> dict:
    return {"sign": sign, "found": found, "words": words, "advice": advice if found else ""}


def _missing(sign: str, what: str) -> dict:
    return _entry(sign, None, f"Not measured: {what} is missing or not finite.")


def _at(case: dict, *path: str | int) -> float | None:
    """The finite number at a path of keys and positions, or None."""
    value = case
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and math.isfinite(value) else None


def line(case: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    """The line of a measure for the case's method, of those of `evaluation.verdicts`; or none."""
    name = (case.get("method") or {}).get("name")
    found = (row for row in case.get("rows") or () if row.get("measure") == measure)
    return next((row for row in found if row.get("model") == name), {})


def before_after(case: dict, measure: str) -> tuple[float | None, float | None]:
    """A measure of the original and of the method: from its row, else from the curve's ends.

    The row counts: a curve may watch a part of the images only.
    """
    row = line(case, measure)
    found = _at(row, "original"), _at(row, "value")
    return found if None not in found else tuple(_at(case, "epochs", measure, i) for i in (0, -1))


def oracle(case: dict, measure: str) -> float | None:
    """The oracles' mean of a measure."""
    return _at(line(case, measure), "oracle")


def _share(value: float) -> str:
    return f"{number(value, 'share')} %"


def _nats(value: float) -> str:
    return f"{number(value, 'nats')}{NATS}"


def _chance_limit(case: dict, chance: float) -> float:
    """The largest For-Acc that still counts as chance."""
    n = _at(case, "num_forget") or 1
    return chance + max(CHANCE_FLOOR, CHANCE_ERRORS * math.sqrt(chance * (1 - chance) / n))


def _forget_more(case: dict) -> str:
    """What to change when too little is forgotten: lam if the anchor pulls, else the epochs."""
    lam, distance, end = (
        _at(case, *path)
        for path in (("method", "lam"), ("stationarity", "distance"), ("stationarity", "end"))
    )
    if None not in (lam, distance, end) and lam * distance < WEAK_PULL * end:
        return (
            f"Run more epochs or a larger step: the anchor pulls with {number(lam * distance)}, "
            f"the gradient is {number(end)}, so lam (now {_lam(case)}) is not what holds it back."
        )
    return f"Lower lam (now {_lam(case)})."


def retain_accuracy(case: dict) -> dict:
    """Ret-Acc (train) fell by more than RETAIN_DROP."""
    sign = "Ret-Acc fell"
    before, after = before_after(case, "ret_acc")
    if before is None or after is None:
        return _missing(sign, "Ret-Acc (train) before or after")
    drop, retrained = before - after, oracle(case, "ret_acc")
    words = f"Ret-Acc (train) went from {_share(before)} to {_share(after)}"
    words += "" if retrained is None else f" (oracle {_share(retrained)})"
    change = f"{number(abs(drop), 'share')} points {'down' if drop > 0 else 'up'}"
    limit = f"{100 * RETAIN_DROP:g} points"
    if drop > RETAIN_DROP:
        what = "images" if case.get("kind") == "sample" else "classes"
        advice = (
            f"lam ({_lam(case)}) is too small, or forgotten and retained {what} overlap: raise "
            "lam, and see what the oracle says of the forgotten images."
        )
        return _entry(sign, True, f"{words}: {change}, more than {limit}.", advice)
    return _entry(sign, False, f"{words}: {change}, no loss of more than {limit}.")


def _lam(case: dict) -> str:
    return number(_at(case, "method", "lam"))


def _oracle_range(case: dict) -> tuple[float, float] | None:
    """For-Acc that counts as the oracle's: its band, or its mean within ORACLE_FLOOR."""
    row = line(case, "for_acc")
    low, high = (_at(row, "band", i) for i in (0, 1))
    mean = _at(row, "oracle")
    if low is not None and high is not None:
        return low, high
    return None if mean is None else (mean - ORACLE_FLOOR, mean + ORACLE_FLOOR)


def above_chance(case: dict) -> dict:
    """For-Acc is above 1/C while entropy is below ENTROPY_REACHED of log C: not forgotten yet."""
    sign = "Still above chance"
    end = _end(case)
    if end is None:
        return _missing(sign, "For-Acc, entropy, 1/C or log C")
    for_acc, entropy, chance, log_c = end
    limit = _chance_limit(case, chance)
    if limit >= 1:
        return _entry(sign, None, TOO_FEW)
    above = for_acc > limit and entropy < ENTROPY_REACHED * log_c
    words = (
        f"For-Acc is {_share(for_acc)} (1/C = {_share(chance)}, counted as chance up to "
        f"{_share(limit)}) and entropy {_nats(entropy)} of log C = {_nats(log_c)}"
    )
    target = _oracle_range(case) if case.get("kind") == "sample" else None
    if target is None:
        return _entry(sign, above, words + ".", _forget_more(case))
    low, high = target
    words += f"; for samples the target is the oracle's {_share(oracle(case, 'for_acc'))}"
    if for_acc > high:
        words += ", and For-Acc is still above it."
        return _entry(sign, True, words, _forget_more(case))
    where = "is already there" if for_acc >= low else "is below it: more went than retraining takes"
    return _entry(sign, False, f"{words}, and For-Acc {where}.")


def _end(case: dict) -> tuple[float, float, float, float] | None:
    """For-Acc and entropy at the end, 1/C and log C."""
    values = (
        before_after(case, "for_acc")[1],
        before_after(case, "entropy")[1],
        _at(case, "targets", "chance"),
        _at(case, "targets", "max_entropy"),
    )
    return None if None in values or not values[3] else values


def target_reached(case: dict) -> dict:
    """For-Acc is near 1/C with entropy near log C: chance is the target, not a failure."""
    sign = "Target reached"
    end = _end(case)
    if end is None:
        return _missing(sign, "For-Acc, entropy, 1/C or log C")
    for_acc, entropy, chance, log_c = end
    if _chance_limit(case, chance) >= 1:
        return _entry(sign, None, TOO_FEW)
    reached = for_acc <= _chance_limit(case, chance) and entropy >= ENTROPY_REACHED * log_c
    words = (
        f"For-Acc is {_share(for_acc)} at 1/C = {_share(chance)}, entropy "
        f"{_share(entropy / log_c)} of log C"
    )
    if not reached:
        return _entry(sign, False, f"{words}: the uniform prediction is not reached.")
    words += ": the uniform prediction is reached; chance is not a failure."
    target = _oracle_range(case) if case.get("kind") == "sample" else None
    if target is None or for_acc >= target[0]:
        return _entry(sign, True, words)
    words += f" But a retrained model gets {_share(oracle(case, 'for_acc'))} of them."
    return _entry(sign, True, words, f"Raise lam (now {_lam(case)}) or stop earlier.")


def seed_variance(case: dict) -> dict:
    """For-Acc or Ret-Acc spreads over seeds by more than SEED_SPREAD (standard deviation)."""
    sign = "Seeds disagree"
    seeds = case.get("seeds") or {}
    spread = {}
    for name, label in (("for_acc", "For-Acc"), ("ret_acc", "Ret-Acc")):
        values = [_at(seeds, name, i) for i in range(len(seeds.get(name) or ()))]
        if len(values) < 2 or None in values:
            return _missing(sign, "the same unlearning with two batch orders or more")
        spread[label] = statistics.stdev(values)
    points = " and ".join(f"{number(s, 'share')} points in {label}" for label, s in spread.items())
    found = max(spread.values()) > SEED_SPREAD
    words = (
        f"The spread (standard deviation) over {len(values)} batch orders is {points}, "
        f"{'more' if found else 'not more'} than {100 * SEED_SPREAD:g}."
    )
    advice = f"Lower the step (lr now {number(_at(case, 'method', 'lr'))})."
    return _entry(sign, found, words, advice)


def entropy_plateau(case: dict) -> dict:
    """Entropy stands still over PLATEAU_EPOCHS while below ENTROPY_BELOW of log C."""
    sign = "Entropy plateau"
    last = [_at(case, "epochs", "entropy", -i) for i in range(PLATEAU_EPOCHS + 1, 0, -1)]
    log_c = _at(case, "targets", "max_entropy")
    if None in last or not log_c:
        return _missing(sign, f"entropy over {PLATEAU_EPOCHS} epochs or log C")
    change, entropy = max(last) - min(last), last[-1]
    flat, low = change < PLATEAU_CHANGE * log_c, entropy < ENTROPY_BELOW * log_c
    norm = _at(case, "epochs", "grad_norm", -1)
    words = (
        f"Over the last {PLATEAU_EPOCHS} epochs entropy moved by {_nats(change)} and stands at "
        f"{_nats(entropy)}, {_share(entropy / log_c)} of log C"
    )
    target = oracle(case, "entropy") if case.get("kind") == "sample" else None
    if target is not None:
        words += f"; the oracle's, the target for samples, is {_nats(target)}"
    found = flat and low and (target is None or entropy < target)
    size = "not measured" if norm is None else f"norm {number(norm)} in the last epoch"
    advice = (
        f"Look at the gradient on the forget set ({size}): near zero the anchor holds "
        "it, lower lam; else the steps are too short."
    )
    return _entry(sign, found, words + ".", advice)


def far_from_stationary(case: dict) -> dict:
    """The gradient of the full objective is above STATIONARY_RATIO of what it was at the anchor.

    Where "from_end" gives the distance of the converged point from the end, that counts as well.
    """
    sign = "Far from the stationary point"
    start, end = (_at(case, "stationarity", name) for name in ("at_anchor", "end"))
    if start is None or end is None:
        return _missing(sign, "the gradient of the full objective at the anchor or at the end")
    ratio = end / start if start > 0 else math.inf if end > 0 else 0.0
    found = ratio > STATIONARY_RATIO
    share = f"{_share(ratio)} of" if math.isfinite(ratio) else "above"
    words = (
        f"The gradient of the full objective is {number(end)} at the end, {share} the "
        f"{number(start)} at the anchor"
    )
    way = _at(case, "stationarity", "converged", "distance")
    gap = _at(case, "stationarity", "converged", "from_end")
    moved = _at(case, "stationarity", "distance")
    whole = ((case.get("stationarity") or {}).get("converged") or {}).get("converged")
    point = "converged point" if whole else "point of the longer run, not converged either,"
    if way and gap is not None:
        found = found or gap > CONVERGED_RATIO * way
        words += f"; the {point} lies {number(gap)} away, itself {number(way)} from the anchor"
    elif way and moved is not None:
        words += (
            f"; the weights moved by {number(moved)}, the {point} lies {number(way)} "
            "from the anchor"
        )
    advice = "The bounds do not apply yet: run on until it converges."
    return _entry(sign, found, words + ".", advice)


CHECKS = (
    retain_accuracy,
    above_chance,
    target_reached,
    seed_variance,
    entropy_plateau,
    far_from_stationary,
)
