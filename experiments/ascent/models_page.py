"""The page of ascent_fails on the solvable models: closed forms, maps and the toy landscape."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.ascent import plane, toy
from famr_jax import report
from famr_jax.report import Column, Drawing, Grid, Key, Section, Table, Text, number, plot

MODELS = {
    "D": ("original, D", "grey"),
    "R": ("oracle, R", "blue"),
    "DA": ("descent-ascent, DA", "vermillion"),
    "rescaled": ("DA with weight |F|/|R|", "purple"),
}
CELLS = {"H": "vermillion", "A": "green", "B": "purple", "N": "rule"}
ENDS = {"D": "grey", "R": "blue", "DA": "vermillion", "fine-tuned": "purple"}


def sections(theory: dict[str, Any]) -> list[Section]:
    """A section for each of the three models, from the JSON."""
    return [_orthogonal(theory), _maps(theory["maps"]), _toy(theory["toy"])]


def _orthogonal(theory: dict[str, Any]) -> Section:
    group, lemma = theory["sweep"]["group"], theory["orthogonal"]["lemma_3"]
    return Section(
        "One coordinate: closed forms",
        [
            Text(
                "Logistic regression with exponential loss on orthogonal groups of samples; alpha "
                "is how many samples of a group are forgotten for each that is retained. Every "
                f"minimum is a value of Lambert's W. Drawn: {number(group['size'])} of "
                f"{number(group['num_retain'])} retained samples in the group, "
                f"{number(group['num_forget'])} forgotten in all, ridge {number(group['l2'])}."
            ),
            Key(dict(MODELS.values())),
            Grid([_minima(theory["sweep"]), _distances(theory["sweep"]["paths"])], width=400),
            Table(
                [{"alpha": name} | lemma[name] for name in ("below", "inside", "above")],
                {
                    "alpha": None,
                    "points": "problems",
                    "in_order": "DA <= D <= R",
                    "starts_towards": "first step towards R",
                    "ends_nearer": "end nearer",
                    "median_before": "before",
                },
                caption="All problems of the grid, by where alpha lies: below the range of Lemma "
                "3, in it, above |F|/|R|. Before: median distance of the original to the oracle.",
            ),
            Table(
                theory["random_sets"],
                {
                    "forget_weight": "weight of ascent",
                    "groups_in_range": Column("groups in range, %", "share"),
                    "sets_in_range": Column("sets in range, %", "share"),
                    "starts_towards": Column("first step towards R, %", "share"),
                    "nearest_to_before": Column("nearest, %", "share"),
                    "without_minimum": Column("no minimum, %", "share"),
                },
                caption=f"{theory['random_sets'][0]['draws']} random forget sets, 100 of 1000 "
                "samples in ten groups. Nearest: the least distance to the oracle on the way, as a "
                "share of that at the start; median.",
            ),
        ],
    )


def _minima(sweep: dict[str, Any]) -> Drawing:
    minima = sweep["minima"] | {"rescaled": sweep["rescaled"]}
    rows = [
        {"alpha": alpha, "w": w, "model": words, "end": None}
        for model, (words, _) in MODELS.items()
        for alpha, w in zip(sweep["alpha"], minima[model], strict=True)
    ]
    edges = [*(sweep[name] for name in ("harmful_from", "share", "bounded_to")), sweep["alpha"][-1]]
    words = ("away", "towards, past", "no minimum of DA")
    return report.lines(
        rows,
        "alpha",
        "w",
        by="model",
        title="Where the three minima lie",
        words="weight w of the group",
        x_words="alpha, forgotten over retained samples of the group",
        x_regions=list(zip(edges[:-1], edges[1:], words, strict=True)),
        colours=dict(MODELS.values()),
        label="end",
    )


def _distances(paths: Sequence[dict[str, Any]]) -> Drawing:
    rows = [
        {"step": step, "ratio": distance / path["distance"][0], "alpha": f"alpha {path['alpha']:g}"}
        for path in paths
        for step, distance in enumerate(path["distance"])
    ]
    names = dict.fromkeys(row["alpha"] for row in rows)
    return report.lines(
        rows,
        "step",
        "ratio",
        by="alpha",
        title="Distance to the oracle on the way",
        words="in multiples of the distance at the start, logarithmic",
        x_words="step of descent-ascent",
        log_y=True,
        y_range=(0.02, 160),
        colours=dict(zip(names, ("green", "purple", "vermillion", "ink"), strict=False)),
    )


def _maps(maps: Sequence[dict[str, Any]]) -> Section:
    names = {"H": "away", "A": "DA above D", "B": "D above R", "N": "no minimum"}
    rows = [
        {"ridge": each["l2"], "|F|": each["num_forget"]}
        | {name: each["counts"][letter] for letter, name in names.items()}
        | {"farther": each["ends_farther"]}
        | {"Lemma 9": f"{each['lemma_9_violations']} of {each['lemma_9_points']}"}
        for each in maps
    ]
    return Section(
        "Two correlated groups: the (eps, alpha) map",
        [
            Text(
                "Retained samples (1, eps), forgotten ones (eps, 1). Each cell is a problem solved "
                "by Newton's method, after a scan that decides whether descent-ascent has a "
                "minimum."
            ),
            Key({plane.CELLS[letter]: tone for letter, tone in CELLS.items()}),
            Grid([_map(each) for each in maps if each["l2"] == maps[0]["l2"]], width=300),
            Table(
                rows,
                caption="Cells of each kind; those with a minimum of descent-ascent that is "
                "farther from the oracle than the original, in the weights; violations of Lemma 9.",
            ),
        ],
    )


def _map(each: dict[str, Any]) -> Drawing:
    rows = [
        {"eps": eps, "alpha": alpha, "cell": plane.CELLS[letter]}
        for alpha, letters in zip(each["alpha"], each["map"], strict=True)
        for eps, letter in zip(each["eps"], letters, strict=True)
    ]
    return report.heat(
        rows,
        "eps",
        "alpha",
        "cell",
        title=f"|F| = {each['num_forget']}, ridge {each['l2']:g}",
        x_words="eps, overlap; dashed: Lemma 9 speaks above",
        colours={plane.CELLS[letter]: tone for letter, tone in CELLS.items()},
        line=list(zip(each["eps"], each["lemma_9"], strict=True)),
    )


def _toy(found: dict[str, Any]) -> Section:
    rows = [
        {kind: "\n".join(map(_minimum, each[kind])) for kind in toy.COPIES}
        | {"name": each["name"], "story": toy.traps(each)}
        for each in found["readings"]
    ]
    return Section(
        "The toy landscape: trapped",
        [
            Text(
                f"In our reading, {toy.OURS.name}: fine-tuning on the retained samples comes home "
                f"if descent-ascent stops by step {number(found['last_home'])}; from step "
                f"{number(found['steps'][-1])} it ends where the purple dot is."
            ),
            Key(
                {
                    "original": "grey",
                    "oracle": "blue",
                    "descent-ascent and its end": "vermillion",
                    "fine-tuning and its end": "purple",
                }
            ),
            Grid(
                [
                    _landscape("Loss of descent-ascent", "DA", found["descent_ascent"], found),
                    _landscape("Loss on the retained samples", "R", found["fine_tuning"], found),
                ],
                width=400,
            ),
            Table(
                rows,
                {
                    "name": Column("reading of the text", wide=True),
                    "D": Column("original", wide=True),
                    "R": Column("oracle", wide=True),
                    "DA": Column("descent-ascent", wide=True),
                    "story": "the story",
                },
                caption="Predicted signs at x = −1, 1, 3, 4, loss and place (a, b) of each "
                "minimum; the last column says whether the reading tells the paper's story.",
            ),
        ],
    )


def _minimum(found: dict[str, Any]) -> str:
    a, b = (number(round(value, 2)) for value in found["point"])
    return f"{found['signs'].replace('-', '−')}  {number(found['loss'])} at ({a}, {b})"


def _landscape(title: str, kind: str, path: Sequence, found: dict[str, Any]) -> Drawing:
    drawing, panel = plot.axes(title, "b", width=500, height=300, margin=(40, 40, 44, 16))
    a, b = np.linspace(1.8, 3.6, 120), np.linspace(-1.7, -0.1, 120)
    heights = toy.loss(np.stack(np.meshgrid(a, b), -1), toy.COPIES[kind])
    levels = np.quantile(heights, np.linspace(0.01, 0.97, 20))
    panel.contour(a, b, heights, levels, colors=plot.colour("grey"), linewidths=0.6)
    tone = ENDS["DA" if kind == "DA" else "fine-tuned"]
    panel.plot(*np.array(path).T, color=plot.colour(tone), linewidth=2.2)
    for name, dot in ENDS.items():
        panel.plot(*found["ends"][name]["point"], "o", color=plot.colour(dot), markersize=9)
    panel.grid(visible=False)
    plot.x_label(panel, "a")
    return Drawing(drawing, f"{title}: contours and the path from {path[0]} to {path[-1]}")
