"""Methods of a cell in order: means over originals, ranks, and how far originals agree on them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.comparison.judging import UNITS, as_rows, inside
from famr_jax import statistics

BY = ("by_oracle", "alone")
"""How a trial was chosen: against the oracle that is kept out, or without one."""
RANKED_BY = {"tow": -1, "outside": 1, "kl_forget": 1}
"""What methods are ranked by, and whether small (1) or large (-1) is first."""
ORDER = ("tow", "outside")
"""Ranks that the mean rank is of; flat predictions lower KL to below that of another oracle."""


def rows_of(cell: Mapping[str, Any], model: str, by: str | None = None) -> list[dict[str, Any]]:
    """The chosen rows of a method, one an original; of `original`, doing nothing."""
    return [r for r in as_rows(cell["rows"]) if r["model"] == model and by in (None, r.get("by"))]


def mean_of(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a column, None where a row lacks it: not measured, or not finite."""
    values = [row.get(name) for row in rows]
    return None if None in values or not values else float(np.mean(values))


def names_of(cell: Mapping[str, Any], sees: str | None = None) -> list[str]:
    """The methods of a cell, all or those that see the forget set alone, retained data, a store."""
    return [each["model"] for each in cell["methods"] if sees in (None, each["sees"])]


def told_of(cell: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What was tried of a method: what it sees, its grid, and the cost of each trial."""
    return next(each for each in cell["methods"] if each["model"] == model)


def oracles_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the oracles, each beside the others."""
    return as_rows(cell["oracles"])


def ranks(cell: Mapping[str, Any], name: str, by: str = "by_oracle") -> dict[str, list[float]]:
    """Each method's rank on every original, from 1; ties share theirs, what broke is last."""
    models = names_of(cell)
    each = [[row.get(name) for row in rows_of(cell, model, by)] for model in models]
    values = np.array([[np.nan if v is None else v for v in row] for row in each], float)
    values = np.nan_to_num(RANKED_BY[name] * values, nan=np.inf)
    found = scipy.stats.rankdata(values, axis=0)
    return {model: row.tolist() for model, row in zip(models, found, strict=True)}


def in_order(cells: Sequence[Mapping[str, Any]], sees: str | None = None) -> dict[str, float]:
    """Methods of all cells with their mean rank, the first first."""
    found: dict[str, list[float]] = {}
    for cell, name in itertools.product(cells, ORDER):
        for model, each in ranks(cell, name).items():
            found.setdefault(model, []).append(float(np.mean(each)))
    kept = {name for cell in cells for name in names_of(cell, sees)}
    means = {model: float(np.mean(each)) for model, each in found.items() if model in kept}
    return dict(sorted(means.items(), key=lambda pair: pair[1]))


def agreement(cell: Mapping[str, Any], name: str) -> float | None:
    """Mean rank correlation (Spearman) of the orders that pairs of originals give."""
    columns = np.array(list(ranks(cell, name).values())).T
    if any(np.ptp(column) == 0 for column in columns):  # all broke alike: there is no order
        return None
    pairs = [scipy.stats.spearmanr(a, b)[0] for a, b in itertools.combinations(columns, 2)]
    return float(np.mean(pairs)) if pairs and np.isfinite(pairs).all() else None


def ranked(cell: Mapping[str, Any], name: str, sees: str | None = None) -> list[str]:
    """Methods by their mean rank."""
    found = ranks(cell, name)
    return sorted(names_of(cell, sees), key=lambda model: np.mean(found[model]))


def always_inside(cell: Mapping[str, Any], by: str = "by_oracle") -> list[str]:
    """Methods that no measure of any original tells from one more oracle."""
    found = {model: rows_of(cell, model, by) for model in names_of(cell)}
    return [model for model, rows in found.items() if all(row["outside"] == 0 for row in rows)]


def telling(cell: Mapping[str, Any]) -> list[str]:
    """Measures in which doing nothing lies outside the band, of every original."""
    oracles, before = oracles_of(cell), rows_of(cell, "original")
    measured = [name for name in UNITS if name in before[0] and name in oracles[0]]
    return [
        name
        for name in measured
        if not any(inside(name, row, oracles, cell["measures"].get(name)) for row in before)
    ]


def front(cell: Mapping[str, Any], across: str, up: str) -> list[dict[str, Any]]:
    """A point for each method and the Pareto front among them, distances to the oracles' means.

    Accuracies are taken as gaps to the oracles' mean, divergences as they are.
    """
    oracles, points = oracles_of(cell), []
    for model in names_of(cell):
        rows = rows_of(cell, model, "by_oracle")
        place = {name: mean_of(rows, name) for name in (across, up)}
        if None in place.values():
            continue
        for name in (across, up):
            if UNITS[name] == "share":
                goal = mean_of(oracles, name)
                place[name] = float(np.mean([abs(row[name] - goal) for row in rows]))
        points.append({"model": model, "sees": told_of(cell, model)["sees"]} | place)
    best = set(statistics.front([(point[across], point[up]) for point in points]))
    return [point | {"front": i in best} for i, point in enumerate(points)]
