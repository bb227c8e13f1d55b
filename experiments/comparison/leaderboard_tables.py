"""The leaderboard's tables in Markdown: all rows for the docs, the best ones in brief."""

from collections.abc import Mapping
from typing import Any

from experiments.comparison.board_measures import ACCURACIES, ATTACKS, UNITS
from experiments.comparison.board_ranks import AGAIN, NOTHING, outside
from experiments.comparison.comparison_tables import table
from experiments.comparison.judging import as_rows
from experiments.comparison.leaderboard_page import SEES, TITLES, inside, rows_of


def brief(content: Mapping[str, Any], best: int = 5) -> str:
    """The best methods of each forget set by mean rank, beside FAMR, doing nothing and an oracle.

    Of each forget set: the mean rank with its interval, KLoM on the forget set, and how many
    attacks tell the models from the oracles.
    """
    cells = content["results"]["cells"]
    kept = {NOTHING, AGAIN, "famr"}
    orders = [as_rows(cell["ranks"]) for cell in cells]
    for order in orders:
        kept |= {line["model"] for line in order if line["model"] not in kept} & set(
            [line["model"] for line in order if line["model"] not in (NOTHING, AGAIN)][:best]
        )
    names = [line["model"] for line in orders[0] if line["model"] in kept]
    head = ["mean rank, KLoM forget, attacks that tell", *(cell["forget"] for cell in cells)]
    rows = []
    for name in names:
        row = [_name(name)]
        for cell, order in zip(cells, orders, strict=True):
            line = next((each for each in order if each["model"] == name), None)
            mine = rows_of(cell).get(name)
            row.append("–" if line is None else _brief(line, mine))
        rows.append(row)
    return table(head, rows)


def _brief(line, row):
    rank = f"{line['rank']:.1f} ({line['rank_low']:.1f} to {line['rank_high']:.1f})"
    return f"{rank}, {_number('klom_forget', row)}, {len(outside(row, ATTACKS))}"


def full(content: Mapping[str, Any]) -> str:
    """A table for each forget set: a row for each model, in order of its mean rank."""
    parts, results = [], content["results"]
    for cell in results["cells"]:
        rows, order = rows_of(cell), {line["model"]: line for line in as_rows(cell["ranks"])}
        names = [*order, *(name for name in rows if name not in order)]
        measured = [n for n in TITLES if any(n in row for row in rows.values())]
        head = ["model", "mean rank", *(TITLES[name] for name in measured), "attacks outside"]
        head += ["retained data", "examples", "seconds", "N"]
        lines = []
        for name in names:
            row, line = rows[name], order.get(name)
            rank = "–" if line is None else _rank(line)
            shown = [_name(name), rank, *(_number(each, row) for each in measured)]
            shown.append(len(outside(row, ATTACKS)))
            shown.append(SEES.get(row.get("sees"), ""))
            shown += [_share(row.get(each)) for each in ("examples", "seconds")]
            lines.append([*shown, row["members"]])
        told = {each["measure"]: each for each in as_rows(cell["null"])}
        null = [told.get(name) for name in measured]
        shown = ["–" if each is None else f"at most {each['most']:.2f}" for each in null]
        lines.append(["null", "", *shown, "", "", "", "", results["members"]])
        everywhere, only = inside(cell)
        words = (
            f"{cell['num_forget']} images are forgotten. Inside the oracles' spread under every "
            f"attack: {_names(everywhere)}. By accuracy alone: {_names(only)}."
        )
        parts.append(f"### {cell['forget']}\n\n{words}\n\n{table(head, lines)}\n")
    return "\n".join(parts)


def _name(name):
    return name if name in (NOTHING, AGAIN) else f"`{name}`"


def _names(names):
    return ", ".join(map(_name, names)) or "none"


def _rank(line):
    return f"{line['rank']:.1f} ({line['rank_low']:.1f} to {line['rank_high']:.1f})"


def _share(value):
    return "" if value is None else f"{100 * value:.1f} %"


def _number(name, row):
    """A value, bold where it lies outside the oracles' spread."""
    value = row.get(name)
    if value is None:
        return "not finite" if f"{name}_verdict" in row else "–"
    text = f"{100 * value:.1f}" if UNITS.get(name) == "share" else f"{value:.2f}"
    if name not in (*ACCURACIES, *ATTACKS) or not outside(row, [name]):
        return text
    return f"**{text}**"
