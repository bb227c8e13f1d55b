"""What the page and the terminal both say of a case: names, one table, and a few oracles' word."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from famr_jax.report import number
from famr_jax.report.plot import finite
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

Case = Mapping[str, Any]

LABELS = {"famr": "FAMR"}
"""What a method is called in words, where that is not its name."""
CURVES = {
    "for_acc": ("For-Acc (train)", "share", "forgotten"),
    "ret_acc": ("Ret-Acc (train)", "share", "retained"),
    "entropy": ("Entropy on forgotten images", "nats", "forgotten"),
}


def label(model: str | None) -> str:
    """A method or model in words."""
    name = str(model or "the method")
    return LABELS.get(name, name.replace("_", " "))


def method_names(case: Case) -> list[str]:
    """The methods of a case, in the order in which they ran."""
    return [str(method.get("name")) for method in case.get("methods") or ()]


def each_method(case: Case) -> list[str | None]:
    """The methods of a case, or None alone: of one without a name everything is absent."""
    return [*method_names(case)] or [None]


def measures_of(case: Case) -> list[Mapping[str, Any]]:
    """One line a measure that was taken of a method, for its name, title and unit."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in case.get("rows") or ():
        if "absent" not in row:
            found.setdefault(row.get("measure"), row)
    return list(found.values())


def shown_among(case: Case) -> dict[str, list[Any]]:
    """The one table of a case: for every model its values, in the order of `measures_of`.

    First the original, then every method, then the mean of the oracles, their band, and the null.
    """
    names, rows = method_names(case), case.get("rows") or ()
    lines = {(row.get("measure"), row.get("model")): row for row in rows}

    def column(name: str, of: str | None = None) -> list[Any]:
        found = []
        for measure in measures_of(case):
            models = (
                [of] if of else [each for each in names if (measure.get("measure"), each) in lines]
            )
            line = lines.get((measure.get("measure"), models[0]), {}) if models else {}
            found.append(line.get(name))
        return found

    count = most_oracles(case)
    return {
        "original": column("original"),
        **{label(name): column("value", name) for name in names},
        f"oracle (n={count})": column("oracle"),
        "95 % band": column("band"),
        "null": column("null"),
    }


def most_oracles(case: Case) -> int:
    """How many oracles the case has."""
    return max((row.get("oracles") or 0 for row in case.get("rows") or ()), default=0)


def verdict(case: Case, row: Mapping[str, Any]) -> str | None:
    """The verdict of a line; of fewer oracles than it needs, what they do show.

    That is whether the value lies within the values of the oracles, or how many times as far from
    their mean as they from one another.
    """
    count = row.get("oracles") or 0
    if not count or count >= ORACLES_FOR_A_VERDICT:
        return row.get("verdict")
    models = [each for each in case.get("models") or () if each.get("model") == "oracle"]
    values = finite([each.get(row.get("measure")) for each in models])
    values, value = values[values == values], row.get("value")
    if value is None or value != value or not len(values):
        return None
    gap = row.get("gap")
    if count == 1:
        unit = row.get("unit", "")
        apart = "" if gap is None else f", {number(gap, unit)} apart"
        return f"1 oracle{apart}"
    if values.min() <= value <= values.max():
        return f"among the {count}"
    null = row.get("null")
    if gap is None or not null:
        return f"outside all {count}"
    return f"outside all {count}, {number(gap / null)} × null"


def top_of(case: Case, unit: str | None, *values: float | None) -> float:
    """The end of an axis from 0: 100 %, log C, or the largest of the values."""
    if unit == "share":
        return 1.0
    log_c = (case.get("targets") or {}).get("max_entropy") if unit == "nats" else None
    known = finite([log_c, *values])
    return float(np.max(known[known > 0], initial=0)) or 1.0


def watched(case: Case) -> int | None:
    """The number of retained images whose accuracy the curves show, perhaps a part of all."""
    return case.get("ret_acc_n", case.get("num_retain"))
