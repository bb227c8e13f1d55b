"""Diagnosis of an unlearning run: a table of signs, each with its condition, number and advice."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from famr_jax.cli.measured import (
    RETAIN_DROP,
    Measured,
    at,
    best_epoch,
    every,
    is_kept,
    limits_of,
    measured,
)
from famr_jax.report import number

ENTROPY_REACHED = 0.98  # share of log C: at C = 10 no class can then hold more than about 20 %
ENTROPY_BELOW = 0.95  # share of log C under which a plateau is clearly not the target
PLATEAU_EPOCHS = 3  # two equal epochs can be chance, three are a plateau
PLATEAU_CHANGE = 0.01  # of log C: at 1 % in three epochs the whole way takes 300
STILL_FALLING = 0.02  # of For-Acc in the last three epochs: more than seeds spread
SEED_SPREAD = 0.02  # the paper claims agreement within 2-4 points; seeds must spread less than that
STATIONARY_RATIO = 0.01  # the gradient has lost two digits, a mild test of convergence
CONVERGED_RATIO = 0.05  # of the converged point's distance from the anchor
DIVERGED_RATIO = 10.0  # of the gradient's norm: the worst run that did not diverge had 1.3
LAM_GIVES_BACK = (0.001, 0.0455)  # Ret-Acc of FAMR, lam 1 over lam 0.01: results/lambda_sweep*.json


class Sign(NamedTuple):
    """A row of the table.

    Attributes:
        name: What the page calls it.
        condition: Whether it is there; None where a number that it needs is missing.
        words: A sentence with the numbers, whether it is there or not.
        advice: What to do if it is, or "" where the numbers support nothing.
        good: Whether it is what one wants.
        always: Whether it is looked for where the run diverged or there was nothing to forget.
        of: The method's term that it is read from; methods without the term lack the row.
    """

    name: str
    condition: Callable[[Measured], bool | None]
    words: Callable[[Measured], str]
    advice: Callable[[Measured], str]
    good: bool = False
    always: bool = False
    of: str = ""


def diagnose(case: Mapping[str, Any], model: str | None = None) -> list[dict[str, Any]]:
    """Checks one method of a case for every sign of `SIGNS`.

    Advice is given only where the numbers of the case support it. A run that diverged, or an
    original with nothing to forget, is all that is said of it.

    Args:
        case: One entry of results.cases of a run's metrics.json; not changed.
        model: The method; the first one if not given.

    Returns:
        One entry for each sign: "sign" its name; "found" True or False, None where a number it
        needs is missing or not finite; "good" whether it is wanted; "words" a sentence with the
        number; "advice" a sentence, or "".

    Source: failure signatures of FAMR (arXiv 2506.14515); the thresholds are ours.
    """
    seen, entries, alone = measured(case, model), [], ""
    for sign in SIGNS:
        if sign.of and sign.of not in seen.terms:
            continue
        found = sign.condition(seen) if sign.always or not alone else None
        words = f"Not asked: {alone}." if alone and not sign.always else sign.words(seen)
        if found is None and not words.startswith("Not "):
            words = "Not measured: a number that it needs is missing or not finite."
        advice = sign.advice(seen) if found else ""
        entries.append(
            {"sign": sign.name, "found": found, "good": sign.good, "words": words, "advice": advice}
        )
        if found and sign.always:
            alone = alone or sign.name.lower()
    return entries


def diverged(entries: list[dict[str, Any]]) -> bool:
    """Whether a diagnosis says that the run diverged."""
    return any(entry["sign"] == DIVERGED and entry["found"] for entry in entries)


def _share(value: float | None) -> str:
    return f"{number(value, 'share')} %"


def _points(value: float) -> str:
    return f"{number(abs(value), 'share')} points"


def _first_last(values: Any) -> tuple[float, float] | None:
    begun, end = at(values, 0), at(values, -1)
    return None if begun is None or end is None else (begun, end)


def has_diverged(seen: Measured) -> bool | None:
    """Not finite; or the objective rose and the gradient grew more than `DIVERGED_RATIO` times."""
    if not seen.finite:
        return True
    objective = _first_last(seen.terms.get("objective"))
    gradient = _first_last(seen.terms.get("grad_norm"))
    begun, end = (at(seen.stationary, name) for name in ("at_anchor", "end"))
    if objective is None or gradient is None:
        return None if begun is None or end is None else end > DIVERGED_RATIO * begun
    grew = gradient[1] > DIVERGED_RATIO * gradient[0]
    if begun is not None and end is not None:
        grew = grew or end > DIVERGED_RATIO * begun
    return objective[1] > objective[0] and grew


def _words_of_divergence(seen: Measured) -> str:
    if not seen.finite:
        return f"Not finite in epoch {seen.settings.get('epoch') or 'one of them'}."
    parts = [
        f"{words} went from {number(ends[0])} in the first epoch to {number(ends[1])} in the last"
        for words, name in (("the objective", "objective"), ("the gradient's norm", "grad_norm"))
        if (ends := _first_last(seen.terms.get(name)))
    ]
    begun, end = (at(seen.stationary, name) for name in ("at_anchor", "end"))
    if None not in (begun, end):
        parts.append(f"the whole gradient from {number(begun)} to {number(end)}")
    told = ", ".join(parts)
    return f"{told[:1].upper()}{told[1:]}." if told else ""


def _smaller_step(seen: Measured) -> str:
    lr = at(seen.settings, "lr")
    now = "" if lr is None else f" (now {number(lr)})"
    return f"Lower --method-lr{now}: these steps go up where they should go down."


def left_as_it_was(seen: Measured) -> bool | None:
    """A removal that trusted no damping has left the weights as they were."""
    trusted = at(seen.terms, "trusted", -1)
    return None if trusted is None else trusted == 0


def _words_of_trust(seen: Measured) -> str:
    damping, divergence = (at(seen.terms, name, -1) for name in ("damping", "divergence"))
    if None in (damping, divergence):
        return ""
    told = f"the step at damping {number(damping)} is {number(divergence, 'nats')} nats from its "
    told += "linearisation"
    return f"Not trusted: {told}." if left_as_it_was(seen) else f"Trusted: {told}."


def nothing_to_forget(seen: Measured) -> bool | None:
    """The original itself is at chance on the forget set or on what is retained."""
    known = every((seen.for_acc[0], seen.ret_acc[0], seen.at_chance))
    return None if known is None else min(known[:2]) <= known[2]


def _words_of_original(seen: Measured) -> str:
    return (
        f"The original recognises {_share(seen.for_acc[0])} of the forget set and "
        f"{_share(seen.ret_acc[0])} of the rest; chance is {_share(seen.chance)}, up to "
        f"{_share(seen.at_chance)} for so many images."
    )


def not_forgotten(seen: Measured) -> bool | None:
    """For-Acc is above what counts as forgotten."""
    limits = limits_of(seen)
    return None if limits is None or seen.for_acc[1] is None else seen.for_acc[1] > limits[1]


def forgotten(seen: Measured) -> bool | None:
    """For-Acc is within what counts as forgotten, and that of the original was not."""
    limits = limits_of(seen)
    if limits is None or seen.for_acc[1] is None:
        return None
    within = limits[0] <= seen.for_acc[1] <= limits[1]
    return None if within and _original_within(seen) else within


def _original_within(seen: Measured) -> bool:
    """Whether doing nothing counts as forgotten: retrained models know samples as well."""
    limits, before = limits_of(seen), seen.for_acc[0]
    return limits is not None and before is not None and limits[0] <= before <= limits[1]


def over_forgotten(seen: Measured) -> bool | None:
    """For-Acc is below what retrained models have; of classes there is nothing below."""
    limits = limits_of(seen)
    return None if limits is None or seen.for_acc[1] is None else seen.for_acc[1] < limits[0]


def _words_of_forgetting(seen: Measured) -> str:
    after, limits, retrained = seen.for_acc[1], limits_of(seen), seen.oracle["for_acc"]
    if after is None or limits is None:
        return ""
    told = f"For-Acc is {_share(after)}"
    told += "" if retrained is None else f", of retrained models {_share(retrained)}"
    low, high = (min(max(each, 0.0), 1.0) for each in limits)
    counts = f"up to {_share(high)}" if seen.by_class else f"{_share(low)} to {_share(high)}"
    told += f"; {counts} counts as forgotten"
    if seen.entropy[1] is not None and seen.log_c is not None:
        reached = "" if seen.entropy[1] >= ENTROPY_REACHED * seen.log_c else "not "
        told += f". Entropy is {_share(seen.entropy[1] / seen.log_c)} of log C: predictions are "
        told += f"{reached}uniform"
    if not _original_within(seen):
        return f"{told}."
    told += f". The original's {_share(seen.for_acc[0])} counts as well"
    return f"Not resolved: {told}." if forgotten(seen) is None else f"{told}."


def _stop_there(seen: Measured) -> str:
    epoch = best_epoch(seen)
    if epoch is None or _original_within(seen):  # the first epochs are as good as none
        return ""
    gone, kept = (at(seen.curves, name, epoch) for name in ("for_acc", "ret_acc"))
    return (
        f"Stop after epoch {epoch} (--epochs {epoch}): there For-Acc was {_share(gone)} and "
        f"Ret-Acc {_share(kept)}."
    )


def _forget_more(seen: Measured) -> str:
    """More epochs if For-Acc still falls and Ret-Acc is kept; a lower lam if the anchor holds."""
    if not is_kept(seen, seen.ret_acc[1]):
        return ""
    recent = every(at(seen.curves, "for_acc", -i) for i in (PLATEAU_EPOCHS + 1, 1))
    if recent is not None and recent[0] - recent[1] > STILL_FALLING:
        epochs = number(at(seen.settings, "epochs"))
        fell = _points(recent[0] - recent[1])
        return (
            f"Run more epochs (now {epochs}): For-Acc fell by {fell} in the last "
            f"{PLATEAU_EPOCHS}, and Ret-Acc is kept."
        )
    return _lower_lam(seen)


def _lower_lam(seen: Measured) -> str:
    begun, end = (at(seen.stationary, name) for name in ("at_anchor", "end"))
    lam, distance = at(seen.settings, "lam"), at(seen.stationary, "distance")
    if begun is None or end is None or distance is None or not lam:
        return ""
    held = end <= STATIONARY_RATIO * begun and end < lam * distance
    if not held or not is_kept(seen, seen.ret_acc[1]):
        return ""
    return (
        f"Lower lam (now {number(lam)}): the run stands still, where the anchor's pull, "
        f"{number(lam * distance)}, balances the forget loss."
    )


def retain_fell(seen: Measured) -> bool | None:
    """Ret-Acc fell by more than `RETAIN_DROP`."""
    before, after = seen.ret_acc
    return None if before is None or after is None else before - after > RETAIN_DROP


def _words_of_retaining(seen: Measured) -> str:
    before, after = seen.ret_acc
    if before is None or after is None:
        return ""
    retrained = seen.oracle["ret_acc"]
    told = f"Ret-Acc went from {_share(before)} to {_share(after)}"
    told += "" if retrained is None else f" (retrained models {_share(retrained)})"
    way = "down" if before > after else "up"
    told += f": {_points(before - after)} {way}, where {_points(RETAIN_DROP)} are a loss"
    if before - after <= RETAIN_DROP or best_epoch(seen) is not None:
        return f"{told}."
    told += "; no epoch of this run has both the forgetting and the retaining"
    if seen.settings.get("name") == "famr":
        low, high = (number(each, "share") for each in LAM_GIVES_BACK)
        told += f". A lam a hundred times as large gave back {low} to {high} points in our sweeps"
    return f"{told}."


def seeds_disagree(seen: Measured) -> bool | None:
    """For-Acc or Ret-Acc spreads over seeds by more than `SEED_SPREAD` (standard deviation)."""
    spread = _spread(seen)
    return None if spread is None else max(spread) > SEED_SPREAD


def _spread(seen: Measured) -> list[float] | None:
    found = []
    for name in ("for_acc", "ret_acc"):
        values = every(at(seen.seeds, name, i) for i in range(len(seen.seeds.get(name) or ())))
        if values is None or len(values) < 2:
            return None
        found.append(statistics.stdev(values))
    return found


def _words_of_seeds(seen: Measured) -> str:
    spread = _spread(seen)
    if spread is None:
        return ""
    count = len(seen.seeds["for_acc"])
    return (
        f"The standard deviation over {count} batch orders is {_points(spread[0])} in For-Acc and "
        f"{_points(spread[1])} in Ret-Acc; up to {_points(SEED_SPREAD)} is agreement."
    )


def plateau(seen: Measured) -> bool | None:
    """Entropy stands still while below `ENTROPY_BELOW` of log C, and below the oracles'."""
    last = _last_entropies(seen)
    if last is None or seen.log_c is None:
        return None
    flat = max(last) - min(last) < PLATEAU_CHANGE * seen.log_c
    target = None if seen.by_class else seen.oracle["entropy"]
    below = last[-1] < ENTROPY_BELOW * seen.log_c
    return flat and below and (target is None or last[-1] < target)


def _last_entropies(seen: Measured) -> list[float] | None:
    return every(at(seen.curves, "entropy", -i) for i in range(PLATEAU_EPOCHS + 1, 0, -1))


def _words_of_plateau(seen: Measured) -> str:
    last = _last_entropies(seen)
    if last is None or seen.log_c is None:
        return ""
    told = (
        f"Over the last {PLATEAU_EPOCHS} epochs entropy moved by "
        f"{number(max(last) - min(last), 'nats')} nats and stands at {number(last[-1], 'nats')}, "
        f"{_share(last[-1] / seen.log_c)} of log C"
    )
    target = None if seen.by_class else seen.oracle["entropy"]
    if target is not None:
        told += f"; of retrained models it is {number(target, 'nats')}"
    return f"{told}."


def far_from_stationary(seen: Measured) -> bool | None:
    """The gradient is above `STATIONARY_RATIO` of what it was, or the converged point is away."""
    begun, end = (at(seen.stationary, name) for name in ("at_anchor", "end"))
    if begun is None or end is None:
        return None
    away, way = (at(seen.stationary, "converged", name) for name in ("from_end", "distance"))
    if away is not None and way is not None and away > CONVERGED_RATIO * way:
        return True
    return end > STATIONARY_RATIO * begun


def _words_of_stationary(seen: Measured) -> str:
    begun, end = (at(seen.stationary, name) for name in ("at_anchor", "end"))
    if begun is None or end is None:
        return ""
    share = f"{_share(end / begun)} of" if begun > 0 else "above"
    told = f"The gradient of the objective is {number(end)}, {share} the {number(begun)} at the "
    told += "original; the theory speaks of the point where it is zero"
    gone, kept = (at(seen.stationary, "converged", name) for name in ("for_acc", "ret_acc"))
    if None not in (gone, kept):
        whole = (seen.stationary.get("converged") or {}).get("converged")
        point = "There" if whole else "After the longest descent, not there yet either,"
        told += f". {point} For-Acc is {_share(gone)} and Ret-Acc {_share(kept)}"
    return f"{told}."


def _run_on(seen: Measured) -> str:
    """Only where the page shows that the point is worth it."""
    gone, kept = (at(seen.stationary, "converged", name) for name in ("for_acc", "ret_acc"))
    limits = limits_of(seen)
    if gone is None or kept is None or limits is None or not not_forgotten(seen):
        return ""
    worth = gone <= limits[1] and is_kept(seen, kept) and is_kept(seen, seen.ret_acc[1])
    return "Run more epochs: that point forgets and keeps." if worth else ""


def _off_the_plateau(seen: Measured) -> str:
    return _forget_more(seen) if not_forgotten(seen) else ""


def _nothing(seen: Measured) -> str:
    del seen
    return ""


def _train_longer(seen: Measured) -> str:
    del seen
    return "Train longer (--train-epochs): of what was never learnt nothing can be forgotten."


DIVERGED = "Diverged"
SIGNS = (
    Sign(DIVERGED, has_diverged, _words_of_divergence, _smaller_step, always=True),
    Sign("Nothing to forget", nothing_to_forget, _words_of_original, _train_longer, always=True),
    Sign("No step was taken", left_as_it_was, _words_of_trust, _nothing, of="trusted"),
    Sign("Not forgotten", not_forgotten, _words_of_forgetting, _forget_more),
    Sign("Forgotten", forgotten, _words_of_forgetting, _nothing, good=True),
    Sign("More forgotten than by retraining", over_forgotten, _words_of_forgetting, _stop_there),
    Sign("Ret-Acc fell", retain_fell, _words_of_retaining, _stop_there),
    Sign("Seeds disagree", seeds_disagree, _words_of_seeds, _nothing),
    Sign("Entropy plateau", plateau, _words_of_plateau, _off_the_plateau),
    Sign("Far from the stationary point", far_from_stationary, _words_of_stationary, _run_on),
)  # fmt: skip
"""Every sign: its name, the condition on what was measured, words and advice."""
