"""The report of ascent_fails on the solvable models: closed forms, maps and the toy landscape."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import ascent_plane, ascent_toy
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, element, html, number
from famr_jax.report.style import colour

MODELS = {"D": "grey", "R": "blue", "DA": "vermillion"}
CELLS = {"H": "vermillion", "A": "green", "B": "purple", "N": "rule"}
LINES = ("green", "purple", "vermillion", "ink")
WIDE = {"width": 500, "height": 300}


def sections(theory: dict[str, Any]) -> list[Html]:
    """One section for each of the three models, from the JSON."""
    return [_orthogonal(theory), _maps(theory["maps"]), _toy(theory["toy"])]


def _orthogonal(theory: dict[str, Any]) -> Html:
    sweep, lemma = theory["sweep"], theory["orthogonal"]
    group = sweep["group"]
    facts = ("points", "in_order", "starts_towards", "ends_nearer", "median_before")
    rows = [
        (name, *(number(lemma["lemma_3"][name][fact]) for fact in facts))
        for name in ("below", "inside", "above")
    ]
    sets = [
        (
            number(row["forget_weight"]),
            number(row["groups_in_range"], "share"),
            number(row["sets_in_range"], "share"),
            number(row["starts_towards"], "share"),
            number(row["nearest_to_before"], "share"),
            number(row["without_minimum"], "share"),
        )
        for row in theory["random_sets"]
    ]
    return page.section(
        "One coordinate: closed forms",
        page.paragraph(
            "Logistic regression with exponential loss on orthogonal groups of samples; alpha is "
            "how many samples of a group are forgotten for each that is retained. Every minimum is "
            f"a value of Lambert's W. Drawn: {number(group['size'])} of "
            f"{number(group['num_retain'])} retained samples in the group, "
            f"{number(group['num_forget'])} forgotten in all, ridge {number(group['l2'])}."
        ),
        page.key(
            ("original, D", "grey"),
            ("oracle, R", "blue"),
            ("descent-ascent, DA", "vermillion"),
            ("DA with weight |F|/|R|", "purple"),
        ),
        page.grid(_minima(sweep), _paths(sweep), width=400),
        page.table(
            ("alpha", "problems", "DA <= D <= R", "first step towards R", "end nearer", "before"),
            rows,
            numeric=range(1, 6),
            caption="All problems of the grid, by where alpha lies: below the range of Lemma 3, in "
            "it, above |F|/|R|. Before: median distance of the original to the oracle.",
        ),
        page.table(
            (
                "weight of ascent",
                "groups in range, %",
                "sets in range, %",
                "first step towards R, %",
                "nearest, %",
                "no minimum, %",
            ),
            sets,
            numeric=range(6),
            caption=f"{theory['random_sets'][0]['draws']} random forget sets, 100 of 1000 samples "
            "in ten groups. Nearest: the least distance to the oracle on the way, as a share of "
            "that at the start; median.",
        ),
    )


def _minima(sweep: dict[str, Any]) -> Html:
    drawing, panel = plot.axes(
        "Where the three minima lie", "weight w of the group", **WIDE, margin=(40, 40, 44, 16)
    )
    alpha = plot.finite(sweep["alpha"])
    for name, tone in MODELS.items():
        width = 3.4 if name == "D" else 2.0
        panel.plot(alpha, plot.finite(sweep["minima"][name]), color=colour(tone), linewidth=width)
    panel.plot(alpha, plot.finite(sweep["rescaled"]), color=colour("purple"), linewidth=1.6)
    panel.set_xlim(0, alpha[-1])
    low, high = panel.get_ylim()
    low -= 0.12 * (high - low)
    edges = [0, *(sweep[name] for name in ("harmful_from", "share", "bounded_to")), alpha[-1]]
    for left in edges[1:-1]:
        panel.axvline(left, color=colour("grey"), linewidth=1, linestyle=(0, (2, 3)))
    words = ("", "away", "towards, past", "no minimum of DA")
    for left, right, word in zip(edges[:-1], edges[1:], words, strict=True):
        style = {"size": plot.FONT, "color": colour("muted"), "ha": "center", "va": "bottom"}
        panel.text((left + right) / 2, low + 0.02 * (high - low), word, **style)
    panel.set_ylim(low, high)
    plot.x_label(panel, "alpha, forgotten over retained samples of the group")
    return page.figure(drawing, "Minima of the original, the oracle and descent-ascent over alpha")


def _paths(sweep: dict[str, Any]) -> Html:
    drawing, panel = plot.axes(
        "Distance to the oracle on the way",
        "in multiples of the distance at the start, logarithmic",
        **WIDE,
        margin=(40, 40, 44, 110),
    )
    ends = []
    for path, tone in zip(sweep["paths"], LINES, strict=False):
        ratio = np.log10(np.array(path["distance"]) / path["distance"][0])
        panel.plot(np.clip(ratio, -1.6, None), color=colour(tone), linewidth=2)
        ends.append((ratio[-1], f"alpha {path['alpha']:g}", tone))
    panel.set_ylim(-1.7, 2.2)
    panel.set_xlim(0, len(ratio) - 1)
    panel.set_yticks((-1, 0, 1, 2), ("0.1", "1", "10", "100"))
    plot.label_ends(panel, ends)
    plot.x_label(panel, "step of descent-ascent")
    return page.figure(drawing, "Distance to the oracle along descent-ascent at four alphas")


def _maps(maps: Sequence[dict[str, Any]]) -> Html:
    shown = [each for each in maps if each["l2"] == maps[0]["l2"]]
    rows = [
        (
            number(each["l2"]),
            number(each["num_forget"]),
            *(number(each["counts"][letter]) for letter in CELLS),
            number(each["ends_farther"]),
            f"{each['lemma_9_violations']} of {each['lemma_9_points']}",
        )
        for each in maps
    ]
    return page.section(
        "Two correlated groups: the (eps, alpha) map",
        page.paragraph(
            "Retained samples (1, eps), forgotten ones (eps, 1). Each cell is a problem solved by "
            "Newton's method, after a scan that decides whether descent-ascent has a minimum."
        ),
        page.key(*((ascent_plane.CELLS[letter], tone) for letter, tone in CELLS.items())),
        page.grid(*(_map(each) for each in shown), width=300),
        page.table(
            ("ridge", "|F|", "away", "DA above D", "D above R", "no minimum", "farther", "Lemma 9"),
            rows,
            numeric=range(8),
            caption="Cells of each kind; those with a minimum of descent-ascent that is farther "
            "from the oracle than the original, in the weights; violations of Lemma 9.",
        ),
    )


def _map(each: dict[str, Any]) -> Html:
    eps, alpha = np.array(each["eps"]), np.array(each["alpha"])
    drawing, panel = plot.axes(
        f"|F| = {each['num_forget']}, ridge {each['l2']:g}", "alpha", margin=(48, 40, 44, 12)
    )
    width, height = eps[1] - eps[0], alpha[1] - alpha[0]
    for letter, tone in CELLS.items():
        for bottom, row in zip(alpha - height / 2, each["map"], strict=True):
            bars = [(eps[i] - width / 2, width * n) for i, n in _runs(row, letter)]
            style = {"facecolor": colour(tone), "edgecolor": colour(tone), "linewidth": 0.5}
            panel.broken_barh(bars, (bottom, height), **style)
    bound = np.array(each["lemma_9"])
    panel.plot(eps, bound, color=colour("ink"), linewidth=1.6, linestyle=(0, (4, 2)))
    panel.grid(visible=False)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, alpha[-1] + height / 2)
    plot.x_label(panel, "eps, overlap; dashed: Lemma 9 speaks above")
    counts = ", ".join(f"{ascent_plane.CELLS[k]}: {n}" for k, n in each["counts"].items())
    return page.figure(drawing, f"Map at |F| = {each['num_forget']}: {counts}")


def _runs(row: str, letter: str) -> list[tuple[int, int]]:
    """Starts and lengths of the runs of a letter."""
    runs, start = [], None
    for i, each in enumerate(row + " "):
        if each == letter and start is None:
            start = i
        elif each != letter and start is not None:
            runs.append((start, i - start))
            start = None
    return runs


def _toy(toy: dict[str, Any]) -> Html:
    rows = [
        (
            each["name"],
            *(html(*map(_minimum, each[kind])) for kind in MODELS),
            "yes" if ascent_toy.traps(each) else "no",
        )
        for each in toy["readings"]
    ]
    return page.section(
        "The toy landscape: trapped",
        page.paragraph(
            f"In our reading, {ascent_toy.OURS.name}: fine-tuning on the retained samples comes "
            f"home if descent-ascent stops by step {number(toy['last_home'])}; from step "
            f"{number(toy['steps'][-1])} it ends where the purple dot is."
        ),
        page.key(
            ("original", "grey"),
            ("oracle", "blue"),
            ("descent-ascent and its end", "vermillion"),
            ("fine-tuning and its end", "purple"),
        ),
        page.grid(
            _landscape("Loss of descent-ascent", "DA", toy["descent_ascent"], "vermillion", toy),
            _landscape("Loss on the retained samples", "R", toy["fine_tuning"], "purple", toy),
            width=400,
        ),
        page.table(
            ("reading of the text", "original", "oracle", "descent-ascent", "the story"),
            rows,
            wide=(0, 1, 2, 3),
            caption="Predicted signs at x = −1, 1, 3, 4, loss and place (a, b) of each minimum; "
            "the last column says whether the reading tells the paper's story.",
        ),
    )


def _minimum(found: dict[str, Any]) -> Html:
    a, b = (number(round(value, 2)) for value in found["point"])
    signs = found["signs"].replace("-", "−")
    return element("div", f"{signs}  {number(found['loss'])} at ({a}, {b})")


def _landscape(title: str, kind: str, path: Sequence, tone: str, toy: dict[str, Any]) -> Html:
    drawing, panel = plot.axes(title, "b", **WIDE, margin=(40, 40, 44, 16))
    a, b = np.linspace(1.8, 3.6, 120), np.linspace(-1.7, -0.1, 120)
    heights = ascent_toy.loss(np.stack(np.meshgrid(a, b), -1), ascent_toy.COPIES[kind])
    levels = np.quantile(heights, np.linspace(0.01, 0.97, 20))
    panel.contour(a, b, heights, levels, colors=colour("grey"), linewidths=0.6)
    points = np.array(path)
    panel.plot(points[:, 0], points[:, 1], color=colour(tone), linewidth=2.2)
    tones = {"D": "grey", "R": "blue", "DA": "vermillion", "fine-tuned": "purple"}
    for name, dot in tones.items():
        x, y = toy["ends"][name]["point"]
        panel.plot(x, y, "o", color=colour(dot), markersize=9, zorder=4)
    panel.grid(visible=False)
    plot.x_label(panel, "a")
    return page.figure(drawing, f"{title}: contours and the path from {path[0]} to {path[-1]}")
