"""What is made of unlearning from the forget data alone: verdicts, headlines and a page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.comparison import FORGET_DATA
from experiments.comparison.board_measures import distance
from experiments.comparison.board_ranks import AGAIN, NOTHING, SURE
from experiments.comparison.judging import as_rows
from experiments.comparison.leaderboard_page import MODELS_FOR_KLOM, TITLES, rows_of, section
from experiments.harness.results import Page, setting
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

STEP = "gauss_newton_removal"
GAP, KEPT, DROP, WRONG = 0.75, 0.99, 0.01, 0.35
"""The goals: share of the gap that is closed, retained accuracy, fall of the test accuracy, and
share of wrong labels that are still predicted."""
ATTACKED = ("klom_forget", "u_lira", "svc_mia")
"""Attacks under which methods are compared; KL alone would reward flattened outputs."""


def gap_closed(cell: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """How much of the way from doing nothing to another oracle, in KL on the forget set.

    None where doing nothing is no farther from the oracles than they are from one another; minus
    infinity for a model that is not finite.
    """
    oracles = {each["measure"]: each for each in as_rows(cell["oracles"])}["kl_forget"]
    before = rows_of(cell)[NOTHING]["kl_forget"]
    if before <= oracles["high"]:
        return None
    return (before - row.get("kl_forget", math.inf)) / (before - oracles["mean"])


def goals_of(cell: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, bool] | None:
    """Which of the goals a method reaches; None without a gap to close."""
    before, closed = rows_of(cell)[NOTHING], gap_closed(cell, row)
    if closed is None:
        return None
    found = {
        "gap": closed >= GAP,
        "retained": row.get("ret_acc", 0.0) >= KEPT,
        "test": before["test_acc"] - row.get("test_acc", 0.0) <= DROP,
    }
    if "mislabelled" in before:
        found["wrong labels"] = row.get("mislabelled", 1.0) <= WRONG
    return found


def judged_by(members: int) -> tuple[str, ...]:
    """The attacks under which methods are compared, KLoM of enough models only."""
    return ATTACKED if members >= MODELS_FOR_KLOM else ATTACKED[1:]


def nearer(cell: Mapping[str, Any], sees: str, names: Sequence[str]) -> dict[str, list[str]]:
    """By attack, the methods of a kind that are nearer to the oracles than the step is.

    That is by more than `SURE` standard errors of the difference.
    """
    rows, goals = rows_of(cell), cell["goals"]

    def far(row, name):
        return distance(name, row.get(name, math.inf), goals.get(name, 0.0))

    def error(row, name):
        return row.get(f"{name}_error", 0.0)

    found = {}
    for name in names:
        mine = rows[STEP]
        found[name] = [
            row["model"]
            for row in rows.values()
            if row.get("sees") == sees
            and far(mine, name) - far(row, name)
            > SURE * math.hypot(*(error(r, name) for r in (mine, row)))
        ]
    return found


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the goals are reached, whether anything else without retained data is better."""
    cells, members = results["cells"], results["members"]
    about = f"{setting(results)}, {results['size']} images, "
    about += f"{results['wrong']} with a wrong label, N = {members}: "
    cells = [cell for cell in cells if STEP in rows_of(cell)]
    if STEP not in flags["methods"] or not cells:
        return []
    reached = [goals_of(cell, rows_of(cell)[STEP]) for cell in cells]
    good = [all(each.values()) for each in reached if each is not None]
    found = [("goals", good, "; ".join(map(_goals, cells)))]
    for name, sees in (("alone", "forget"), ("control", "retain")):
        ahead = [nearer(cell, sees, judged_by(members)) for cell in cells]
        words = "; ".join(_ahead(cell, each) for cell, each in zip(cells, ahead, strict=True))
        words += "" if members >= MODELS_FOR_KLOM else f"; KLoM needs {MODELS_FOR_KLOM} models"
        found.append((name, [not any(each.values()) for each in ahead], words))
    enough = members >= ORACLES_FOR_A_VERDICT
    return [
        FORGET_DATA.judge(
            name, _verdict(good) if enough and good else "not resolved", about + words
        )
        for name, good, words in found
    ]


def _verdict(good):
    return "holds" if all(good) else "mixed" if any(good) else "fails"


def _goals(cell):
    rows = rows_of(cell)
    row, before, other = (rows[name] for name in (STEP, NOTHING, AGAIN))
    if "kl_forget" not in row:
        return f"{cell['forget']} not finite"
    closed = gap_closed(cell, row)
    gap = "no gap to close" if closed is None else f"{closed:.0%} of the gap closed"
    words = f"{cell['forget']} {gap}, Ret-Acc {row['ret_acc']:.3f} (was {before['ret_acc']:.3f}), "
    words += f"Test-Acc {row['test_acc'] - before['test_acc']:+.3f}"
    if "mislabelled" in row:
        kept = [f"{each['mislabelled']:.2f}" for each in (row, before, other)]
        words += f", wrong labels kept {kept[0]} (was {kept[1]}, another oracle {kept[2]})"
    return words


def _ahead(cell, found):
    told = [f"{TITLES[name]} {', '.join(names)}" for name, names in found.items() if names]
    return f"{cell['forget']} nearer: {'; '.join(told) or 'none'}"


def headline(content: dict[str, Any]) -> list[str]:
    """What the store cost, and for each forget set how far the step came, and who is nearer."""
    results = content["results"]
    store = results["store"]
    lines = [
        f"store: {store['directions']} directions, {store['products']} products, "
        f"{store['trainings']:.1f} trainings in examples"
    ]
    for cell in results["cells"]:
        rows = rows_of(cell)
        if STEP not in rows:
            continue
        gap, *rest = _goals(cell).split(", ", 3)
        lines += [
            gap,
            *([f"  {', '.join(rest[:2])}"] if rest else []),
            *(f"  {r}" for r in rest[2:]),
        ]
        for name in ATTACKED:
            shown = [f"{_short(n)} {rows[n][name]:.2f}" for n in _shown(rows) if name in rows[n]]
            lines.append(f"  {TITLES[name]}: {', '.join(shown)}")
    return lines


def _shown(rows):
    return [n for n in (NOTHING, AGAIN, STEP, "delete", "famr", "finetune") if n in rows]


def _short(name):
    return {NOTHING: "nothing", AGAIN: "oracle", STEP: "step"}.get(name, name)


def page(content: dict[str, Any]) -> Page:
    """For each forget set the leaderboard's tables."""
    results = content["results"]
    lead = (
        f"{setting(results)}, {results['size']} training images, {results['wrong']} with a wrong "
        f"label. Methods from a store and from the forget data alone, and controls that see "
        f"retained data, N = {results['members']} models each, beside as many retrained ones."
    )
    return Page("With the forget data alone", lead, [section(cell) for cell in results["cells"]])
