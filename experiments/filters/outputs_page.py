"""What is made of the rows of filters: verdicts, a table and a chart a classifier, headlines."""

from typing import Any

import numpy as np

from experiments.filters import MPRU, OUTPUTS
from experiments.filters.compared import DEPLOYABLE, MASKED, PUBLISHED, TILTED
from experiments.harness.results import Page
from famr_jax import report, statistics
from famr_jax.report import Cell, Column, Section, Table, Text

COLOURS = {
    "original": "grey",
    "oracle": "blue",
    MASKED: "vermillion",
    PUBLISHED: "purple",
    DEPLOYABLE: "green",
}

CHARTS = (
    ("kl_forget", "KL from the oracles, removed class"),
    ("kl_retain", "KL from the oracles, other classes"),
)


def of_classes(results: dict[str, Any], classifier: str) -> dict[str, dict[str, np.ndarray]]:
    """By model and number the mean over seeds of each class."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in results["rows"]:
        if row["classifier"] != classifier:
            continue
        model = found.setdefault(row["model"], {})
        for key, values in row.items():
            if key not in ("classifier", "removed", "model"):
                model.setdefault(key, []).append(float(np.mean(values)))
    return {m: {k: np.array(v) for k, v in numbers.items()} for m, numbers in found.items()}


def classifiers(results: dict[str, Any]) -> list[str]:
    """Those of the rows, in their order."""
    return list(dict.fromkeys(row["classifier"] for row in results["rows"]))


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Whether MPRU ends near retrained models, and what masking, labels and a tilt come to.

    Signs are of means over the classes whose 95 % interval leaves out 0, from three classes on; a
    claim holds where they agree for every classifier.
    """
    tilted = f"{TILTED} {flags['betas'][-1]:g}"
    every = {name: of_classes(results, name) for name in classifiers(results)}
    near, told = [], []
    for name, models in every.items():
        if "oracle" not in models:
            continue
        deployed, floor = models[DEPLOYABLE], models["oracle"]
        far = _sign(deployed["kl_forget"] - floor["kl_forget"])
        costs = _sign(floor["acc_retain"] - deployed["acc_retain"])
        near.append(None if far is None else -1 if far > 0 or costs > 0 else 1)
        numbers = ", ".join(
            f"{label} {models[model]['kl_forget'].mean():.3f}"
            for label, model in (
                ("MPRU", DEPLOYABLE),
                ("as published", PUBLISHED),
                ("masking", MASKED),
                ("one oracle to the others", "oracle"),
            )
        )
        accuracy = " and ".join(
            f"{100 * models[m]['acc_retain'].mean():.1f}" for m in (DEPLOYABLE, "oracle")
        )
        whole = models["original"]["kl_forget_all"].mean()
        told.append(
            f"{name}, {len(floor['kl_forget'])} classes: KL from the oracles on the removed class "
            f"{numbers} nats (doing nothing {whole:.2f} over all classes); retained accuracy "
            f"{accuracy} %"
        )
    made = [MPRU.judge("near", _verdict(near), f"{'; '.join(told) or 'No two oracles'}.")]
    for claim, more, less in (
        ("masking", MASKED, DEPLOYABLE),
        ("labels", DEPLOYABLE, PUBLISHED),
        ("tilt", MASKED, tilted),
    ):
        signs, told = [], []
        for name, models in every.items():
            apart = models[more]["kl_forget"] - models[less]["kl_forget"]
            signs.append(_sign(apart))
            told.append(f"{name} {_spread(apart)}")
        words = f"KL from the oracles on the removed class, {more} less {less}, in nats over the "
        words += f"classes: {'; '.join(told)}."
        made.append(OUTPUTS.judge(claim, _verdict(signs), words))
    return made


def _sign(values):
    """1, -1 or 0, or None of too few classes."""
    return statistics.sign(statistics.spread(values)) if len(values) >= 3 else None


def _verdict(signs):
    known = {sign for sign in signs if sign is not None}
    if not known or known == {0}:
        return "not resolved"
    return {(1,): "holds", (-1,): "fails"}.get(tuple(known), "mixed")


def _spread(values):
    found = statistics.spread(values)
    if found["interval"] is None:
        return f"{found['mean']:+.3f} (n = 1)"
    low, high = found["interval"]
    return f"{found['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, n = {found['n']})"


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each classifier and model, and one for the seconds of each classifier."""
    results, lines = content["results"], []
    for name in classifiers(results):
        models = of_classes(results, name)
        for model, numbers in models.items():
            lines.append(
                f"{name:<16} {model:<20} {numbers['kl_forget'].mean():7.3f} "
                f"{numbers['kl_retain'].mean():7.3f} {100 * numbers['acc_retain'].mean():6.1f}"
            )
        if "oracle" in models:
            lines.append(f"{name:<16} {_seconds(models)}")
    return lines


def _seconds(models):
    slowest = max(numbers["seconds"].mean() for numbers in models.values() if "seconds" in numbers)
    retrain = models["oracle"]["retrain"].mean()
    return f"retraining {retrain:.2g} s, the slowest filter {slowest:.2g} s"


def page(content: dict[str, Any]) -> Page:
    """A table and a chart for each classifier."""
    results, sections = content["results"], []
    for name in classifiers(results):
        models = of_classes(results, name)
        rows = [_row(model, numbers) for model, numbers in models.items()]
        columns = {
            "model": Column(""),
            "forget": Column("KL, removed class, nats", "nats"),
            "retain": Column("KL, other classes, nats", "nats"),
            "accuracy": Column("Accuracy, other classes, %", "share"),
            "seconds": Column("Seconds"),
        }
        caption = (
            "Mean and standard deviation over the classes, each the mean of its seeds, on test "
            "examples. KL(oracle||model) over the kept classes, renormalised, zeros counted as "
            "1e-12; of an oracle to the others."
        )
        charts = [_chart(results, name, models, *each) for each in CHARTS]
        told = [Text(f"{_seconds(models).capitalize()}.")] if "oracle" in models else []
        sections.append(Section(name, [Table(rows, columns, caption), report.Grid(charts), *told]))
    lead = (
        f"One class at a time is removed from {results['seeds']} originals by a filter of their "
        f"outputs, beside {results['oracles']} classifiers trained without it."
    )
    return Page("Filters of outputs", lead, sections)


def _chart(results, name, models, key, title):
    last = [model for model in models if model.startswith(TILTED)][-1:]
    wanted = [model for model in ("oracle", MASKED, DEPLOYABLE, *last) if model in models]
    dots = [
        {
            "class": str(row["removed"]),
            "KL": float(np.mean(row[key])),
            "model": row["model"],
        }
        for row in results["rows"]
        if row["classifier"] == name and row["model"] in wanted
    ]
    return report.dots(
        dots,
        "class",
        "KL",
        by="model",
        title=title,
        unit="nats",
        y_range=(0, None),
        colours=COLOURS | dict.fromkeys(last, "orange"),
        width=345,
        height=250,
    )


def _row(model, numbers):
    def spread(key):
        found = statistics.spread(numbers[key])
        return {"mean": found["mean"], "sd": found["sd"]}

    seconds = numbers.get("seconds", numbers.get("retrain"))
    return {
        "model": Cell(model, colour=COLOURS.get(model)),
        "forget": spread("kl_forget"),
        "retain": spread("kl_retain"),
        "accuracy": spread("acc_retain"),
        "seconds": None if seconds is None else float(seconds.mean()),
    }
