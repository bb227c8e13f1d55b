"""What is made of steps from the curvature: verdicts beside a grid, headlines and a page."""

from typing import Any

import numpy as np

from experiments.comparison import STEP
from experiments.comparison.judging import as_rows
from experiments.harness.results import Page
from famr_jax.report import Table, Text

PROPOSALS = ("retained", "own")
"""Whose Hessian gives the step: the retained loss's, or the method's own objective's."""
WHOSE = {"retained": "by the retained loss", "own": "by the method's objective"}
KEPT, REACHED = 0.10, 0.05
"""Retained accuracy that a proposal may cost, and Tug of War that it may lose to the grid."""


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each model, forget set and method what both proposals kept and reached."""
    found = []
    for row in rows:
        if row["by"] not in PROPOSALS:
            continue
        case = [r for r in rows if all(r[k] == row[k] for k in ("model", "forget"))]
        before = next(r for r in case if r["method"] == "original")
        best = max(
            (r for r in case if r["method"] == row["method"] and r["by"] == "grid"),
            key=lambda r: r.get("tow", -1.0),
        )
        kept = before["ret_acc"] - row.get("ret_acc", -1.0) <= KEPT
        reached = best["tow"] - row.get("tow", -1.0) <= REACHED
        found.append(row | {"best_lr": best["lr"], "best": best["tow"]})
        found[-1] |= {"kept": kept, "reached": kept and reached}
    return found


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether a proposal keeps the accuracy and reaches the grid, of every method."""
    rows = judged(as_rows(results["rows"]))
    told = " ".join(_told(rows, model, forget) for model, forget in _cases(rows))
    share = max(np.mean([r["reached"] for r in rows if r["by"] == by]) for by in PROPOSALS)
    verdict = "holds" if share == 1 else "mixed" if share >= 0.5 else "fails"
    words = f"digits, {len(flags['methods'])} methods that descend: {told}"
    return [STEP.judge("step", verdict, words)]


def _cases(rows):
    return list(dict.fromkeys((row["model"], row["forget"]) for row in rows))


def _told(rows, model, forget):
    parts = []
    for by in PROPOSALS:
        mine = [r for r in rows if (r["model"], r["forget"], r["by"]) == (model, forget, by)]
        lrs = [r["lr"] for r in mine]
        parts.append(
            f"{WHOSE[by]}, steps of {min(lrs):.1e} to {max(lrs):.1e}, "
            f"{sum(r['kept'] for r in mine)} of {len(mine)} keep the accuracy and "
            f"{sum(r['reached'] for r in mine)} reach the grid"
        )
    return f"{model}, {forget}: {'; '.join(parts)}."


def headline(content: dict[str, Any]) -> list[str]:
    """For each model and forget set how many methods a proposal serves."""
    rows, lines = judged(as_rows(content["results"]["rows"])), []
    for model, forget in _cases(rows):
        told = []
        for by in PROPOSALS:
            mine = [r for r in rows if (r["model"], r["forget"], r["by"]) == (model, forget, by)]
            kept, reached = (sum(r[name] for r in mine) for name in ("kept", "reached"))
            told.append(f"{by} {kept}, {reached} of {len(mine)}")
        lines.append(f"{model:<9} {forget:<11} {'   '.join(told)}")
    return lines


def page(content: dict[str, Any]) -> Page:
    """Every proposal beside the best step of the grid."""
    rows = judged(as_rows(content["results"]["rows"]))
    shown = ("model", "forget", "method", "by", "lr", "ret_acc", "tow", "best_lr", "best")
    table = [{n: _shown(row.get(n)) for n in (*shown, "kept", "reached")} for row in rows]
    words = "Steps of one over the largest eigenvalue, by whose Hessian, beside the grid's best."
    return Page("A step from the curvature", words, [Text(words), Table(table)])


def _shown(value):
    return f"{value:.3g}" if isinstance(value, float) else value
