"""The page of ascent_fails: the solvable models, and the random forget set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.ascent import models_page
from experiments.harness.results import Page
from famr_jax import report
from famr_jax.report import Column, Drawing, Grid, Key, Section, Table, Text, number
from famr_jax.statistics import prediction_interval


def page(content: dict[str, Any]) -> Page:
    """The page from the JSON: a section for each model that was solved, and the random set."""
    results, blocks = content["results"], []
    if "theory" in results:
        blocks += models_page.sections(results["theory"])
    if "random" in results:
        blocks.append(_random(results["random"]))
    return Page(
        "Ascent on the forget set, against retraining",
        "Raising the loss of the forget set, with or without lowering that of the retained set, "
        "against models that never saw the forget set.",
        blocks,
    )


def _random(result: dict[str, Any]) -> Section:
    summary, eps, oracles = result["summary"], result["eps"], result["oracles"]
    dataset, model = result["bench"]["dataset"], result["bench"]["model"]
    original, mean = result["original"], summary["oracle_mean"]
    methods = {path["method"]: [] for path in result["paths"]}
    for path in result["paths"]:
        methods[path["method"]].append(path)
    accuracies, distances = (
        Grid([_curves(*each, result, metric) for each in methods.items()], width=310)
        for metric in ("for_acc", "test_tv")
    )
    return Section(
        "A random forget set",
        [
            Text(
                f"{model['name']} on {dataset['name']}, {number(dataset['num_classes'])} classes: "
                f"{number(result['num_forget'])} training images drawn at random are forgotten, "
                f"{number(result['num_retain'])} retained; {number(result['num_test'])} test "
                f"images. {len(oracles)} oracles score {_percent(mean['for_acc'])} on the forget "
                f"set and {_percent(mean['test_acc'])} on the test set, the original "
                f"{_percent(original['for_acc'])} and {_percent(original['test_acc'])}. "
                f"Hoeffding's bound is {_percent(eps['forget'])} for the forget set, "
                f"{_percent(eps['difference'])} for the difference of the two accuracies."
            ),
            Key(
                {
                    "For-Acc of one more oracle, 95 % prediction interval": "blue",
                    "oracles' Test-Acc and Hoeffding's interval for For-Acc": "grey",
                }
            ),
            Text("The dotted upright line marks where the ascent stops.", kind="note"),
            accuracies,
            Text(
                "Below, the distance to the oracles on the test set, in mean total variation: a "
                "measure that does not look at For-Acc. Dotted: from oracle to oracle. Of "
                f"{number(summary['points'])} points, fine-tuning apart, "
                f"{number(summary['nearer']['test_tv'])} are nearer to the oracles than the "
                f"original is, and {number(summary['nearer']['for_tv'])} on the forget set."
            ),
            distances,
            *([_chosen(result)] if summary["chosen"] else []),
            _last_epochs(result),
        ],
    )


def _chosen(result: dict[str, Any]) -> Text:
    chosen, mean = result["summary"]["chosen"], result["summary"]["oracle_mean"]
    ours, nothing, null = (
        f"{number(of.get('for_tv'))} and {number(of.get('test_tv'))}"
        for of in (chosen, result["original"], mean)
    )
    return Text(
        f"A search by For-Acc would choose {chosen['method']} with step {chosen['lr']:g} at epoch "
        f"{chosen['epoch']}: For-Acc {_percent(chosen['for_acc'])}. Its distances to the oracles "
        f"on the forget and the test set are {ours}; doing nothing has {nothing}, one oracle to "
        f"another {null}. Nothing is selected here: the whole grid is shown."
    )


def _curves(method: str, paths: Sequence[dict], result: dict[str, Any], metric: str) -> Drawing:
    share = metric == "for_acc"
    known = [oracle[metric] for oracle in result["oracles"] if metric in oracle]
    test, eps = result["summary"]["oracle_mean"]["test_acc"], result["eps"]["difference"]
    bands, levels = [], []
    if share:
        bands, levels = [(test - eps, test + eps, "grey")], [(test, "Test-Acc", "grey")]
    if share and len(known) > 1:
        least = 1 / result["num_forget"]
        bands.append((*prediction_interval(known, resolution=least), "blue"))
    elif known:
        levels.append((float(np.mean(known)), "oracles", "blue"))
    rows = [
        {"epoch": epoch, "lr": path["lr"], metric: value, "end": f"lr {path['lr']:g}{_mark(path)}"}
        for path in paths
        for epoch, value in enumerate(path[metric])
    ]
    last = max(row["epoch"] for row in rows)
    stops = "forget_weight" in paths[0] and result["ascent_epochs"] < last
    return report.lines(
        rows,
        "epoch",
        metric,
        by="lr",
        label="end",
        title=method,
        unit="share" if share else "",
        words="forget accuracy, %" if share else "TV to the oracles, test set",
        x_words="epoch (0 = original)",
        band=bands or None,
        levels=levels,
        x_levels=[(result["ascent_epochs"], "")] if stops else [],
        y_range=(0, None),
        fit_bands=False,
        width=345,
        height=250,
    )


def _last_epochs(result: dict[str, Any]) -> Table:
    columns = {
        "name": "",
        "lr": "step",
        "for_acc": Column("For-Acc, %", "share"),
        "ret_acc": Column("Ret-Acc, %", "share"),
        "test_acc": Column("Test-Acc, %", "share"),
        "for_tv": "TV, forget",
        "test_tv": "TV, test",
    }
    oracles = f"oracle, mean of {len(result['oracles'])}"
    rows = [{"name": "original"} | result["original"]]
    rows.append({"name": oracles} | result["summary"]["oracle_mean"])
    for path in result["paths"]:
        end = {n: path[n][-1] for n in columns if isinstance(path.get(n), list)}
        rows.append({"name": path["method"] + _mark(path), "lr": f"{path['lr']:g}"} | end)
    n = f"N = {result['num_forget']}, {result['num_watched_retain']}, {result['num_test']}"
    return Table(
        rows,
        columns,
        caption=f"Every run at its last epoch; {n} images. TV: mean total variation to the "
        "oracles, of the oracles to one another. † stopped because a number was not finite.",
    )


def _percent(value: float) -> str:
    return f"{number(value, 'share')}\u202f%"


def _mark(path: dict[str, Any]) -> str:
    return "" if path["finite"] else " †"
