"""Numbers, intervals and other values as the reports print them."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real

import numpy as np

ABSENT = "–"
PERCENT = ("share", "points")
DECIMALS = {"share": 1, "points": 1, "nats": 3}
UNITS = {"share": "%", "points": "points", "nats": "nats"}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, unit: str = "") -> str:
    """A number as the reports print it, without its unit.

    Args:
        value: None is absent and becomes an en dash.
        unit: "share" is printed in per cent with one decimal, as are "points", differences of
            shares; "nats" with three decimals, anything else with three significant digits.
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, Integral) and not unit:
        text = f"{value:,}".replace(",", "\u202f")
    elif unit in DECIMALS:
        text = f"{100 * value if unit in PERCENT else value:.{DECIMALS[unit]}f}"
    elif 1000 <= abs(value) < 1e7:
        text = f"{float(f'{value:.3g}'):,.0f}".replace(",", "\u202f")
    else:
        text = _powers(f"{value:.3g}")
    if not text.strip("-0."):
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(pair: Sequence[float | None] | None, unit: str = "") -> str:
    """Two ends as the reports print them, "79.1 to 86.4"; those of shares stop at 0 and 100 %."""
    if pair is None:
        return ABSENT
    low, high = possible(pair, unit)
    return f"{number(low, unit)} to {number(high, unit)}"


def possible(pair: Sequence[float | None], unit: str = "") -> list[float | None]:
    """The part of an interval that can be: a share lies between 0 and 1."""
    if unit != "share":
        return list(pair)
    return [end if end is None or math.isnan(end) else min(max(end, 0.0), 1.0) for end in pair]


def spread(mean: float | None, sd: float | None, unit: str = "") -> str:
    """A mean with its standard deviation, "82.4 ± 1.3", or the mean alone where there is none."""
    told = number(mean, unit)
    return told if sd is None or mean is None else f"{told} ± {number(sd, unit)}"


def setting(value: object) -> str:
    """A value of a configuration: six digits of a number, a list joined by commas."""
    if isinstance(value, float):
        return _powers(f"{value:.6g}").replace("-", "−") if math.isfinite(value) else "not finite"
    return told(value, each=setting)


def told(value: object, unit: str = "", each: Callable[[object], str] | None = None) -> str:
    """Any plain value in words: None, yes and no, numbers, intervals, means with their spread.

    Args:
        value: A mapping with a "mean" is printed as `spread`, two floats as `interval`, any other
            list joined by commas.
        unit: That of its numbers; whole numbers count something and are printed as they are.
        each: How the members of a list are printed, none of them as an interval.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, Real):
        unit = "" if isinstance(value, Integral) else unit
        return number(value, unit)  # type: ignore[arg-type]  # typeshed has floats that are not Real
    if isinstance(value, Mapping):
        if "mean" in value:
            return spread(value["mean"], value.get("sd"), unit)
        return ", ".join(f"{k} {told(v, unit, each)}" for k, v in value.items())
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    if each is None and is_interval(value):
        return interval(value, unit)
    return ", ".join(told(v, unit) if each is None else each(v) for v in value)


def is_interval(value: object) -> bool:
    """Whether a value is a pair of numbers of which one at least is not a whole one."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or len(value) != 2:
        return False
    return any(isinstance(v, float) for v in value) and all(
        v is None or isinstance(v, Real) for v in value
    )


def _powers(text: str) -> str:
    mantissa, _, power = text.partition("e")
    return mantissa + (f"·10{str(int(power)).translate(SUPERSCRIPT)}" if power else "")
