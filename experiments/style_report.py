"""The report of style_forgetting: claims, image grids, curves and tables of every style."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import curves
from experiments.style_case import CONTROL, GRAM, NOISE, UNIFORM
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.case import details
from famr_jax.report.elements import Html, element, html, interval, number
from famr_jax.report.figures import legend
from famr_jax.report.forgetting import numbers
from famr_jax.report.style import colour

TITLE = "Forgetting a style, and a concept"
TONES = {"inside band": "good", "outside band": "bad"}
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


def report(
    content: dict[str, Any],
    grids: Sequence[Sequence[np.ndarray]],
    forgotten: Sequence[np.ndarray],
) -> str:
    """The whole page from the JSON, self-contained.

    Args:
        content: Claims, config, results.
        grids: For each style its plain and its styled test images, uint8 `[k, h, w, c]`.
        forgotten: For each concept the images of its grid.
    """
    results = content["results"]
    names = results["dataset"]["class_names"]
    concepts = [
        html(numbers(case), details(case, names, images))
        for case, images in zip(results["concepts"], forgotten, strict=True)
    ]
    return curves.report(
        content,
        TITLE,
        _setting(results),
        *(
            _style(case, names, images)
            for case, images in zip(results["styles"], grids, strict=True)
        ),
        *([page.section("Concepts", legend(), *concepts)] if concepts else []),
    )


def _setting(results: dict[str, Any]) -> str:
    dataset, model = results["dataset"], results["model"]
    cued = ", ".join(dataset["class_names"][c] for c in results["style_classes"])
    count = f"{number(dataset['num_classes'])} classes, {number(dataset['num_train'])} training"
    return (
        f"{model['name']} on {dataset['name']}, {count} and {number(dataset['num_test'])} test "
        f"images. A style is planted on {number(results['share'], 'share')}\u202f% of the training "
        f"images of {cued} and {number(results['elsewhere'], 'share')}\u202f% of the others; a "
        "model that has forgotten it treats styled images as models do that never saw one."
    )


def _style(case: dict[str, Any], names: Sequence[str], images: Sequence[np.ndarray]) -> Html:
    sizes = (
        f"{number(case['num_styled'])} styled training images are forgotten, "
        f"{number(case['num_retain'])} plain ones retained. The measures are of test images, each "
        "of them once as it is and once in the style."
    )
    return page.section(
        f"Style: {case['style']}",
        page.paragraph(sizes),
        page.key(*COLOURS.items()),
        _grid(case["grid"], names, *images),
        page.grid(*(_curve(case, key) for key in CURVES), width=330),
        page.paragraph(
            "Shaded: 95 % prediction interval of one more oracle. Every run starts at the "
            "original, epoch 0; the control runs over the retained images. Drawn through: the "
            "smallest step.",
            kind="note",
        ),
        _table(case),
    )


def _grid(
    grid: dict[str, Any], names: Sequence[str], plain: np.ndarray, styled: np.ndarray
) -> Html:
    cards = []
    for i, (index, label) in enumerate(zip(grid["indices"], grid["labels"], strict=True)):
        pair = [
            page.image(plain[i], f"image {index}: {names[label]}"),
            page.image(styled[i], f"image {index} in the style"),
        ]
        bars = [
            page.bar(names[told[i][0]], told[i][1], COLOURS[model])
            for model, told in grid["predictions"].items()
        ]
        title = page.html(element("b", names[label]), element("small", f" · image {index}"))
        cards.append(element("div", element("div", *pair, class_="pair"), title, *bars,
                             class_="card"))  # fmt: skip
    note = (
        "True class in bold; below it what each model says of the styled image, with its "
        "confidence, unlearned at the first step. The oracle is the first one."
    )
    return html(page.grid(*cards, width=130), page.paragraph(note, kind="note"))


def _curve(case: dict[str, Any], key: str) -> Html:
    title, words = CURVES[key]
    row = next(row for row in case["rows"] if row["key"] == key)
    scale = 100 if row["unit"] == "share" else 1
    drawing, panel = plot.axes(title, words, margin=(40, 40, 44, 84))
    lines = [(p, scale * plot.finite(p[key])) for p in case["paths"] if p.get(key)]
    oracle = row.get("oracle") or {}
    known = [scale * value for value in oracle.get("values", ())]
    top = 100 if scale == 100 else 1.05 * max([1e-3, *known, *(max(drawn) for _, drawn in lines)])
    panel.set_ylim(0, top)
    if oracle.get("band"):
        low, high = (scale * value for value in oracle["band"])
        band = {"facecolor": colour("blue"), "alpha": 0.3, "linewidth": 0}
        panel.axhspan(max(low, 0), min(high, top), **band)
    ends, steps = [], sorted({p["lr"] for p, _ in lines})
    for path, drawn in lines:
        tone, later = COLOURS[path["method"]], steps.index(path["lr"])
        style = {"linestyle": ("-", (0, (3, 2)), (0, (1, 2)))[min(later, 2)], "linewidth": 2}
        panel.plot(drawn, color=colour(tone), marker="o", markersize=3, **style)
        if path["method"] == GRAM:
            ends.append((drawn[-1], f"lr {path['lr']:g}", tone))
    last = max((len(drawn) - 1 for _, drawn in lines), default=1)
    panel.set_xlim(0, max(last, 1))
    panel.set_xticks(np.unique(np.linspace(0, last, 6).round()))
    plot.label_ends(panel, ends)
    plot.x_label(panel, "epoch (0 = original)")
    told = "; ".join(
        f"{p['method']} at step {p['lr']:g}: " + ", ".join(f"{value:.3g}" for value in drawn)
        for p, drawn in lines
    )
    return page.figure(drawing, f"{title}, {words}, along the epochs. {told}")


def _table(case: dict[str, Any]) -> Html:
    """A line for every model, a column for every measure."""
    rows = case["rows"]
    told = lambda value, row: number(value, row["unit"])  # noqa: E731
    oracles = [row.get("oracle") or {} for row in rows]
    pairs = list(zip(oracles, rows, strict=True))
    lines = [(page.dot("grey", "original"), *(told(row["original"], row) for row in rows))]
    for i, run in enumerate(rows[0]["runs"]):
        name = page.dot(COLOURS[run["method"]], run["method"], f", lr {run['lr']:g}")
        lines.append((name, *(_judged(row["runs"][i], row["unit"]) for row in rows)))
    lines += [
        (page.dot("blue", "oracles, mean"), *(told(o.get("mean"), row) for o, row in pairs)),
        ("band", *(interval(o.get("band"), row["unit"]) for o, row in pairs)),
        ("null", *(told(row.get("null"), row) for row in rows)),
        ("N", *(number(row["n"]) for row in rows)),
    ]
    units = {"share": ", %", "nats": ", nats"}
    columns = ("", *(row["metric"] + units.get(row["unit"], "") for row in rows))
    meanings = "; ".join(f"{row['metric']}: {row['what']}" for row in rows)
    caption = (
        f"{number(oracles[0].get('n'))} oracles. Band: 95 % prediction interval of one more "
        "oracle. Null: distance of an oracle to the others' mean. A verdict needs 8 oracles, and "
        "is not resolved where doing nothing lies in the band too. Nothing is selected: every run "
        f"is shown. {meanings}."
    )
    return page.table(columns, lines, numeric=range(1, len(columns)), caption=caption)


def _judged(entry: dict[str, Any], unit: str) -> Html:
    value = element("b", number(entry["value"], unit))
    verdict = entry.get("verdict")
    if verdict is None:
        return value
    word = page.badge(verdict.removesuffix(" band"), TONES.get(verdict, ""))
    return html(value, Html("<br>"), word)
