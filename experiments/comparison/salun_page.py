"""What is made of SalUn's table: a verdict, headlines and a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison import SALUN
from experiments.harness.results import Page, measured, setting
from famr_jax import report, statistics
from famr_jax.report import Column, Section, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

NOTHING, OURS = "nothing", "SalUn"
COLUMNS = {"ua": "UA", "ra": "RA", "ta": "TA", "mia": "MIA"}
LEAST_ORIGINALS = 3
"""Originals, all of which a verdict needs to agree."""
REPORTED = {
    "random:0.1": {
        "model": "SalUn on CIFAR-10, reported",
        **{"UA": "3.09", "RA": "99.86", "TA": "94.1", "MIA": "16.36"},
        "outside the band": "ResNet-18 at full width, the public code at a step of 6e-3: what a "
        "user found, issue 7 of OPTML-Group/Unlearn-Saliency",
    }
}
"""What could be read of the source's own setting; its table could not."""


def models(cell: Mapping[str, Any]) -> list[str]:
    """Doing nothing and the methods, in order."""
    return list(dict.fromkeys(row["model"] for row in cell["rows"]))


def values(cell: Mapping[str, Any], model: str, name: str) -> np.ndarray:
    """A number of a model by its seeds."""
    return np.array([measured(row[name]) for row in cell["rows"] if row["model"] == model])


def outside(cell: Mapping[str, Any], model: str) -> list[str]:
    """The columns in which a model's mean over its seeds is not in the oracles' band."""
    found = []
    for name, title in COLUMNS.items():
        among = [row[name] for row in cell["oracles"]]
        resolution = statistics.resolution_of("share", cell["n"][name])
        low, high = statistics.prediction_interval(among, resolution=resolution)
        if not low <= values(cell, model, name).mean() <= high:
            found.append(title)
    return found


def beaten(cell: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The methods whose gap is larger than SalUn's on every original, and those of smaller ones."""
    ours = values(cell, OURS, "average_gap")
    gaps = {n: values(cell, n, "average_gap") for n in models(cell) if n not in (NOTHING, OURS)}
    larger = [name for name, gap in gaps.items() if np.all(gap > ours)]
    return larger, [name for name, gap in gaps.items() if np.all(gap < ours)]


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether SalUn's average gap is the smallest of its table, on every forget set."""
    del flags
    cells = [cell for cell in results["cells"] if {OURS, NOTHING} < set(models(cell))]
    if not cells:
        return []
    told, found = [], []
    for cell in cells:
        larger, smaller = beaten(cell)
        others = len(models(cell)) - 2
        found.append(1 if len(larger) == others else -1 if smaller else 0)
        gaps = ", ".join(f"{name} {_points(cell, name)}" for name in models(cell))
        null = "" if cell["null"] is None else f", a retrained model {100 * cell['null']:.1f}"
        which = f" ({', '.join(smaller)})" if smaller else ""
        told.append(
            f"{cell['forget']}: {gaps}{null}; SalUn's is smaller than {len(larger)} of {others} "
            f"others on every original and larger than {len(smaller)}{which}"
        )
    count, seeds = len(cells[0]["oracles"]), len(values(cells[0], OURS, "average_gap"))
    verdict = "holds" if min(found) > 0 else "fails" if max(found) < 0 else "mixed"
    few = count < ORACLES_FOR_A_VERDICT or seeds < LEAST_ORIGINALS
    verdict = "not resolved" if few or not any(found) else verdict
    words = f"{setting(results)}, {count} oracles, {seeds} originals; average gap in points. "
    return [SALUN.judge("smallest", verdict, words + "; ".join(told) + ".")]


def _points(cell, name):
    return f"{100 * values(cell, name, 'average_gap').mean():.1f}"


def headline(content: dict[str, Any]) -> list[str]:
    """For each forget set a line for retraining, doing nothing and each method."""
    lines = []
    for cell in content["results"]["cells"]:
        lines.append(f"{cell['forget']:<12}   UA    RA    TA   MIA   gap  outside the band")
        for row in table(cell):
            numbers = "".join(f"{row[name]:6.1f}" for name in (*COLUMNS, "average_gap"))
            lines.append(f"  {row['model']:<10}{numbers}  {row['outside']}".rstrip())
    return lines


def table(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for retraining and each model, means in per cent and points."""
    mean = {name: 100 * float(np.mean([o[name] for o in cell["oracles"]])) for name in COLUMNS}
    null = np.nan if cell["null"] is None else 100 * cell["null"]
    rows = [{"model": "Retrain", **mean, "average_gap": null, "outside": ""}]
    for model in models(cell):
        of = {n: 100 * float(values(cell, model, n).mean()) for n in (*COLUMNS, "average_gap")}
        told = ", ".join(outside(cell, model)) if len(cell["oracles"]) > 1 else ""
        rows.append({"model": model, **of, "outside": told or "none"})
    return rows


def page(content: dict[str, Any]) -> Page:
    """SalUn's table for each forget set, and the settings."""
    results = content["results"]
    lead = (
        f"{setting(results)}: unlearning accuracy UA (1 less that on the forget set), accuracies "
        f"on retained (RA) and test images (TA), and the share that an attack on confidence calls "
        f"non-member (MIA), beside {len(results['cells'][0]['oracles'])} retrained models."
    )
    sections = [_section(cell) for cell in results["cells"]]
    used = [{"model": n, **each} for n, each in results["settings"].items()]
    words = "Steps of SGD and epochs of the public codes for a tenth of CIFAR-10."
    return Page(
        "SalUn's protocol", lead, [*sections, Section("Settings", [Text(words), Table(used)])]
    )


def _section(cell: Mapping[str, Any]) -> Section:
    rows = [_spreads("Retrain", cell["oracles"], cell["null"], cell["retraining"], "", "")]
    for model in models(cell):
        mine: Sequence[Mapping[str, Any]] = [r for r in cell["rows"] if r["model"] == model]
        gap, seconds = (
            float(np.mean([row[name] for row in mine])) if name in mine[0] else None
            for name in ("average_gap", "seconds")
        )
        told = ", ".join(outside(cell, model)) if len(cell["oracles"]) > 1 else ""
        rows.append(_spreads(model, mine, gap, seconds, mine[0].get("scale", ""), told or "none"))
    columns = {name: Column(unit="") for name in rows[0]}
    rows += [REPORTED[cell["forget"]]] if cell["forget"] in REPORTED else []
    words = (
        f"{cell['num_forget']} images are forgotten. In per cent: mean and standard deviation, of "
        "retrained models over seeds, of methods over originals. Average Gap in points; that of a "
        "retrained model is to the others. The step is a multiple of the published one."
    )
    return Section(cell["forget"], [Text(words), Table(rows, columns)])


def _spreads(model, rows, gap, seconds, scale, told):
    def spread(name):
        each = [100 * row[name] for row in rows]
        sd = float(np.std(each, ddof=1)) if len(each) > 1 else None
        return report.spread(float(np.mean(each)), sd)

    return {
        "model": model,
        **{title: spread(name) for name, title in COLUMNS.items()},
        "Avg Gap": None if gap is None else 100 * gap,
        "seconds": seconds,
        "step": scale,
        "outside the band": told,
    }
