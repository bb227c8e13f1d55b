"""What the signs of a diagnosis are read from: the numbers of one method in one case."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

RETAIN_DROP = 0.05  # the paper reports a loss of 2-4 points: more than 5 is not its result
CHANCE_ERRORS = 2.0  # binomial standard errors of 1/C: 98 % of guessers stay below two of them
CHANCE_FLOOR = 0.02  # nearer than 2 points to chance is chance, however many images there are
ORACLE_FLOOR = 0.02  # the same for nearness to the oracle's For-Acc while there is no band


class Measured(NamedTuple):
    """What the signs of one method are read from; what was not measured is None.

    Attributes:
        finite: Whether the run ended in finite numbers.
        by_class: Whether classes are forgotten, and not samples.
        for_acc: For-Acc of the original and of the method.
        ret_acc: Ret-Acc likewise.
        entropy: Entropy on the forget set likewise.
        curves: The curves' values, epoch 0 first, by measure.
        terms: The method's own terms, epoch 1 first, by name.
        chance: 1/C.
        log_c: The largest entropy.
        at_chance: The largest For-Acc that is chance for so many images; None where all is.
        oracle: Mean of the oracles by measure.
        range: For-Acc that counts as the oracles'.
        stationary: Gradients, distances and the converged point, where they were studied.
        seeds: Ends of other batch orders, likewise.
        settings: Of the method.
    """

    finite: bool
    by_class: bool
    for_acc: tuple[float | None, float | None]
    ret_acc: tuple[float | None, float | None]
    entropy: tuple[float | None, float | None]
    curves: Mapping[str, Any]
    terms: Mapping[str, Any]
    chance: float | None
    log_c: float | None
    at_chance: float | None
    oracle: Mapping[str, float | None]
    range: tuple[float, float] | None
    stationary: Mapping[str, Any]
    seeds: Mapping[str, Any]
    settings: Mapping[str, Any]


def line(case: Mapping[str, Any], measure: str, model: str | None = None) -> Mapping[str, Any]:
    """The line of a measure for one method, of those of `evaluation.verdicts`; or none.

    Args:
        case: One entry of results.cases.
        measure: Its name.
        model: The method; the first one if not given.
    """
    name = model or method_of(case).get("name")
    found = (row for row in case.get("rows") or () if row.get("measure") == measure)
    return next((row for row in found if row.get("model") == name), {})


def method_of(case: Mapping[str, Any], model: str | None = None) -> Mapping[str, Any]:
    """The entry of a method of a case, the first one if not named; empty if there is none."""
    methods = case.get("methods") or ()
    return next((each for each in methods if model in (None, each.get("name"))), {})


def measured(case: Mapping[str, Any], model: str | None = None) -> Measured:
    """Reads what the signs need of a case."""
    method = method_of(case, model)
    name, curves = method.get("name"), method.get("curves") or {}
    chance, log_c = (at(case, "targets", key) for key in ("chance", "max_entropy"))
    studied = case.get("studied") == name and name is not None
    row = line(case, "for_acc", name)
    low, high, mean = (at(row, *path) for path in (("band", 0), ("band", 1), ("oracle",)))
    near = None if mean is None else (mean - ORACLE_FLOOR, mean + ORACLE_FLOOR)
    return Measured(
        finite=method.get("finite") is not False,
        by_class=case.get("kind") == "class",
        for_acc=before_after(case, "for_acc", name),
        ret_acc=before_after(case, "ret_acc", name),
        entropy=before_after(case, "entropy", name),
        curves=curves,
        terms=method.get("terms") or {},
        chance=chance,
        log_c=log_c or None,
        at_chance=_chance_limit(case, chance),
        oracle={each: at(line(case, each, name), "oracle") for each in ENDS},
        range=near if low is None or high is None else (low, high),
        stationary=(case.get("stationarity") or {}) if studied else {},
        seeds=(case.get("seeds") or {}) if studied else {},
        settings=method,
    )


ENDS = ("for_acc", "ret_acc", "entropy")


def before_after(
    case: Mapping[str, Any], measure: str, model: str | None = None
) -> tuple[float | None, float | None]:
    """A measure of the original and of a method: from its row, else from the curve's ends.

    The row counts: a curve may watch a part of the images only.
    """
    row, curves = line(case, measure, model), method_of(case, model).get("curves") or {}
    found = at(row, "original"), at(row, "value")
    return found if None not in found else (at(curves, measure, 0), at(curves, measure, -1))


def at(value: Any, *path: str | int) -> float | None:
    """The finite number at a path of keys and positions, or None."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and math.isfinite(value) else None


def every(values: Iterable[float | None]) -> list[float] | None:
    """All of some numbers, or None where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _chance_limit(case: Mapping[str, Any], chance: float | None) -> float | None:
    if chance is None or not 0 <= chance <= 1:
        return None
    limit = at_chance(chance, at(case, "num_forget") or 1)
    return limit if limit < 1 else None


def at_chance(chance: float, n: float) -> float:
    """The largest share of n images that guessing gets right: two standard errors above chance."""
    errors = CHANCE_ERRORS * math.sqrt(chance * (1 - chance) / max(n, 1))
    return chance + max(CHANCE_FLOOR, errors)


def limits_of(seen: Measured) -> tuple[float, float] | None:
    """For-Acc that counts as forgotten, whatever the entropy is.

    By class up to chance, for samples what retrained models have.
    """
    if not seen.by_class:
        return seen.range
    above = [each for each in (seen.at_chance, seen.range and seen.range[1]) if each is not None]
    return (0.0, max(above)) if above else None


def is_kept(seen: Measured, ret_acc: float | None) -> bool:
    """Whether this Ret-Acc is within `RETAIN_DROP` of the original's."""
    before = seen.ret_acc[0]
    return before is not None and ret_acc is not None and before - ret_acc <= RETAIN_DROP


def best_epoch(seen: Measured) -> int | None:
    """The first epoch of the run after which the set counts as forgotten and Ret-Acc as kept."""
    limits = limits_of(seen)
    fors, rets = (seen.curves.get(name) or () for name in ("for_acc", "ret_acc"))
    if limits is None:
        return None
    start = at(rets, 0)
    for epoch in range(1, min(len(fors), len(rets))):
        gone, kept = at(fors, epoch), at(rets, epoch)
        if gone is None or kept is None or start is None:
            continue
        if limits[0] <= gone <= limits[1] and start - kept <= RETAIN_DROP:
            return epoch
    return None
