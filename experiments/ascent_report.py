"""The report of ascent_fails: claims, closed forms, maps, landscape and the random forget set."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from experiments import ascent_report_theory, curves
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, number
from famr_jax.report.style import colour
from famr_jax.statistics import prediction_interval

TITLE = "Ascent on the forget set, against retraining"
LINES = ("green", "purple", "vermillion", "ink", "grey", "blue")


def report(content: dict[str, Any]) -> str:
    """The whole page from the JSON, self-contained."""
    results = content["results"]
    parts = []
    if "theory" in results:
        parts += ascent_report_theory.sections(results["theory"])
    if "random" in results:
        parts.append(_random(results["random"]))
    lead = (
        "Raising the loss of the forget set, with or without lowering that of the retained set, "
        "against models that never saw the forget set."
    )
    return curves.report(content, TITLE, lead, *parts)


def _random(result: dict[str, Any]) -> Html:
    summary, eps, oracles = result["summary"], result["eps"], result["oracles"]
    dataset, model = result["bench"]["dataset"], result["bench"]["model"]
    original, mean, chosen = result["original"], summary["oracle_mean"], summary["chosen"]
    methods = {path["method"]: [] for path in result["paths"]}
    for path in result["paths"]:
        methods[path["method"]].append(path)
    percent = lambda value: f"{number(value, 'share')}\u202f%"  # noqa: E731
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
    values = [scale * np.array(path[metric]) for path in paths]
    top = max([*np.concatenate(values), *(scale * value for value in known)])
    panel.set_ylim(0, 1.05 * top)
    if share:
        test, eps = result["summary"]["oracle_mean"]["test_acc"], result["eps"]["difference"]
        band = {"facecolor": colour("grey"), "alpha": 0.2, "linewidth": 0}
        panel.axhspan(100 * (test - eps), 100 * (test + eps), **band)
        panel.axhline(100 * test, color=colour("grey"), linewidth=1)
    if len(known) > 1 and share:
        low, high = prediction_interval(known)
        band = {"facecolor": colour("blue"), "alpha": 0.3, "linewidth": 0}
        panel.axhspan(100 * low, 100 * high, **band)
    elif known:
        panel.axhline(np.mean(known), color=colour("blue"), linestyle=(0, (1, 2)))
    ends = []
    for path, drawn, tone in zip(paths, values, cycle(LINES), strict=False):
        panel.plot(drawn, color=colour(tone), linewidth=2, marker="o", markersize=3)
        ends.append((drawn[-1], f"lr {path['lr']:g}" + ("" if path["finite"] else " †"), tone))
    last = max(len(drawn) for drawn in values) - 1
    if "forget_weight" in paths[0] and result["ascent_epochs"] < last:
        panel.axvline(result["ascent_epochs"], color=colour("grey"), linewidth=1)
    panel.set_xlim(0, max(last, 1))
    panel.set_xticks(np.unique(np.linspace(0, last, 6).round()))
    plot.label_ends(panel, ends)
    plot.x_label(panel, "epoch (0 = original)")
    told = "; ".join(
        f"step {path['lr']:g}: " + ", ".join(f"{value:.3g}" for value in drawn)
        for path, drawn in zip(paths, values, strict=True)
    )
    return page.figure(drawing, f"{title}, {words}, along the epochs. {told}")


def _ends(result: dict[str, Any]) -> Html:
    names = ("for_acc", "ret_acc", "test_acc", "for_tv", "test_tv")

    def cells(entry):
        return [number(entry.get(n), "share" if n.endswith("acc") else "") for n in names]

    rows = [
        ("original", None, *cells(result["original"])),
        (
            f"oracle, mean of {len(result['oracles'])}",
            None,
            *cells(result["summary"]["oracle_mean"]),
        ),
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
