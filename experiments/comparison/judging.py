"""What is measured of every chosen model, and how it is judged beside the oracles."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments.comparison.trials import tug_of_war
from famr_jax import evaluation, metrics, statistics
from famr_jax.evaluation import Measure, View

ACCURACIES = ("for_acc", "ret_acc", "test_acc")
GAPS = (*ACCURACIES, "svc_attack")
"""Of the average gap; a whole class has no attack of membership."""


def divergence(view: View, oracles: Sequence[View], *, function: Any, name: str) -> float:
    """Mean divergence of the predictions from those of the oracles, over a set and the oracles."""
    return view.divergence(function, oracles, name)


def _to_oracles(kind, function, words, unit, name):
    return Measure(
        f"{kind}_{name}",
        unit,
        name,
        partial(divergence, function=function, name=name),
        f"{words} to oracle, {name}",
    )


COMPARED = (
    *evaluation.named("for_acc", "for_acc_test", "ret_acc", "test_acc"),
    *(_to_oracles("kl", metrics.kl, "KL", "nats", name) for name in ("forget", "retain", "test")),
    *(_to_oracles("tv", metrics.total_variation, "TV", "", name)
      for name in ("forget", "retain", "test")),
    *evaluation.named("svc_attack"),
)  # fmt: skip
"""What is taken of every model."""
UNITS = {measure.name: measure.unit for measure in COMPARED}
TITLES = {measure.name: measure.title for measure in COMPARED}


def judged(
    rows: Sequence[Mapping[str, Any]], oracles: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of models with average gap, Tug of War and the number of measures outside the band.

    Gap and war are those to the oracles' mean accuracies; of an oracle to the others' mean.
    """
    sizes, found = oracles[0]["n"], []
    for row in rows:
        others = [oracle for oracle in oracles if oracle is not row]
        mean = {name: np.mean([o[name] for o in others]) for name in GAPS if name in row}
        gaps = [abs(row[name] - mean[name]) for name in mean]
        judged = {"average_gap": float(np.mean(gaps)), "tow": tug_of_war(row, mean)}
        outside = [n for n in UNITS if n in row and not inside(n, row, others, sizes.get(n))]
        kept = {name: value for name, value in row.items() if name not in ("n", "absent")}
        found.append(kept | judged | {"outside": len(outside)})
    return found


def inside(
    name: str, row: Mapping[str, Any], oracles: Sequence[Mapping[str, Any]], size: int | None
) -> bool:
    """Whether one more oracle could have had a row's value of a measure."""
    values = [oracle[name] for oracle in oracles]
    if len(values) < 2 or row[name] is None or not math.isfinite(row[name]):
        return False
    resolution = statistics.resolution_of(UNITS[name], size)
    low, high = statistics.prediction_interval(values, resolution=resolution)
    return bool(low <= row[name] <= high)


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table as a list a column; what a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The table of `as_columns`, a dict a row, without what is None."""
    each = zip(*columns.values(), strict=True)
    return [{n: v for n, v in zip(columns, row, strict=True) if v is not None} for row in each]
