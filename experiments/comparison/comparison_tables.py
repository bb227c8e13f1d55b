"""The comparison's tables in Markdown: a row a method for the docs, the best ones for README."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison.judging import TITLES, UNITS
from experiments.comparison.ranking import (
    always_inside,
    in_order,
    mean_of,
    names_of,
    oracles_of,
    ranks,
    rows_of,
    told_of,
)

SEES = {"forget": "forget set", "retain": "retained data", "store": "forget set, store"}
BRIEF = {"forget": 1, "retain": 1}
"""How many methods of each kind the brief table has beside FAMR, the best by mean rank."""
HEAD = ("Tug of War", "KL", "outside")


def row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)])


def brief(content: Mapping[str, Any]) -> str:
    """The table of README: doing nothing, the best methods of each kind, FAMR, another oracle."""
    cells = content["results"]["cells"]
    kept = {n for sees, count in BRIEF.items() for n in list(in_order(cells, sees))[:count]}
    names = [name for name in in_order(cells) if name in kept | {"famr"}]
    head = (", ".join(HEAD), "sees", *(cell["forget"] for cell in cells))
    rows = [("doing nothing", "", *(_brief(rows_of(cell, "original")) for cell in cells))]
    for name in names:
        chosen = (_brief(rows_of(cell, name, "by_oracle")) for cell in cells)
        rows.append((f"`{name}`", _sees(cells, name), *chosen))
    rows.append(("another oracle", "", *(_brief(oracles_of(cell)) for cell in cells)))
    return table(head, rows)


def _brief(rows):
    told = [_number(mean_of(rows, name)) for name in ("tow", "kl_forget")]
    return ", ".join([*told, _number(mean_of(rows, "outside"), 1)]) if rows else "–"


def full(content: Mapping[str, Any]) -> str:
    """The tables of the docs, one a forget set: a row for each method, in order of Tug of War."""
    parts = []
    for cell in content["results"]["cells"]:
        measured = [name for name in UNITS if name in cell["oracles"]]
        accuracies = [name for name in measured if UNITS[name] == "share"]
        head = ["method", "sees", *(TITLES[name] for name in accuracies), "KL forget", "KL test"]
        head += ["TV forget", "Avg Gap", "Tug of War", "without an oracle", "outside", "cost"]
        found = ranks(cell, "tow")
        names = sorted(names_of(cell), key=lambda model: float(np.mean(found[model])))
        ends = {"doing nothing": rows_of(cell, "original"), "oracles": oracles_of(cell)}
        rows = [
            [name, "", *_full(each, accuracies), "", *_last(each, "")]
            for name, each in ends.items()
        ]
        for name in names:
            mine = rows_of(cell, name, "by_oracle")
            alone = _number(mean_of(rows_of(cell, name, "alone"), "tow"))
            spent = told_of(cell, name)["share"]
            cost = _number(float(np.mean([spent[each["trial"]] for each in mine])), 2)
            rows.append(
                [
                    f"`{name}`",
                    _sees([cell], name),
                    *_full(mine, accuracies),
                    alone,
                    *_last(mine, cost),
                ]
            )
        inside = ", ".join(f"`{name}`" for name in always_inside(cell)) or "none"
        words = (
            f"### {cell['forget']}\n\n{cell['num_forget']} images are forgotten. Inside the band "
            f"on all {len(measured)} measures, of every original: {inside}.\n"
        )
        parts.append(f"{words}\n{table(head, rows)}\n")
    return "\n".join(parts)


def _full(rows, accuracies):
    shares = [_percent(mean_of(rows, name)) for name in accuracies]
    numbers = [_number(mean_of(rows, name)) for name in ("kl_forget", "kl_test", "tv_forget")]
    return [
        *shares,
        *numbers,
        _percent(mean_of(rows, "average_gap")),
        _number(mean_of(rows, "tow")),
    ]


def _last(rows, cost):
    return [_number(mean_of(rows, "outside"), 1), cost]


def _sees(cells, name):
    return next(SEES[told_of(cell, name)["sees"]] for cell in cells if name in names_of(cell))


def _percent(value):
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"
