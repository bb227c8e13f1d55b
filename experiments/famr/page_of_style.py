"""What the page of style_forgetting says of one style: images, curves and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.famr.planted_style import CONTROL, GRAM, NOISE, UNIFORM
from famr_jax.report import (
    Badge,
    Bar,
    Cell,
    Column,
    Drawing,
    Grid,
    Image,
    Images,
    Key,
    Section,
    Table,
    Text,
    lines,
    number,
)

COLOURS = {
    "original": "grey",
    UNIFORM: "purple",
    GRAM: "vermillion",
    NOISE: "green",
    CONTROL: "ink",
    "oracle": "blue",
}
CURVES = {
    "styled_acc": ("Styled accuracy", "% of styled test images"),
    "styled_cue": ("Cue", "% of other classes' images given to the style's"),
    "styled_kl": ("KL to oracle, styled images", "nats"),
    "plain_acc": ("Plain accuracy", "% of plain test images"),
}
TONES = {"inside band": "good", "outside band": "bad"}
UNITS = {"share": ", %", "nats": ", nats"}


def section(
    case: Mapping[str, Any], names: Sequence[str], images: Sequence[np.ndarray] | None
) -> Section:
    """The section of one style.

    Args:
        case: One entry of the JSON's styles.
        names: Names of the classes.
        images: The plain and the styled images of its grid, uint8 `[k, h, w, c]`, or None.
    """
    sizes = (
        f"{number(case['num_styled'])} styled training images are forgotten, "
        f"{number(case['num_retain'])} plain ones retained. The measures are of test images, each "
        "of them once as it is and once in the style."
    )
    said = (
        "True class in bold; below it what each model says of the styled image, with its "
        "confidence, unlearned at the first step. The oracle is the first one."
    )
    drawn = (
        "Shaded: 95 % prediction interval of one more oracle. Every run starts at the original, "
        "epoch 0; the control runs over the retained images. Drawn through: the smallest step."
    )
    return Section(
        f"Style: {case['style']}",
        [
            Text(sizes),
            Key(COLOURS),
            _images(case["grid"], names, images),
            Text(said, kind="note"),
            Grid([_curve(case, measure) for measure in CURVES], width=330),
            Text(drawn, kind="note"),
            _table(case),
        ],
    )


def _images(
    grid: Mapping[str, Any], names: Sequence[str], images: Sequence[np.ndarray] | None
) -> Images:
    cards = []
    for i, (index, label) in enumerate(zip(grid["indices"], grid["labels"], strict=True)):
        told = [Cell(names[label], note=f"image {index}", strong=True)]
        told += [
            Bar(names[row["predicted"][i]], row["confidence"][i], COLOURS[row["model"]])
            for row in grid["rows"]
        ]
        pair = images and [each[i] for each in images]
        alt = f"image {index}: {names[label]}, as it is and in the style"
        cards.append(Image(pair, alt, told))
    return Images(cards)


def _curve(case: Mapping[str, Any], measure: str) -> Drawing:
    title, words = CURVES[measure]
    line = next(line for line in case["rows"] if line["measure"] == measure)
    points = [
        {
            "epoch": epoch,
            measure: value,
            "model": path["model"],
            "lr": path["lr"],
            "end": f"lr {path['lr']:g}" if path["model"] == GRAM else None,
        }
        for path in case["paths"]
        for epoch, value in enumerate(path.get(measure, ()))
    ]
    return lines(
        points,
        "epoch",
        measure,
        by="model",
        title=title,
        unit=line["unit"],
        words=words,
        x_words="epoch (0 = original)",
        band=line.get("band"),
        fit_bands=False,
        y_range=(0, 1 if line["unit"] == "share" else None),
        colours=COLOURS,
        dash="lr",
        label="end",
    )


def _table(case: Mapping[str, Any]) -> Table:
    """A row for every model, a column for every measure."""
    first = {line["measure"]: line for line in reversed(case["rows"])}
    rows = [{"": Cell("original", colour="grey")} | _each(first, "original")]
    for run in (model for model in case["models"] if "lr" in model):
        lines_of = [
            line
            for line in case["rows"]
            if (line["model"], line["lr"]) == (run["model"], run["lr"])
        ]
        row = {"": Cell(f"{run['model']}, lr {run['lr']:g}", colour=COLOURS[run["model"]])}
        rows.append(row | {line["measure"]: _judged(line) for line in lines_of})
    rows += [
        {"": Cell("oracles, mean", colour="blue")} | _each(first, "oracle"),
        *({"": name} | _each(first, name) for name in ("band", "null")),
        {"": "N"} | _each(first, "n"),
    ]
    measures = [line["measure"] for line in case["rows"][: len(first)]]
    columns = {"": ""} | {
        name: Column(first[name]["title"] + UNITS.get(first[name]["unit"], ""), first[name]["unit"])
        for name in measures
    }
    meanings = "; ".join(f"{first[name]['title']}: {first[name]['what']}" for name in measures)
    count = next(iter(first.values())).get("oracles")
    caption = (
        f"{number(count)} oracles. Band: 95 % prediction interval of one more "
        "oracle. Null: distance of an oracle to the others' mean. A verdict needs 8 oracles, and "
        "is not resolved where doing nothing lies in the band too. Nothing is selected: every run "
        f"is shown. {meanings}."
    )
    return Table(rows, columns, caption)


def _each(lines_of: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {measure: line.get(name) for measure, line in lines_of.items()}


def _judged(line: Mapping[str, Any]) -> Cell:
    verdict = line.get("verdict")
    badge = verdict and Badge(verdict.removesuffix(" band"), TONES.get(verdict))
    return Cell(line["value"], strong=True, badge=badge, unit=line["unit"])
