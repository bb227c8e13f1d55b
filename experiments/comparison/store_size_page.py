"""What is made of stores of several sizes: verdicts, headlines and a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.comparison import FORGET_DATA
from experiments.comparison.judging import as_rows
from experiments.harness.results import Page, setting
from famr_jax import report, statistics
from famr_jax.report import Column, Drawing, Grid, Key, Section, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

MEASURED = {
    "kl_forget": Column("KL to oracle, forget", "nats"),
    "ret_acc": Column("Ret-Acc, %", "share"),
    "test_acc": Column("Test-Acc, %", "share"),
    "mislabelled": Column("wrong labels kept, %", "share"),
}
"""What is measured of every model, on the forget set, what is retained and test images."""


def closed(cell: Mapping[str, Any]) -> dict[int, list[float]] | None:
    """By rank, how much of the way to another oracle each original's step closes, in KL.

    None unless every original is farther from the oracles than they are from one another.
    """
    floor = cell["oracles"]["kl_forget"]
    before = cell["before"]["kl_forget"]
    if min(before) <= floor["band"][1]:
        return None
    found: dict[int, list[float]] = {}
    for row in as_rows(cell["rows"]):
        start = before[row["original"]]
        share = (start - row["kl_forget"]) / (start - floor["mean"])
        found.setdefault(row["rank"], []).append(share)
    return found


def grows(cell: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the largest store closes more than the smallest, over the originals; None as above."""
    shares = closed(cell)
    if shares is None:
        return None
    first, *_, last = shares.values()
    return statistics.spread(np.subtract(last, first))


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the largest store closes more than the smallest, on every set that has a gap."""
    del flags
    found = [(cell, more) for cell in results["cells"] if (more := grows(cell))]
    if not found:
        return []
    signs = [statistics.sign(more) for _, more in found]
    verdict = "mixed"
    if len(set(signs)) == 1:
        verdict = {1: "holds", 0: "not resolved", -1: "fails"}[signs[0]]
    least = len(results["cells"][0]["oracles"]["kl_forget"]["values"])
    if least < ORACLES_FOR_A_VERDICT:
        verdict = "not resolved"
    words = f"{setting(results)}, {results['size']} images, {results['wrong']} with a wrong label, "
    words += f"{len(results['products'])} originals, {least} oracles: "
    return [
        FORGET_DATA.judge("directions", verdict, words + "; ".join(_told(*each) for each in found))
    ]


def _told(cell, more):
    shares, most = closed(cell), max(cell["rows"]["rank"])
    told = ", ".join(f"{np.mean(each):.0%} of {rank}" for rank, each in shares.items())
    low, high = more["interval"] or (np.nan, np.nan)
    last = _mean(cell, most)
    return (
        f"{cell['forget']} closes {told} directions (the most less the fewest {low:+.0%} to "
        f"{high:+.0%}; {last['above']:.0f} above the damping)"
    )


def _mean(cell, rank):
    rows = [row for row in as_rows(cell["rows"]) if row["rank"] == rank]
    return {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("damping", "above", "outside", "divergence", *MEASURED)
        if name in rows[0]
    }


def headline(content: dict[str, Any]) -> list[str]:
    """For each forget set and size what was closed and what it cost."""
    lines = []
    for cell in content["results"]["cells"]:
        shares = closed(cell)
        before = {name: np.mean(values) for name, values in cell["before"].items()}
        for rank in dict.fromkeys(cell["rows"]["rank"]):
            mean = _mean(cell, rank)
            words = "no gap" if shares is None else f"{np.mean(shares[rank]):4.0%} closed"
            words += f" Ret-Acc {mean['ret_acc'] - before['ret_acc']:+.3f}"
            words += f" Test-Acc {mean['test_acc'] - before['test_acc']:+.3f}"
            if "mislabelled" in mean:
                words += f" wrong {mean['mislabelled'] - before['mislabelled']:+.2f}"
            words += f" outside {mean['outside']:.2f} d {mean['damping']:.1e}"
            lines.append(f"{cell['forget']:<11} {rank:>4} {words}")
    return lines


def page(content: dict[str, Any]) -> Page:
    """For each forget set the gap by the number of directions, and every step."""
    results = content["results"]
    products = results["products"]
    lead = (
        f"{setting(results)}, {results['size']} training images, {results['wrong']} with a wrong "
        f"label. One step inside a store's leading directions, with the forget data alone, from "
        f"{len(products)} originals; a store took {max(products)} products."
    )
    return Page("Directions of a store", lead, [_section(cell) for cell in results["cells"]])


def _section(cell):
    floor, shares = cell["oracles"]["kl_forget"], closed(cell)
    told = f"{cell['num_forget']} images are forgotten, {cell['num_wrong']} with a wrong label. "
    told += f"Oracles: {len(floor['values'])}. "
    if shares is not None:
        told += " ".join(
            f"With {rank} directions {np.mean(each):.0%} of the gap is closed."
            for rank, each in shares.items()
        )
    else:
        told += "Some original is inside the oracles' band in KL as it is: no gap is told of."
    charts = [_chart(cell, name) for name in MEASURED if name in cell["before"]]
    key = Key(
        {
            "the step, a line for each original": "vermillion",
            "doing nothing": "grey",
            "oracles, mean and 95 % band": "blue",
        }
    )
    return Section(
        f"Forgetting {cell['forget']}", [Text(told), key, Grid(charts, width=345), _table(cell)]
    )


def _chart(cell, name) -> Drawing:
    column, oracles = MEASURED[name], cell["oracles"][name]
    return report.lines(
        as_rows(cell["rows"]),
        "rank",
        name,
        "original",
        title=column.title.removesuffix(", %"),
        unit=column.unit,
        x_words="directions",
        log_x=True,
        x_ticks=[(rank, str(rank)) for rank in dict.fromkeys(cell["rows"]["rank"])],
        band=oracles["band"],
        levels=[
            (oracles["mean"], "", "blue"),
            (float(np.mean(cell["before"][name])), "", "grey"),
        ],
        colours="vermillion",
        label=None,
        width=345,
        height=250,
    )


def _table(cell):
    names = ("rank", "original", "damping", "above", "outside", "divergence", *MEASURED)
    rows = [{"model": "doing nothing", "original": i} | row
            for i, row in enumerate(as_rows(cell["before"]))]  # fmt: skip
    rows += [{"model": "step"} | row for row in as_rows(cell["rows"])]
    mean = {name: found["mean"] for name, found in cell["oracles"].items()}
    null = {name: found["null"] for name, found in cell["oracles"].items()}
    rows += [{"model": "oracles, mean"} | mean, {"model": "oracles, null"} | null]
    columns = {
        "model": Column("model"),
        "rank": Column("directions"),
        "original": Column("original"),
        "damping": Column("damping d"),
        "above": Column("eigenvalues above d"),
        "outside": Column("gradient outside, %", "share"),
        "divergence": Column("KL moved to linear", "nats"),
        **MEASURED,
    }
    shown = [{name: row.get(name) for name in ("model", *names)} for row in rows]
    return Table(shown, columns=columns)
