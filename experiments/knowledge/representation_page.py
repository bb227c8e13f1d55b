"""The page of what features know: pictures, charts by layer, every measure beside its band."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.harness.results import Page, setting
from experiments.knowledge.representation_picture import panel
from experiments.knowledge.representation_verdicts import (
    MORE,
    OUTSIDE,
    judged,
    median_steps,
    steps_in_words,
)
from famr_jax.evaluation.knowledge import EVERY, QUANTITIES
from famr_jax.report import Badge, Cell, Column, Grid, Section, Table, Text, dots, number


def page(content: dict[str, Any]) -> Page:
    """Pictures of the features, charts by layer, and every measure beside its band."""
    results, flags = content["results"], content["config"]["flags"]
    sections = [_section(case, flags) for case in results["cases"]]
    lead = (
        f"{setting(results)}: a class is unlearned, and what every layer still knows of it is held "
        f"against {results['oracles']} models that never saw it."
    )
    return Page("What the features still know", lead, sections)


def _section(case, flags):
    spec, last = case["forget"], case["layers"][-1]
    pictures = [
        Section(
            f"{title} of {last}, {spec}",
            [
                Grid(
                    [
                        panel(row, kind, case["labels"], case["class"], title=row["model"])
                        for row in case["pictures"]
                    ],
                    width=290,
                ),
                Text(words, kind="note"),
            ],
        )
        for kind, title, words in (
            ("tsne", "t-SNE", "Every panel starts from the original's components, with one seed."),
            ("pca", "Two components", "Each model's own, turned to lie as the original's do."),
        )
    ]
    charts = [_chart(case, quantity) for quantity in (*MORE, "like_before", "classes")]
    told = (
        f"Every dot is a model, a short line their mean. Untrained: fresh weights. Of labels that "
        f"were shuffled a probe of the original's layers finds "
        f"{', '.join(number(v, 'share') for v in case['shuffled'].values())} %: 50 % is chance."
    )
    return Section(
        spec,
        [
            *pictures,
            Section(f"By layer, {spec}", [Grid(charts, width=420), Text(told, kind="note")]),
            Section(f"Relearning, {spec}", [_chart_of_steps(case, flags), _table_of_steps(case)]),
            Section(f"Beside the oracles, {spec}", [_table(case, flags["methods"])]),
        ],
    )


def _chart(case, quantity):
    _, unit, of, title = QUANTITIES[quantity]
    prefix = f"{quantity}_"
    names = [f"{prefix}{layer}" for layer in case["layers"]]
    rows = [
        {"layer": name.removeprefix(prefix), "value": row[name], "model": row["model"]}
        for row in case["models"]
        for name in names
        if name in row
    ]
    images = "all test images" if of == EVERY else "test images of the class"
    return dots(rows, "layer", "value", "model", title=title, unit=unit, words=_words(unit, images))


def _words(unit, images):
    return f"{'%, ' if unit == 'share' else ''}{images}"


def _chart_of_steps(case, flags):
    rows = [
        {"images": f"{row['shots']} of each class", "steps": step, "model": row["model"]}
        for row in case["relearning"]
        for step in row["steps"]
    ]
    caption = f"A dot a model and draw; those that took over {flags['relearn_steps']} are left out."
    return dots(
        rows,
        "images",
        "steps",
        "model",
        title="Steps until the class is back",
        words=f"steps until {100 * flags['level']:g} % of its test images are right",
        caption=caption,
    )


def _table_of_steps(case):
    rows = []
    for name in dict.fromkeys(row["model"] for row in case["relearning"]):
        told: dict[str, Any] = {"model": name}
        for shots in dict.fromkeys(row["shots"] for row in case["relearning"]):
            mine = [r for r in case["relearning"] if (r["model"], r["shots"]) == (name, shots)]
            steps = [step for row in mine for step in row["steps"]]
            known = sum(step is not None for step in steps)
            middle = steps_in_words([median_steps(row["steps"]) for row in mine])
            told[f"{shots} of each class"] = Cell(middle, note=f"back in {known} of {len(steps)}")
        rows.append(told)
    caption = "Median of the models' median steps over the draws. Few steps are no knowledge: fresh"
    return Table(rows, caption=f"{caption} weights may name one class for all images at first.")


def _table(case, methods):
    lines = list(judged(case))
    heads: dict[str, Any] = {"title": "measure", "original": None, "oracle": "oracles"}
    heads |= {"band": None, "null": None, "n": "N"}
    heads |= {name: Column(of=_cell_of(name)) for name in methods}
    rows = []
    for title in dict.fromkeys(line["title"] for line in lines):
        mine = [line for line in lines if line["title"] == title]
        before = float(np.mean([line["original"] for line in mine]))
        rows.append(mine[0] | {"original": before, "lines": mine})
    return Table(rows, heads, caption="Of several originals, and models made from them, the mean.")


def _cell_of(name: str) -> Callable[[Mapping[str, Any]], Cell | None]:
    def cell(row):
        mine = [line for line in row["lines"] if line["model"] == name]
        if not mine:
            return None
        value = float(np.mean([line["value"] for line in mine]))
        verdicts = [line.get("verdict") for line in mine if line.get("verdict")]
        out = verdicts.count(OUTSIDE)
        if not verdicts:
            return Cell(value, unit=row["unit"])
        if not out:
            return Cell(value, unit=row["unit"], badge=max(verdicts))  # "not resolved" if one is
        tone, words = "bad" if out == len(verdicts) else None, f"outside {out} of {len(verdicts)}"
        return Cell(value, unit=row["unit"], badge=Badge(words, tone))

    return cell
