"""The leaderboard's ranks with their intervals, and verdicts beside the oracles' spread."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.comparison.board_measures import (
    ACCURACIES,
    ATTACKS,
    RANKED,
    SAMPLES,
    UNITS,
    distance,
)
from famr_jax import statistics

Row = Mapping[str, Any]
NOTHING, AGAIN = "doing nothing", "another oracle"
SURE = 1.96
"""Standard errors that U-LiRA's area on shadows may lie from a half."""


def measured(row: Row, names: Sequence[str]) -> list[str]:
    """Those of some measures that a row has, finite or not."""
    return [name for name in names if f"{name}_verdict" in row or name in row]


def ranked(
    rows: Sequence[Row], goals: Mapping[str, float], samples: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each model: its mean rank over all columns, its place, and both their intervals.

    In each column models are ranked by their distance to the oracles, from 1; ties share theirs,
    what is not finite is last, what is not measured has none. The intervals hold 95 % of bootstrap
    samples of the models.

    Args:
        rows: Values and errors by measure, with `model`.
        goals: What retraining gives.
        samples: Of each model, by measure, distances of bootstrap samples; a model without, which
            was recorded elsewhere, is drawn from a normal distribution of its value and error.
    """
    names = [name for name in RANKED if any(name in measured(row, RANKED) for row in rows)]
    points = np.array([_distances(row, names, goals) for row in rows])[None]
    generator = np.random.default_rng(0)
    drawn = [_drawn(row, names, goals, samples.get(row["model"]), generator) for row in rows]
    place, mean, each = _ranks(points)
    places, means, _ = _ranks(np.moveaxis(np.array(drawn), 0, 1))
    found = []
    for i, row in enumerate(rows):
        mine = {name: each[0, i, k] for k, name in enumerate(names)}
        shown = {name: value for name, value in mine.items() if np.isfinite(value)}
        line = {"model": row["model"], "place": place[0, i], "rank": mean[0, i]}
        for name, values in (("place", places), ("rank", means)):
            low, high = np.quantile(values[:, i], [0.025, 0.975])
            line |= {f"{name}_low": low, f"{name}_high": high}
        found.append(line | shown)
    return sorted(found, key=lambda line: line["place"])


def _distances(row, names, goals):
    """Distances in the order of names: NaN is not measured, infinite not finite."""
    found = []
    for name in names:
        value = row.get(name)
        if value is None or not math.isfinite(value):
            found.append(np.inf if name in measured(row, [name]) else np.nan)
        else:
            found.append(distance(name, value, goals.get(name, 0.0)))
    return found


def _drawn(row, names, goals, samples, generator):
    if samples is not None:
        found = {n: np.nan_to_num(samples[n], nan=np.inf) for n in names if n in samples}
        none = np.full(SAMPLES, np.nan)
        return np.stack([found.get(name, none) for name in names], axis=1)
    values = np.array([_distances(row, names, goals)] * SAMPLES)
    errors = [row.get(f"{name}_error") or 0.0 for name in names]
    return np.abs(values + generator.normal(size=values.shape) * errors)


def _ranks(distances):
    """Places and mean ranks `[samples, models]`, ranks `[samples, models, columns]`."""
    columns = []
    for k in range(distances.shape[-1]):
        values = distances[..., k]
        present = ~np.isnan(values[0])
        ranks = np.full(values.shape, np.nan)
        ranks[:, present] = scipy.stats.rankdata(values[:, present], axis=1)
        columns.append(ranks)
    each = np.stack(columns, axis=-1)
    mean = np.nanmean(each, axis=-1)
    return scipy.stats.rankdata(mean, axis=1), mean, each


def judged(
    row: Row,
    before: Row,
    oracles: Mapping[str, np.ndarray],
    null: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    members: int,
) -> dict[str, str]:
    """The verdict of each measure, by `MEASURE_verdict`, as `statistics.verdict` gives it.

    Of measures of one model the mean over models is held against the band of one more oracle, of
    measures of ensembles the value against deals of the oracles to two sides.

    Args:
        row: The model's values and errors.
        before: Those of doing nothing.
        oracles: Measures of each oracle.
        null: What deals give.
        sizes: Examples of each set, for shares.
        members: Oracles.
    """
    found = {}
    for name in (*ACCURACIES, *ATTACKS):
        if name not in row:
            continue
        if name in oracles:
            resolution = statistics.resolution_of(UNITS.get(name, ""), sizes.get(name))
            verdict = statistics.verdict(
                row[name], before[name], oracles[name], resolution=resolution
            )
        else:
            verdict = _ensemble(name, row, before, null, members)
        found[f"{name}_verdict"] = verdict
    return found


def _ensemble(name, row, before, null, members):
    if not (math.isfinite(row[name]) and math.isfinite(before[name])):
        return "not finite"
    if members < statistics.ORACLES_FOR_A_VERDICT:
        return "too few oracles"
    inside = []
    for each in (row, before):
        if name == "u_lira":
            inside.append(abs(each[name] - 0.5) <= SURE * each[f"{name}_error"])
        else:
            inside.append(each[name] <= null[name]["most"])
    if not inside[0]:
        return "outside band"
    return "not resolved" if inside[1] else "inside band"


def outside(row: Row, names: Sequence[str]) -> list[str]:
    """Those of some measures that tell a model from the oracles: outside, or not finite."""
    return [n for n in names if row.get(f"{n}_verdict") in ("outside band", "not finite")]


def within(row: Row, names: Sequence[str]) -> bool:
    """Whether every one of some measures that was taken lies in the oracles' spread."""
    verdicts = [row[f"{n}_verdict"] for n in names if f"{n}_verdict" in row]
    return all(verdict in ("inside band", "not resolved") for verdict in verdicts)
