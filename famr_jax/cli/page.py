"""The page of the main job: what its JSON holds, in blocks of `famr_jax.report`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from famr_jax.cli.details import details, headed, legend, models_of
from famr_jax.cli.diagnosis import diagnose
from famr_jax.cli.measured import before_after, line, method_of
from famr_jax.cli.record import made
from famr_jax.cli.words import (
    Case,
    each_method,
    label,
    measures_of,
    most_oracles,
    shown_among,
    top_of,
    verdict,
)
from famr_jax.report import (
    Badge,
    Badges,
    Cell,
    Claims,
    Column,
    Section,
    Strip,
    Table,
    Text,
    Tile,
    Tiles,
    number,
)
from famr_jax.statistics import ORACLES_FOR_A_VERDICT

COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven")
HEADLINES = 4
"""Rows that are shown as tiles, the first ones."""


class Page(NamedTuple):
    """A title, a leading paragraph, and blocks."""

    title: str
    lead: str
    blocks: list[Any]


def page(content: Mapping[str, Any], images: Sequence[np.ndarray | None]) -> Page:
    """The page of a run.

    Args:
        content: The whole JSON. A number that is None or absent is printed as an en dash; a part of
            a case that is None or absent is left out.
        images: For each case the forgotten images of its grid, uint8 `[k, h, w, c]` in the order
            of the grid's indices, or None.

    Raises:
        ValueError: A grid has another number of images than of indices.
    """
    results = content["results"]
    dataset, cases = results["dataset"], results["cases"]
    names = [str(name) for name in dataset["class_names"]]
    titles = headings(cases)
    few = Text(_oracle_sentence(cases), kind="note")
    claims = content["claims"]
    blocks = [
        *(summary(case, title) for case, title in zip(cases, titles, strict=True)),
        few,
        *([Section("Claims", [Claims(claims)])] if claims else []),
        Section(
            "The numbers",
            [
                *(legend(case) for case in cases[:1]),
                *(section for case in cases for section in numbers(case)),
            ],
        ),
        *(
            Section(f"{title} in detail", details(case, names, shown))
            for case, title, shown in zip(cases, titles, images, strict=True)
        ),
        *made(content),
    ]
    return Page(f"Machine unlearning on {dataset['name']}", _setting(results), blocks)


def headings(cases: Sequence[Case]) -> list[str]:
    """The title of each case, with its forget set in words where two have the same title."""
    titles = [str(case.get("title") or "A case") for case in cases]
    folded = [title.strip().casefold() for title in titles]
    return [
        title if folded.count(own) == 1 else f"{title} ({case.get('forget', 'unnamed')})"
        for case, title, own in zip(cases, titles, folded, strict=True)
    ]


def _setting(results: Mapping[str, Any]) -> str:
    dataset, model = results["dataset"], results["model"]
    shape = " × ".join(str(side) for side in dataset["image_shape"])
    seen: dict[str, list[str]] = {}
    for case in results["cases"]:
        for method in case.get("methods") or ():
            seen.setdefault(_sees(method), []).append(label(method.get("name")))
    told = "; ".join(f"{' and '.join(dict.fromkeys(who))} {what}" for what, who in seen.items())
    return (
        f"{model['name']} ({number(model['num_params'])} weights), "
        f"{number(dataset['num_classes'])} classes, images of {shape}, "
        f"{number(dataset['num_train'])} for training and {number(dataset['num_test'])} for "
        f"testing. {told or 'No method'}, beside models retrained without the forgotten images "
        "(the oracles)."
    )


def _sees(method: Mapping[str, Any]) -> str:
    if method.get("uses_retain"):
        return "with forgotten and retained images"
    return "with the forgotten images only"


def _oracle_sentence(cases: Sequence[Case]) -> str:
    count = max(map(most_oracles, cases), default=0)
    if count >= ORACLES_FOR_A_VERDICT:
        return f"{count} oracles: bands are 95 % prediction intervals of one more oracle."
    several = f"oracle{'s' * (count != 1)} {'draws' if count == 1 else 'draw'}"
    return (
        f"{COUNTS[count]} {several} a picture, which says whether a value lies among them; a "
        f"verdict needs {ORACLES_FOR_A_VERDICT}."
    )


def _rows(case: Case, model: str | None) -> list[Mapping[str, Any]]:
    """The lines of a method that hold a number."""
    rows = [row for row in case.get("rows") or () if "absent" not in row]
    return [row for row in rows if row.get("model") == model]


def summary(case: Case, title: str) -> Section:
    """What came of a case: a sentence a method, headline numbers, signs that were found."""
    names = each_method(case)
    several, tones = len(names) > 1, models_of(case)
    blocks: list[Any] = [
        Text(_sentence(case, name), colour=tones.get(name) if several else None) for name in names
    ]
    blocks.append(table(case) if several else Tiles(_tiles(case, names[0])))
    for name in names:
        entries = method_of(case, name).get("diagnosis") or diagnose(case, name)
        found = [entry for entry in entries if entry["found"]]
        signs = [Badge(each["sign"], "good" if each.get("good") else "bad") for each in found]
        blocks.append(Badges(f"Signs found{f' of {label(name)}' if several else ''}:", signs))
    return Section(title, blocks, panel=True)


def _tiles(case: Case, name: str | None) -> list[Tile]:
    tiles = []
    for row in _rows(case, name)[:HEADLINES]:
        unit = row.get("unit", "")
        below = (
            Cell(f"oracle {number(row.get('oracle'), unit)}", colour="blue"),
            Cell(f"original {number(row.get('original'), unit)}", colour="grey"),
            _strip(case, row),
        )
        tiles.append(Tile(row.get("title", ""), row.get("value"), unit, below, "vermillion"))
    return tiles


def table(case: Case) -> Table:
    """The one table of a case: a row a model, a column a measure."""
    measures, units = measures_of(case), {"share": "%", "nats": "nats"}
    tones = {label(name): tone for name, tone in models_of(case).items()}
    rows = []
    for name, values in shown_among(case).items():
        tone = "blue" if name.startswith("oracle") else tones.get(name)
        cells = {"model": Cell(name, colour=tone, strong=name in tones)}
        rows.append(cells | {str(i): value for i, value in enumerate(values)})
    columns: dict[str, Any] = {"model": Column("")}
    for i, row in enumerate(measures):
        unit = row.get("unit", "")
        ending = f", {units[unit]}" if unit in units else ""
        columns[str(i)] = Column(f"{row.get('title', '')}{ending}", unit)
    return Table(rows, columns)


def _sentence(case: Case, name: str | None) -> str:
    if method_of(case, name).get("finite") is False:
        epoch = number(method_of(case, name).get("epoch"))
        return f"{label(name)} was not finite in epoch {epoch}, and nothing is measured of it."

    def told(measure: str, of: str) -> str:
        values = (*before_after(case, measure, name), line(case, measure, name).get("oracle"))
        before, after, retrained = (f"{number(value, 'share')}\u202f%" for value in values)
        return f"{after} of the {of} (before: {before}; retrained models: {retrained})"

    forget = told("for_acc", f"{number(case.get('num_forget'))} forgotten training images")
    retain = told("ret_acc", f"{number(case.get('num_retain'))} retained ones")
    return f"{label(name)} now recognises {forget}, and {retain}."


def _strip(case: Case, row: Mapping[str, Any]) -> Strip:
    measure, unit = row.get("measure"), row.get("unit")
    models = case.get("models") or ()
    ticks = [model.get(measure) for model in models if model.get("model") == "oracle"]
    value, original = row.get("value"), row.get("original")
    top = top_of(case, unit, value, original, *ticks)
    model = row.get("model")
    colour = models_of(case).get(model, "vermillion")
    return Strip(value, original, ticks, row.get("band"), top, label(model), colour)


def numbers(case: Case) -> list[Section]:
    """For every method the table of each measure beside the oracles' band, null and gap."""
    return [_numbers(case, name) for name in each_method(case)]


def _numbers(case: Case, model: str | None) -> Section:
    count, name = most_oracles(case), label(model)
    units = {"share": ", %", "nats": ", nats"}
    rows = []
    for row in _rows(case, model):
        fewer = row.get("oracles") not in (None, count)
        said = verdict(case, row)
        rows.append(
            {
                "Measure": Cell(
                    row.get("title", "") + units.get(row.get("unit", ""), ""),
                    note=row.get("what"),
                    strong=True,
                ),
                "Picture": _strip(case, row),
                "Original": row.get("original"),
                name: Cell(row.get("value"), strong=True),
                "Oracle mean": Cell(
                    row.get("oracle"), note=f"n = {row['oracles']}" if fewer else None
                ),
                "Oracle band": row.get("band"),
                "Null": row.get("null"),
                "Original's gap": row.get("original_gap"),
                f"{name}'s gap": row.get("gap"),
                "Verdict": Badge(said) if said else None,
                "N": row.get("n"),
                "unit": row.get("unit", ""),
            }
        )
    absent = [
        row for row in case.get("rows") or () if "absent" in row and row.get("model") == model
    ]
    caption = (
        f"{count} oracles. Band: 95 % prediction interval of one more oracle. Gap: difference to "
        "the oracle, for shares in points; null: the same between oracles. N: examples of the row. "
        "In the picture, from 0 to 100 % (in nats: to log C), a circle is the original, a disc "
        f"{name}, a tick an oracle, and their band is shaded. "
    )
    caption += _oracle_sentence([case]) if count < ORACLES_FOR_A_VERDICT else ""
    if absent:
        reasons = "; ".join(f"{row['title']}, as {row['absent']}" for row in absent)
        caption += f" Not measured: {reasons}."
    columns = [column for column in rows[0] if column != "unit"] if rows else ["Measure"]
    heading = headed("Every measure", case, model)
    return Section(heading, [Table(rows, columns, caption)])
