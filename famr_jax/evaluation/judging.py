"""Verdicts on rows of measures: each model beside doing nothing and the retrained models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from famr_jax import statistics
from famr_jax.evaluation.measures import DISTANCE, MEASURES, Measure

AVERAGE_GAP_OF = ("for_acc", "ret_acc", "test_acc", "svc_attack")


def verdicts(
    rows: Sequence[Mapping[str, Any]], measures: Sequence[Measure] = (*MEASURES, DISTANCE)
) -> list[dict[str, Any]]:
    """A line for each measure and each model: its value beside doing nothing and the oracles.

    Args:
        rows: Rows of an `Evaluator` with `"model": name`, among them those of `references()`.
        measures: The table that titles and units are read from.

    Returns:
        Lines with `measure`, `model`, `value`, `original`, `oracle` (mean), `band` (95 % prediction
        interval of one more oracle, of shares of n examples 1/n wider on both sides), `null` (mean
        gap of an oracle to the others), `gap` and `original_gap` (to the oracles' mean), `oracles`
        (their number), `n` (examples), `unit` and `verdict`. What was not measured is not there.
    """
    oracles = [row for row in rows if row["model"] == "oracle"]
    original = next((row for row in rows if row["model"] == "original"), {})
    others = [row for row in rows if row["model"] not in ("original", "oracle")]
    lines = []
    for measure in measures:
        values = [row[measure.name] for row in oracles if measure.name in row]
        for row in others:
            if measure.name in row:
                line = _judged(measure, row, original, values)
            elif measure.name in row.get("absent", {}):
                line = {"absent": row["absent"][measure.name]}
            else:
                continue
            named = {"measure": measure.name, "title": measure.title or measure.name}
            lines.append(named | {"model": row["model"], "unit": measure.unit} | line)
    return lines


def _judged(measure, row, original, values):
    value, before = row[measure.name], original.get(measure.name)
    size = row.get("n", {}).get(measure.name)
    line = {"value": value, "n": size}
    if before is not None:
        line["original"] = before
    if not values:
        return line
    line |= {"oracle": float(np.mean(values)), "oracles": len(values)}
    line["gap"] = statistics.gap(value, values)
    resolution = statistics.resolution_of(measure.unit, size)
    if len(values) > 1:
        line |= {"band": statistics.prediction_interval(values, resolution=resolution)}
        line["null"] = statistics.null_gap(values)
    if before is not None:
        line["original_gap"] = statistics.gap(before, values)
        line["verdict"] = statistics.verdict(value, before, values, resolution=resolution)
    return line


def average_gap(
    rows: Sequence[Mapping[str, Any]], of: Sequence[str] = AVERAGE_GAP_OF
) -> list[dict[str, Any]]:
    """SalUn's average gap in both its readings, a line for each reading and model.

    The mean over the measures of |value - oracles' mean|, or of |value - oracle| averaged over the
    oracles; its null is the same of each oracle to the others. Measures that a row lacks give none.
    """
    oracles = [
        [row[name] for name in of if name in row] for row in rows if row["model"] == "oracle"
    ]
    if not oracles or any(len(values) < len(of) for values in oracles):
        return []
    oracles, lines = np.array(oracles), []
    readings = {"average_gap": _to_mean, "average_gap_each": _to_each}
    titles = ("Average Gap, to the mean oracle", "Average Gap, to each oracle")
    for (name, function), title in zip(readings.items(), titles, strict=True):
        members = range(len(oracles)) if len(oracles) > 1 else ()
        null = [function(oracles[i], np.delete(oracles, i, axis=0)) for i in members]
        values = {
            row["model"]: function(np.array([row[n] for n in of]), oracles)
            for row in rows
            if row["model"] != "oracle" and all(n in row for n in of)
        }
        for model, value in values.items():
            line = {"measure": name, "title": title, "model": model, "unit": "share"}
            line |= {"value": value, "oracles": len(oracles)}
            if "original" in values:
                line["original"] = values["original"]
            if null:
                line["null"] = float(np.mean(null))
            if model != "original":
                lines.append(line)
    return lines


def _to_mean(values, oracles):
    return float(np.abs(values - oracles.mean(0)).mean())


def _to_each(values, oracles):
    return float(np.abs(values - oracles).mean())
