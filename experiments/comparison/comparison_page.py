"""What is made of the comparison's numbers: verdicts, headlines and a page."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.comparison import COMPARISON
from experiments.comparison.judging import TITLES, UNITS
from experiments.comparison.ranking import (
    BY,
    RANKED_BY,
    agreement,
    always_inside,
    front,
    in_order,
    mean_of,
    names_of,
    oracles_of,
    ranked,
    ranks,
    rows_of,
    telling,
    told_of,
)
from experiments.harness.results import Page, setting
from famr_jax import report
from famr_jax.report import Column, Grid, Section, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT, spread

AGREE = 0.8
"""Rank correlation from which on originals agree on an order."""
LOSS = 0.01
"""Tug of War that choosing without an oracle may cost."""
SEES = {"forget": "forget set", "retain": "retained data", "store": "forget set, curvature store"}
COLOURS = {"forget": "vermillion", "retain": "blue", "store": "green"}
CHOSEN = {"by_oracle": "chosen by an oracle", "alone": "chosen without an oracle"}


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Who is inside everywhere, whether originals agree, what an oracle and what data are worth."""
    cells, enough = results["cells"], flags["oracles"] >= ORACLES_FOR_A_VERDICT
    enough = enough and flags["originals"] >= 3
    given = (_inside(cells), _order(cells), _alone(cells), _data(cells))
    about = f"{setting(results)}, {flags['originals']} originals, {flags['oracles']} oracles: "
    return [
        COMPARISON.judge(name, verdict if enough else "not resolved", about + words)
        for name, verdict, words in given
    ]


def _verdict(good: list[bool]) -> str:
    return "holds" if all(good) else "mixed" if any(good) else "fails"


def _inside(cells):
    told, good = [], []
    for cell in cells:
        found, count, tells = always_inside(cell), len(names_of(cell)), len(telling(cell))
        if tells:  # else the bands are too wide to tell anything
            good.append(bool(found))
        listed = f" ({', '.join(found)})" if found else ""
        told.append(
            f"{cell['forget']} {len(found)} of {count} methods{listed}, where doing nothing is "
            f"outside in {tells} of {len(cell['measures'])} measures, and "
            f"{_oracles_inside(cell)} oracles inside the band of the others on all of them"
        )
    words = f"inside on every measure and original: {'; '.join(told)}."
    return "inside", _verdict(good) if good else "not resolved", words


def _oracles_inside(cell):
    rows = oracles_of(cell)
    return f"{sum(row['outside'] == 0 for row in rows)} of {len(rows)}"


def _order(cells):
    told, good = [], []
    for cell in cells:
        found = {name: agreement(cell, name) for name in ("tow", "kl_forget")}
        good.append(all(value is not None and value >= AGREE for value in found.values()))
        words = " and ".join("–" if v is None else f"{v:.2f}" for v in found.values())
        told.append(f"{cell['forget']} {words}")
    return "order", _verdict(good), (
        f"rank correlation between originals, by Tug of War and by KL on the forget set: "
        f"{'; '.join(told)}."
    )  # fmt: skip


def _alone(cells):
    told, good = [], []
    for cell in cells:
        pairs = [[mean_of(rows_of(cell, m, by), "tow") for by in BY] for m in names_of(cell)]
        lost = [a - b for a, b in pairs if None not in (a, b)]
        if not lost:
            told.append(f"{cell['forget']} no method that stayed finite")
            continue
        good.append(np.mean(lost) <= LOSS)
        told.append(
            f"{cell['forget']} {np.mean(lost):.4f} in the mean over {len(lost)} methods, at most "
            f"{np.max(lost):.3f}"
        )
    verdict = _verdict(good) if good else "not resolved"
    return "alone", verdict, f"Tug of War lost without an oracle: {'; '.join(told)}."


def _data(cells):
    told, good = [], []
    for cell in cells:
        best = {sees: ranked(cell, "kl_forget", sees) for sees in SEES}
        best["without"] = [m for m in ranked(cell, "kl_forget") if m not in best["retain"]]
        pair = [best[sees][:1] for sees in ("retain", "without")]
        if not all(pair) or "kl_forget" not in telling(cell):
            told.append(f"{cell['forget']} not resolved, doing nothing is in the band")
            continue
        names = [names[0] for names in pair]
        rows = [[row.get("kl_forget") for row in rows_of(cell, m, "by_oracle")] for m in names]
        if any(None in each for each in rows):
            told.append(f"{cell['forget']} not resolved, the best did not stay finite")
            continue
        good.append(max(rows[0]) < min(rows[1]))
        told.append(
            f"{cell['forget']} {names[0]} {np.mean(rows[0]):.3f} ({_range(rows[0])}), without "
            f"{names[1]} {np.mean(rows[1]):.3f} ({_range(rows[1])}), another oracle "
            f"{_number(mean_of(oracles_of(cell), 'kl_forget'))}"
        )
    verdict = _verdict(good) if good else "not resolved"
    words = f"KL to the oracles on the forget set, of the best: {'; '.join(told)}."
    return (
        "data",
        verdict,
        f"{words} Below another oracle's lie flat predictions, which is no merit.",
    )


def _range(values):
    return f"{min(values):.3f} to {max(values):.3f}"


def headline(content: dict[str, Any]) -> list[str]:
    """The best by Tug of War of every forget set and kind of method, beside doing nothing."""
    lines = []
    for cell in content["results"]["cells"]:
        ends = [rows_of(cell, "original"), oracles_of(cell)]
        nothing, null = (_number(mean_of(rows, "tow")) for rows in ends)
        lines.append(f"{cell['forget']:<11} doing nothing {nothing}, another oracle {null}")
        for sees in SEES:
            best = ranked(cell, "tow", sees)[:3]
            told = [f"{m} {_number(mean_of(rows_of(cell, m, 'by_oracle'), 'tow'))}" for m in best]
            if told:
                lines.append(f"{'':<11} {sees:<7} {', '.join(told)}")
    return lines


def _number(value):
    return "–" if value is None else f"{value:.3f}"


def page(content: dict[str, Any]) -> Page:
    """Ranks, and for each forget set both fronts and all measures of what was chosen."""
    results, flags = content["results"], content["config"]["flags"]
    lead = (
        f"{setting(results)}: {flags['originals']} originals unlearned by each method, eight "
        f"trials each, of at most {results['budget']:.0%} of a retraining, but for removals from "
        "a store."
    )
    sections = [_ranks(results["cells"])]
    for cell in results["cells"]:
        left = ", ".join(cell["left_out"])
        words = (
            f"{cell['num_forget']} images are forgotten, {cell['num_retain']} retained; trials "
            f"are chosen on {cell['num_validation']} test images, models measured on the other "
            f"{cell['num_test']}. {f'Left out for their cost: {left}. ' if left else ''}"
            "Means over the originals; of Tug of War with its 95 % interval."
        )
        fronts = Grid([_front(cell, "for_acc", "ret_acc"), _front(cell, "kl_forget", "kl_retain")])
        chosen = [Section(f"{cell['forget']}, {CHOSEN[by]}", _tables(cell, by)) for by in BY]
        sections.append(Section(cell["forget"], [Text(words), fronts, *chosen]))
    return Page("All methods at one budget", lead, sections)


def _ranks(cells):
    found = {(c["forget"], n): ranks(c, n) for c in cells for n in RANKED_BY}
    rows = []
    for model, mean in in_order(cells).items():
        sees = next(told_of(c, model)["sees"] for c in cells if model in names_of(c))
        row = {"model": model, "sees": SEES[sees], "all": f"{mean:.1f}"}
        each = {f"{at} {n}": _rank(f[model]) for (at, n), f in found.items() if model in f}
        rows.append(row | each)
    columns = {"model": "method", "sees": "sees", "all": "mean rank"}
    titles = {"tow": "Tug of War", "outside": "measures outside", "kl_forget": "KL forget"}
    columns |= {f"{spec} {name}": f"{spec}, {titles[name]}" for spec, name in found}
    words = (
        "Mean rank over the originals, chosen by an oracle, with the lowest and the highest of "
        "them. First is the mean over Tug of War and the measures outside: KL alone is lowered by "
        "flat predictions, to below that of another oracle."
    )
    return Section("Ranks", [Text(words), Table(rows, columns)])


def _rank(values):
    return f"{np.mean(values):.1f} ({min(values):.0f} to {max(values):.0f})"


def _front(cell, across, up):
    points = front(cell, across, up)
    before = {name: mean_of(rows_of(cell, "original"), name) for name in (across, up)}
    share = UNITS[across] == "share"
    if not share:  # models that broke would be all that is seen
        null = {name: mean_of(oracles_of(cell), name) for name in (across, up)}
        most = {name: 1.1 * max(before[name], 3 * null[name]) for name in (across, up)}
        points = [p for p in points if all(p[name] <= most[name] for name in most)]
    best = sorted((p for p in points if p["front"]), key=lambda p: p[across])
    ticks = MaxNLocator(5).tick_values(0, max((p[across] for p in points), default=1))
    what = "Accuracy, distance to the oracles" if share else "KL from the oracles"
    drawing = report.lines(
        [p | {"line": ""} for p in best], across, up, "line",
        title=f"{what}, {cell['forget']}",
        unit="share" if share else "nats",
        words="retained set",
        x_unit="share" if share else "nats",
        x_words="forget set",
        x_ticks=[(at, report.number(at, "share") if share else f"{at:.3g}") for at in ticks],
        marks=[report.Mark(p[across], p[up], colour=COLOURS[p["sees"]]) for p in points],
        colours="grey",
        caption=f"The front, from the left: {', '.join(p['model'] for p in best)}. "
        f"{len(points)} of {len(names_of(cell))} methods are shown.",
    )  # fmt: skip
    return replace(drawing, key={SEES[sees]: colour for sees, colour in COLOURS.items()})


def _tables(cell, by):
    rows = [_row("doing nothing", rows_of(cell, "original")), _row("oracles", oracles_of(cell))]
    for model in ranked(cell, "tow"):
        mine, told = rows_of(cell, model, by), told_of(cell, model)
        row = _row(model, mine) | {"sees": SEES[told["sees"]], "settings": _settings(told, mine)}
        row["examples"] = float(np.mean([told["share"][each["trial"]] for each in mine]))
        row["seconds"] = float(np.mean([each["seconds"] / each["training"] for each in mine]))
        row["tuning"] = float(np.mean([each["tuning"] / each["training"] for each in mine]))
        rows.append(row)
    first = {"model": "method", "sees": "sees"}
    shares = [n for n in UNITS if UNITS[n] == "share" and n in cell["oracles"]]
    first |= {n: Column(TITLES[n], "share") for n in shares}
    first |= {"average_gap": Column("Avg Gap", "share"), "tow": Column("Tug of War", "")}
    first |= {"interval": "interval", "outside": "measures outside"}
    second = {"model": "method"}
    second |= {name: Column(TITLES[name], UNITS[name]) for name in UNITS if "acc" not in name}
    del second["svc_attack"]
    third = {"model": "method", "settings": "chosen, one an original"}
    third |= {"examples": Column("examples", "share"), "seconds": Column("seconds", "share")}
    third |= {"tuning": Column("eight trials, seconds", "share")}
    tables = (
        [Table(rows, first), Table(rows, second)] if by == "by_oracle" else [Table(rows, first)]
    )
    note = "Examples and seconds in per cent of one retraining, timed beside; compiling is apart."
    return [*tables, Table(rows[2:], third, caption=note)]


def _row(model: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    row = {"model": model} | {
        n: mean_of(rows, n) for n in (*UNITS, "average_gap", "tow", "outside")
    }
    values = [each.get("tow") for each in rows]
    if len(values) > 1 and None not in values:
        low, high = spread(values)["interval"]
        row["interval"] = f"{low:.3f} to {high:.3f}"
    if row["outside"] is not None:
        row["outside"] = f"{row['outside']:.1f}"
    return {name: value for name, value in row.items() if value is not None}


def _settings(told, rows):
    """The chosen numbers of each original; the grid's combinations are the trials in order."""
    values = list(told["grid"].values())
    sizes = [len(each) for each in values]
    words = []
    for row in rows:
        places = np.unravel_index(row["trial"], sizes)
        pairs = zip(told["grid"], values, places, strict=True)
        words.append(" ".join(f"{name} {report.setting(each[i])}" for name, each, i in pairs))
    return "; ".join(dict.fromkeys(words))
