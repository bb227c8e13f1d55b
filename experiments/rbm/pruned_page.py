"""The page of pruned_unlearning: gaps over the share that is cut, tables, and its headline."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.harness.results import Page
from famr_jax import report
from famr_jax.report import Column, Grid, Section, Table, Text
from famr_jax.statistics import prediction_interval

TITLES = {
    "kl_forget": "KL from the oracles, forget set",
    "kl_test": "KL from the oracles, test set",
    "average_gap": "Average Gap of accuracies",
    "for_acc": "Accuracy on the forget set",
    "test_acc": "Accuracy on the test set",
}


def cell_of(results: Mapping[str, Any], spec: str, sparsity: float) -> dict[str, Any]:
    """What was measured of a forget set at a sparsity."""
    return next(c for c in results["cells"] if (c["forget"], c["sparsity"]) == (spec, sparsity))


def means_of(cell: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The mean of every number over the seeds, by model, the oracles among them."""
    found = {"oracles": cell["oracles"]}
    for row in cell["rows"]:
        found.setdefault(row["model"], []).append(row)
    return {
        name: {n: float(np.mean([r[n] for r in rows])) for n in TITLES if n in rows[0]}
        for name, rows in found.items()
    }


def page(content: dict[str, Any]) -> Page:
    """The page of the JSON: for each forget set charts over the sparsity, and a table."""
    results, sections = content["results"], []
    for spec in dict.fromkeys(cell["forget"] for cell in results["cells"]):
        cells = [cell for cell in results["cells"] if cell["forget"] == spec]
        long = [
            {"cut": cell["sparsity"], "model": name} | numbers
            for cell in cells
            for name, numbers in means_of(cell).items()
        ]
        charts = [
            report.lines(
                [row for row in long if name in row],
                "cut",
                name,
                "model",
                title=title,
                unit="nats" if name.startswith("kl") else "share",
                x_words="share of the weights that is cut",
            )
            for name, title in TITLES.items()
        ]
        columns = {"cut": "cut", "model": "model", "lr": "step"}
        columns |= {
            n: Column(t, None if n.startswith("kl") else "share") for n, t in TITLES.items()
        }
        columns |= {"inside": "For-Acc in the band"}
        rows = [row for cell in cells for row in _rows(cell)]
        note = (
            f"{cells[0]['num_forget']} images are forgotten, {cells[0]['num_test']} are for "
            f"testing. Means over the originals; oracles: {len(cells[0]['oracles'])}, each against "
            "the others, which is the null. Band: 95 % prediction interval of one more oracle."
        )
        sections.append(Section(spec, [Text(note), Grid(charts), Table(rows, columns)]))
    return Page(
        "Cut first, then unlearn",
        "Networks whose smallest weights are cut, unlearned, against retrained networks that are "
        "as sparse.",
        sections,
    )


def _rows(cell):
    accuracies = [row["for_acc"] for row in cell["oracles"]]
    low, high = prediction_interval(accuracies)
    rows = []
    for name, numbers in means_of(cell).items():
        row = {"cut": cell["sparsity"], "model": name} | numbers
        of = [each for each in cell["rows"] if each["model"] == name]
        if name == "oracles":
            row["inside"] = f"{100 * low:.1f} to {100 * high:.1f} %"
            row["average_gap"] = cell["average_gap_null"]
        else:
            row["inside"] = f"{sum(low <= each['for_acc'] <= high for each in of)} of {len(of)}"
            row |= {"lr": of[0]["lr"]} if "lr" in of[0] else {}
        rows.append(row)
    return rows


def headline(content: dict[str, Any]) -> list[str]:
    """A line a forget set, method and sparsity."""
    lines = []
    for cell in content["results"]["cells"]:
        means = means_of(cell)
        for name, numbers in means.items():
            if name in ("original", "oracles"):
                continue
            words = f"{cell['forget']:<10}  {name:<15}  cut {cell['sparsity']:<4g}"
            for measure in ("kl_forget", "kl_test"):
                of = (numbers, means["original"], means["oracles"])
                words += "  " + " ".join(f"{each[measure]:6.3f}" for each in of)
            lines.append(words)
    return lines
