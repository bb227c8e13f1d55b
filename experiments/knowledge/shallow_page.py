"""What is made of the shallow test's numbers: verdicts, headlines and a page."""

from typing import Any

import numpy as np

from experiments.harness.results import Page, setting
from experiments.knowledge import SHALLOW
from famr_jax.report import Column, Section, Table, Text
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

PARTS = ("last layer", "last block", "all")
OUTSIDE = "outside band"


def outside(case: dict[str, Any], part: str) -> list[str]:
    """Titles of the measures in which a part's model lies outside the band."""
    lines = [line for line in case["verdicts"] if line["model"] == part]
    return [line["title"] for line in lines if line.get("verdict") == OUTSIDE]


def _row(case, part):
    return next(row for row in case["models"] if row["model"] == part)


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether the last layer alone is enough for For-Acc, and which verdicts tell it from all."""
    cases, told = results["cases"], []
    reached = {part: [] for part in PARTS}
    for part in PARTS:
        rows = [_row(case, part) for case in cases]
        reached[part] = [
            row["for_acc"] <= case["at_chance"] for row, case in zip(rows, cases, strict=True)
        ]
        told.append(f"{part} For-Acc {_each(rows, 'for_acc')} at Ret-Acc {_each(rows, 'ret_acc')}")
    count, head = len(cases), sum(reached["last layer"])
    verdict = {count: "holds", 0: "fails"}.get(head, "mixed")
    specs = ", ".join(case["forget"] for case in cases)
    words = (
        f"{setting(results)}, {specs}, {flags['method']}, in per cent: {'; '.join(told)}; chance "
        f"ends at {_each(cases, 'at_chance')}."
    )
    verdict = verdict if all(reached["all"]) else "not resolved"
    made = [SHALLOW.judge("head", verdict, words)]
    differ: dict[str, int] = {}
    for case in cases:
        for title in set(outside(case, "last layer")) ^ set(outside(case, "all")):
            differ[title] = differ.get(title, 0) + 1
    by_probe = [title for title in differ if title.startswith("Probe")]
    by_output = [title for title in differ if title not in by_probe]
    if results["oracles"] < ORACLES_FOR_A_VERDICT:
        verdict = "not resolved"
    else:
        verdict = "fails" if not by_probe else "mixed" if by_output else "holds"
    listed = [", ".join(f"{t} ({differ[t]})" for t in sorted(of)) for of in (by_output, by_probe)]
    words = (
        f"Beside {results['oracles']} oracles the verdicts on the last layer alone and on all "
        f"weights differ, in so many of {count} classes, in {listed[0] or 'no measure of outputs'} "
        f"and in {listed[1] or 'no probe'}. {_probed(cases)}"
    )
    return [*made, SHALLOW.judge("notices", verdict, words)]


def _probed(cases):
    """What the probe of the last features finds of the class, in words."""
    name = [key for key in _row(cases[0], "original") if key.startswith("probe_")][-1]
    told = [f"{m} {_each([_row(case, m) for case in cases], name)}" for m in ("original", *PARTS)]
    means = [
        {name: np.mean([row[name] for row in case["models"] if row["model"] == "oracle"])}
        for case in cases
    ]
    told.append(f"oracles {_each(means, name)}")
    return f"{name.replace('_', ' of ', 1).capitalize()}, in per cent: {'; '.join(told)}."


def _each(rows, key):
    return ", ".join(f"{100 * row[key]:.1f}" for row in rows)


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each class and part: its step, both accuracies, and what lies outside the band."""
    lines = []
    for case in content["results"]["cases"]:
        for part in PARTS:
            row, out = _row(case, part), outside(case, part)
            every = sum("verdict" in v for v in case["verdicts"] if v["model"] == part)
            probes = sum(title.startswith("Probe") for title in out)
            lines.append(
                f"{case['forget']}  {part:<11} lr {row['lr']:<7g} {100 * row['for_acc']:5.1f} "
                f"{100 * row['ret_acc']:5.1f}  outside in {len(out)} of {every}, probes {probes}"
            )
    return lines


def page(content: dict[str, Any]) -> Page:
    """Every measure of every part beside its band, and the steps that were tried."""
    results = content["results"]
    names = ("title", "value", "original", "oracle", "band", "null", "gap", "n", "verdict")
    heads = {"title": "measure", "oracle": "oracles", "n": "N"}
    columns = {name: heads.get(name, name) for name in names}
    steps = {"part": None, "step": Column(unit="")}
    steps |= {"for_acc": Column("For-Acc, %", "share"), "ret_acc": Column("Ret-Acc, %", "share")}
    sections = []
    for case in results["cases"]:
        parts = [
            Section(f"{case['forget']}, unlearned: {part}", [Table(lines, columns)])
            for part in PARTS
            if (lines := [v for v in case["verdicts"] if v["model"] == part and "value" in v])
        ]
        tried = [
            {
                "part": row["model"],
                "step": row["lr"],
                "for_acc": row["for_acc"],
                "ret_acc": row["ret_acc"],
            }
            for row in case["tried"]
        ]
        words = "Steps up to the smallest that took For-Acc to chance, which was chosen; else all."
        sections.append(Section(case["forget"], [Text(words), Table(tried, steps), *parts]))
    lead = f"{setting(results)}: a class is unlearned in a part of the weights."
    return Page("Shallow forgetting", lead, sections)
