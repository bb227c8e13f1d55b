"""What is made of the leaderboard's numbers: verdicts, headlines and a page."""

from collections.abc import Mapping
from typing import Any

from experiments.comparison import LEADERBOARD
from experiments.comparison.board_measures import ACCURACIES, ATTACKS, KLOM, UNITS
from experiments.comparison.board_ranks import AGAIN, NOTHING, outside, within
from experiments.comparison.judging import as_rows
from experiments.harness.results import Page, setting
from famr_jax import report
from famr_jax.report import Badge, Cell, Column, Section, Table, Text

TITLES = {
    "for_acc": "For-Acc",
    "ret_acc": "Ret-Acc",
    "test_acc": "Test-Acc",
    "for_acc_test": "For-Acc, test",
    "mislabelled": "wrong label kept",
    "klom_forget": "KLoM forget",
    "klom_retain": "KLoM retain",
    "klom_test": "KLoM test",
    "u_lira": "U-LiRA",
    "told_apart": "U-LiRA, models",
    "svc_mia": "SVC-MIA",
    "mia_nn": "MIA-NN",
    "kl_forget": "KL forget",
    "kl_test": "KL test",
    "relearn": "relearning",
    "average_gap": "Avg Gap",
    "tow": "Tug of War",
}
SEES = {"forget": "no", "retain": "yes", "store": "in a store"}
"""Whether a method is given retained data."""
MODELS_FOR_KLOM = 100
"""Models of a kind from which on KLoM is worth a verdict."""
SAID = 5
"""Most methods that a line of the headline names."""


def rows_of(cell: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a cell by model, references first."""
    return {row["model"]: row for row in as_rows(cell["rows"])}


def methods_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of methods that compete: those with a rank."""
    ranked = cell["ranks"]["model"]
    return [r for r in as_rows(cell["rows"]) if r.get("sees") and r["model"] in ranked]


def inside(cell: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Methods that nothing tells from the oracles, and those that attacks alone tell."""
    by_accuracy = [row for row in methods_of(cell) if within(row, ACCURACIES)]
    everywhere = [row["model"] for row in by_accuracy if within(row, ATTACKS)]
    only = [row["model"] for row in by_accuracy if row["model"] not in everywhere]
    return everywhere, only


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Who lies inside the oracles' spread, and whether all beat doing nothing."""
    del flags
    cells, members = results["cells"], results["members"]
    about = f"{setting(results)}, N = {members}: "
    given = (_attacks(cells), _accuracy(cells), _better(cells))
    return [
        LEADERBOARD.judge(
            name, verdict if members >= MODELS_FOR_KLOM else "not resolved", about + words
        )
        for name, verdict, words in given
    ]


def _verdict(good):
    if not good:
        return "not resolved"
    return "holds" if all(good) else "mixed" if any(good) else "fails"


def _attacks(cells):
    told, good = [], []
    for cell in cells:
        found, tells = inside(cell)[0], outside(rows_of(cell)[NOTHING], ATTACKS)
        if tells:
            good.append(bool(found))
        names = f" ({', '.join(found)})" if found else ""
        titles = ", ".join(TITLES[name] for name in tells) or "nothing"
        told.append(
            f"{cell['forget']} {len(found)} of {len(methods_of(cell))} methods{names}; what tells "
            f"doing nothing there: {titles}"
        )
    return "attacks", _verdict(good), f"inside under every attack: {'; '.join(told)}."


def _accuracy(cells):
    told, good = [], []
    for cell in cells:
        everywhere, only = inside(cell)
        good += [True] * len(everywhere) + [False] * len(only)
        names = f" ({', '.join(only)})" if only else ""
        told.append(f"{cell['forget']} {len(only)} of {len(everywhere) + len(only)}{names}")
    words = f"inside by accuracy, and told by an attack: {'; '.join(told)}."
    return "accuracy", _verdict(good), words


def _better(cells):
    told, good = [], []
    for cell in cells:
        ranks = {line["model"]: line["rank"] for line in as_rows(cell["ranks"])}
        competing = {row["model"] for row in methods_of(cell)}
        behind = [m for m in ranks if m in competing and ranks[m] > ranks[NOTHING]]
        good.append(not behind)
        names = f" ({', '.join(behind)})" if behind else ""
        told.append(f"{cell['forget']} {len(behind)} of {len(competing)}{names}")
    return "better", _verdict(good), f"farther than doing nothing: {'; '.join(told)}."


def best_of(content: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The best methods of a recorded board by mean place over its cells, no file's among them."""
    places: dict[str, list[float]] = {}
    for cell in content["results"]["cells"]:
        competing = {row["model"] for row in methods_of(cell)}
        for line in as_rows(cell["ranks"]):
            if line["model"] in competing and "." not in line["model"]:
                places.setdefault(line["model"], []).append(line["place"])
    means = {model: sum(each) / len(each) for model, each in places.items()}
    return tuple(sorted(means, key=lambda model: means[model])[:count])


def headline(content: dict[str, Any]) -> list[str]:
    """A few lines a forget set: null and references, the best four, who is inside."""
    lines, members = [], content["results"]["members"]
    for cell in content["results"]["cells"]:
        rows, order = rows_of(cell), as_rows(cell["ranks"])
        null = next(each for each in as_rows(cell["null"]) if each["measure"] == "klom_forget")
        ends = ", ".join(f"{n} {_three(rows[n].get('klom_forget'))}" for n in (NOTHING, AGAIN))
        span = f"null {_three(null['mean'])}, most {_three(null['most'])}"
        lines.append(f"{cell['forget']}  N = {members}  KLoM forget: {ends}, {span}")
        best = [each for each in order if each["model"] not in (NOTHING, AGAIN)][:4]
        told = ", ".join(f"{each['model']} {each['rank']:.1f}" for each in best)
        at = next(each["place"] for each in order if each["model"] == NOTHING)
        lines.append(f"  best mean ranks: {told}")
        lines.append(f"  doing nothing is at place {at:g} of {len(order)}")
        everywhere, only = inside(cell)
        for where, names in (("under every attack", everywhere), ("by accuracy alone", only)):
            named = f": {', '.join(names)}" if 0 < len(names) <= SAID else ""
            lines.append(f"  inside {where} {len(names)} of {len(methods_of(cell))}{named}")
    return lines


def _three(value):
    return "–" if value is None else f"{value:.2f}"


def page(content: dict[str, Any]) -> Page:
    """For each forget set the ranks, all measures with verdicts, and what each method is."""
    results = content["results"]
    lead = (
        f"{setting(results)}: every method that spends at most {results['budget']:.0%} of a "
        f"retraining, N = {results['members']} models each, beside as many retrained ones."
    )
    return Page("Leaderboard", lead, [section(cell) for cell in results["cells"]])


def section(cell: Mapping[str, Any]) -> Section:
    """A cell's ranks, all its measures with verdicts, and what each method is."""
    rows, order = rows_of(cell), as_rows(cell["ranks"])
    everywhere, only = inside(cell)
    left = ", ".join(f"{each['model']} {each['examples']:.1%}" for each in cell["left_out"])
    words = (
        f"{cell['num_forget']} images are forgotten, {cell['num_retain']} retained. Inside the "
        f"oracles' spread under every attack: {', '.join(everywhere) or 'none'}; by accuracy "
        f"alone: {', '.join(only) or 'none'}. "
        f"{f'Left out, for what they spend: {left}.' if left else ''}"
    )
    names = [line["model"] for line in order]
    shown = [rows[name] for name in [*names, *(name for name in rows if name not in names)]]
    return Section(
        cell["forget"],
        [
            Text(words),
            _drawing(cell, order),
            _ranks(order),
            _measures(cell, shown, (*ACCURACIES, "mislabelled", "average_gap", "tow")),
            _measures(cell, shown, ATTACKS),
            _told(shown),
        ],
    )


def _drawing(cell, order):
    lines = {"rank_low": "2.5 %", "rank": "mean rank", "rank_high": "97.5 %"}
    points = [
        {"at": i + 1, "rank": line[name], "line": words}
        for name, words in lines.items()
        for i, line in enumerate(order)
    ]
    return report.lines(
        points, "at", "rank", "line",
        title=f"Mean ranks, {cell['forget']}",
        words="over all columns",
        x_words="models in order",
        caption="The interval holds 95 % of bootstrap samples of the models. In order: "
        f"{', '.join(line['model'] for line in order)}.",
    )  # fmt: skip


def _ranks(order):
    rows = [
        line
        | {"rank": f"{line['rank']:.1f} ({line['rank_low']:.1f} to {line['rank_high']:.1f})"}
        | {"place": f"{line['place']:g} ({line['place_low']:.0f} to {line['place_high']:.0f})"}
        for line in order
    ]
    columns = {"place": "place", "model": "model", "rank": "mean rank"}
    columns |= {name: title for name, title in TITLES.items() if any(name in r for r in order)}
    note = (
        "Ranks by distance to the oracles, 1 is nearest; in brackets 95 % of bootstrap samples of "
        "the models. Columns that one model lacks are left out of its mean."
    )
    return Table(rows, columns, caption=note)


def _measures(cell, rows, wanted):
    oracles = {each["measure"]: each for each in as_rows(cell["oracles"])}
    null = {each["measure"]: each for each in as_rows(cell["null"])}
    names = [n for n in wanted if any(n in row or f"{n}_verdict" in row for row in rows)]
    head: dict[str, Any] = {"model": "band, or null"}
    for name in names:
        unit = UNITS.get(name, "")
        if name in oracles:
            ends = [oracles[name][end] for end in ("low", "high")]
            head[name] = Cell(report.interval(ends, unit))
        elif name in null:
            head[name] = Cell(f"{null[name]['mean']:.2f}, at most {null[name]['most']:.2f}")
    told = [head]
    for row in rows:
        shown = {"model": row["model"], "members": row["members"]}
        for name in names:
            if f"{name}_verdict" in row or name in row:
                shown[name] = _cell(name, row)
        told.append(shown)
    columns = {"model": "model", "members": "N"} | {n: Column(TITLES[n]) for n in names}
    note = (
        "Means over N models, KLoM the 95th percentile over examples in nats, with standard errors "
        "by bootstrap over models. A band is where one more oracle falls with 95 %, a null what "
        "deals of all oracles to two sides give; U-LiRA's area on shadows may lie two errors from "
        "a half. Not resolved: doing nothing is inside too."
    )
    return Table(told, columns, caption=note)


def _cell(name, row):
    verdict = row.get(f"{name}_verdict")
    value = report.spread(row.get(name), row.get(f"{name}_error"), UNITS.get(name, ""))
    return Cell(value, badge=Badge(verdict) if verdict else None)


def _told(rows):
    shown = [
        {
            "model": row["model"],
            "sees": SEES[row["sees"]],
            "setting": row["setting"],
            "examples": row["examples"],
            "seconds": row["seconds"],
            "attacks": len(outside(row, ATTACKS)),
            "klom": len(outside(row, KLOM)),
        }
        for row in rows
        if "sees" in row
    ]
    columns = {
        "model": "method",
        "sees": "retained data",
        "setting": "chosen setting",
        "examples": Column("examples", "share"),
        "seconds": Column("seconds", "share"),
        "attacks": "attacks outside",
        "klom": "of them KLoM",
    }
    note = (
        "The setting was chosen by one oracle that judges nothing here. Examples and seconds in "
        "per cent of one retraining, timed beside; compiling is apart."
    )
    return Table(shown, columns, caption=note)
