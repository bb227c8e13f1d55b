"""The report of ascent_fails: claims, closed forms, maps, landscape and the random forget set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import ascent_plane, ascent_toy
from famr_jax.metrics import prediction_interval
from famr_jax.report import page, plot
from famr_jax.report.page import Html, element, html, number
from famr_jax.report.style import colour

TITLE = "Ascent on the forget set, against retraining"
TONES = {"holds": "good", "fails": "bad"}
MODELS = {"D": "grey", "R": "blue", "DA": "vermillion"}
CELLS = {"H": "vermillion", "A": "green", "B": "purple", "N": "rule"}
STEPS = ("green", "purple", "vermillion", "ink", "grey", "blue")
WIDE = {"width": 500, "height": 300}


def report(content: dict[str, Any]) -> str:
    """The whole page from the JSON, self-contained."""
    results = content["results"]
    parts = []
    if "theory" in results:
        theory = results["theory"]
        parts += [_orthogonal(theory), _maps(theory["maps"]), _toy(theory["toy"])]
    if "random" in results:
        parts.append(_random(results["random"]))
    lead = (
        "Raising the loss of the forget set, with or without lowering that of the retained set, "
        "against models that never saw the forget set."
    )
    return page.page(
        TITLE,
        element("h1", TITLE),
        page.paragraph(lead, kind="lead"),
        *(_claim(made) for made in content["claims"]),
        *parts,
        page.section("How this was made", _facts(content["config"])),
    )


def _claim(made: dict[str, str]) -> Html:
    badge = page.badge(made["verdict"], TONES.get(made["verdict"], ""))
    return html(
        page.paragraph(element("b", made["claim"]), " ", badge),
        page.paragraph(made["words"], kind="note"),
    )


def _facts(config: dict[str, Any]) -> Html:
    environment, seconds = config["environment"], config["seconds"]
    facts = page.facts(
        [
            ("device", environment["device"]),
            ("source", environment["source"]),
            ("seconds running", number(seconds["run"])),
            ("seconds compiling", number(seconds["compile"])),
        ]
    )
    return html(page.paragraph(element("code", config["command"])), facts)


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
    for path, tone in zip(sweep["paths"], STEPS, strict=False):
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


def _random(result: dict[str, Any]) -> Html:
    summary, eps, oracles = result["summary"], result["eps"], result["oracles"]
    dataset, model = result["bench"]["dataset"], result["bench"]["model"]
    original, mean, chosen = result["original"], summary["oracle_mean"], summary["chosen"]
    methods = {path["method"]: [] for path in result["paths"]}
    for path in result["paths"]:
        methods[path["method"]].append(path)
    percent = lambda value: f"{number(value, 'share')} %"  # noqa: E731
    both = lambda of: f"{number(of.get('for_tv'))} and {number(of.get('test_tv'))}"  # noqa: E731
    grids = [
        page.grid(*(_curves(*each, result, metric) for each in methods.items()), width=330)
        for metric in ("for_acc", "test_tv")
    ]
    return page.section(
        "A random forget set",
        page.paragraph(
            f"{model['name']} on {dataset['name']}, {number(dataset['num_classes'])} classes: "
            f"{number(result['num_forget'])} training images drawn at random are forgotten, "
            f"{number(result['num_retain'])} retained; {number(result['num_test'])} test images. "
            f"{len(oracles)} oracles score {percent(mean['for_acc'])} on the forget set and "
            f"{percent(mean['test_acc'])} on the test set, the original "
            f"{percent(original['for_acc'])} and {percent(original['test_acc'])}. Hoeffding's "
            f"bound is {percent(eps['forget'])} for the forget set, {percent(eps['difference'])} "
            "for the difference of the two accuracies."
        ),
        page.key(
            ("For-Acc of one more oracle, 95 % prediction interval", "blue"),
            ("oracles' Test-Acc and Hoeffding's interval for For-Acc", "grey"),
        ),
        page.paragraph("The upright line marks where the ascent stops.", kind="note"),
        grids[0],
        page.paragraph(
            "Below, the distance to the oracles on the test set, in mean total variation: a "
            "measure that does not look at For-Acc. Dotted: from oracle to oracle. Of "
            f"{number(summary['points'])} points, fine-tuning apart, "
            f"{number(summary['nearer']['test_tv'])} are nearer to the oracles than the original "
            f"is, and {number(summary['nearer']['for_tv'])} on the forget set."
        ),
        grids[1],
        page.paragraph(
            f"A search by For-Acc would choose {chosen['method']} with step {chosen['lr']:g} at "
            f"epoch {chosen['epoch']}: For-Acc {percent(chosen['for_acc'])}. Its distances to the "
            f"oracles on the forget and the test set are {both(chosen)}; doing nothing has "
            f"{both(original)}, one oracle to another {both(mean)}. Nothing is selected here: the "
            "whole grid is shown."
        )
        if chosen
        else "",
        _ends(result),
    )


def _curves(title: str, paths: Sequence[dict], result: dict[str, Any], metric: str) -> Html:
    share = metric == "for_acc"
    scale, words = (100, "forget accuracy, %") if share else (1, "TV to the oracles, test set")
    drawing, panel = plot.axes(title, words, margin=(40, 40, 44, 84))
    known = [oracle[metric] for oracle in result["oracles"] if metric in oracle]
    values = [scale * np.array(path[metric]) for path in paths if metric in path]
    top = max([*np.concatenate(values), *(scale * value for value in known)]) if values else 1
    panel.set_ylim(0, 1.05 * top)
    if share:
        test, eps = result["summary"]["oracle_mean"]["test_acc"], result["eps"]["difference"]
        band = {"facecolor": colour("grey"), "alpha": 0.2, "linewidth": 0}
        panel.axhspan(100 * (test - eps), 100 * (test + eps), **band)
    if len(known) > 1 and share:
        low, high = prediction_interval(known)
        band = {"facecolor": colour("blue"), "alpha": 0.3, "linewidth": 0}
        panel.axhspan(100 * low, 100 * high, **band)
    elif known:
        panel.axhline(np.mean(known), color=colour("blue"), linestyle=(0, (1, 2)))
    ends = []
    for path, drawn, tone in zip(paths, values, STEPS, strict=False):
        panel.plot(drawn, color=colour(tone), linewidth=2, marker="o", markersize=3)
        ends.append((drawn[-1], f"lr {path['lr']:g}" + ("" if path["finite"] else " †"), tone))
    last = max(len(drawn) for drawn in values) - 1
    if "forget_weight" in paths[0] and result["ascent_epochs"] < last:
        panel.axvline(result["ascent_epochs"], color=colour("grey"), linewidth=1)
    panel.set_xlim(0, max(last, 1))
    panel.set_xticks(np.unique(np.linspace(0, last, 6).round()))
    plot.label_ends(panel, ends)
    plot.x_label(panel, "epoch (0 = original)")
    return page.figure(drawing, f"{title}, {words}, along the epochs")


def _ends(result: dict[str, Any]) -> Html:
    names = ("for_acc", "ret_acc", "test_acc", "for_tv", "test_tv")

    def cells(entry):
        return [number(entry.get(n), "share" if n.endswith("acc") else "") for n in names]

    mean = {n: float(np.mean([o[n] for o in result["oracles"]])) for n in result["oracles"][0]}
    rows = [
        ("original", None, *cells(result["original"])),
        (f"oracle, mean of {len(result['oracles'])}", None, *cells(mean)),
    ]
    for path in result["paths"]:
        end = {n: path[n][-1] for n in names if n in path}
        name = path["method"] + ("" if path["finite"] else " †")
        rows.append((name, f"{path['lr']:g}", *cells(end)))
    n = f"N = {result['num_forget']}, {result['num_watched_retain']}, {result['num_test']}"
    return page.table(
        ("", "step", "For-Acc, %", "Ret-Acc, %", "Test-Acc, %", "TV, forget", "TV, test"),
        rows,
        numeric=range(1, 7),
        caption=f"Every run at its last epoch; {n} images. TV: mean total variation to the "
        "oracles, of the oracles to one another. † stopped because a number was not finite.",
    )
