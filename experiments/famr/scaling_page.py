"""The page of architecture_scaling: curves by epoch for each axis, probes, and the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.results import Page
from famr_jax import report
from famr_jax.report import Column, Drawing, Grid, Section, Table, Text, interval, number
from famr_jax.statistics import prediction_interval, resolution_of, widened

AXES = ("size", "width", "depth")
ROLES = {"original": "original", "famr": "FAMR", "oracle": "oracle"}
LEAD = (
    "Models of several sizes, each trained to the same accuracy on held-out images, forget one "
    "class by FAMR at one setting. Beside them: themselves before, and models retrained without "
    "the class to the same accuracy (the oracles)."
)
Rows = Sequence[Mapping[str, Any]]


def page(content: Mapping[str, Any]) -> Page:
    """Curves and probes along each axis, and the numbers of every model."""
    results = content["results"]
    rows, dataset = results["models"], results["dataset"]
    told = (
        f"{dataset['name']}, {number(dataset['num_classes'])} classes; "
        f"{number(results['num_train'])} images train, {number(results['num_forget'])} of them are "
        f"forgotten; training stops at the first epoch that reaches "
        f"{number(results['target'], 'share')}\u202f% on {number(results['num_held_out'])} "
        f"held-out images. {rows[0]['ends']['famr']['for_acc']['n']} seeds a model, each an "
        "original, FAMR from it, and an oracle."
    )
    axes = [along(results, axis) for axis in results["axes"]]
    tables = [training_table(rows), ends_table(rows), probes_table(results)]
    title = "Does a larger model forget more completely?"
    return Page(title, LEAD, [Text(told), *axes, Section("The numbers", tables)])


def along(results: Mapping[str, Any], axis: str) -> Section:
    """One axis: what the largest model adds to the smallest, curves by epoch, and the probes."""
    names, trend = results["axes"][axis], results["trends"][axis]["for_acc"]
    rows = [row for name in names for row in results["models"] if row["model"] == name]
    points = f"{number(trend['mean'], 'points')} points"
    if pair := widened(trend["interval"], 1 / results["num_forget"]):
        points += f" (95 % interval {interval(pair, 'points')})"
    told = (
        f"For-Acc after FAMR, {names[-1]} less {names[0]}: {points}. Lines are means over the "
        "seeds; shaded is one standard deviation either way; in blue the 95 % prediction interval "
        "of one more oracle, of any of these models."
    )
    forgotten, kept = results["num_forget"], results["num_train"] - results["num_forget"]
    chance, most = (results["chance"], "chance"), (results["max_entropy"], "log C")
    charts = [
        by_epoch(rows, "for_acc", "For-Acc", "share", "% of the forget set", chance, n=forgotten),
        by_epoch(rows, "ret_acc", "Ret-Acc", "share", "% of retained images", n=kept),
        by_epoch(rows, "entropy", "Entropy on the forget set", "nats", "nats", most, n=forgotten),
        probes_chart(rows),
    ]
    return Section(f"By {axis}", [Text(told), Grid(charts, width=440)])


def by_epoch(
    rows: Rows, name: str, title: str, unit: str, words: str, *levels: tuple, n: int
) -> Drawing:
    """One measure of n images, from the original on, beside the oracles of all models."""
    oracles = [value for row in rows for value in row["ends"]["oracle"][name]["values"]]
    points = [
        {"model": row["model"], "epoch": epoch, name: np.mean(seeds), "sd": np.std(seeds, ddof=1)}
        for row in rows
        for epoch, seeds in enumerate(row["curves"][name])
    ]
    return report.lines(
        points,
        "epoch",
        name,
        by="model",
        title=title,
        unit=unit,
        words=words,
        x_words="epoch of FAMR (0 = original)",
        spread="sd",
        band=prediction_interval(oracles, resolution=resolution_of(unit, n)),
        levels=[(float(np.mean(oracles)), "oracles"), *levels],
        y_range=(0, None),
    )


def probes_chart(rows: Rows) -> Drawing:
    """What the probe finds, model by model: every seed a dot, means as bars."""
    points = [
        {"model": row["model"], "role": words, "probe": value}
        for row in rows
        for role, words in ROLES.items()
        for value in row["probes"][role]["forgotten"]["values"]
    ]
    return report.dots(
        points,
        "model",
        "probe",
        by="role",
        title="What features still know",
        unit="share",
        words="% balanced accuracy of a linear probe for the class",
        levels=[(0.5, "chance")],
        y_range=(0.45, 1.0),
        colours={"FAMR": "vermillion"},
    )


def training_table(rows: Rows) -> Table:
    """When each seed reached the accuracy, and with what."""
    columns = {"model": "model", "num_params": "weights"}
    table = [{name: row[name] for name in columns} for row in rows]
    for role in ("original", "oracle"):
        columns |= {f"{role} epoch": f"{role}s: epoch", role: Column("held-out, %", "share")}
        for line, row in zip(table, rows, strict=True):
            found = row["training"][role]
            epochs = ", ".join(map(str, found["epoch"]))
            line |= {f"{role} epoch": epochs, role: found["accuracy"]}
    caption = (
        "Epoch at which each seed reached the accuracy (0: it did not), and the accuracy there, "
        "mean ± standard deviation. Oracles: held-out images of the other classes."
    )
    return Table(table, columns, caption)


def ends_table(rows: Rows) -> Table:
    """Every measure of every model in its three roles."""
    columns = {
        "name": "",
        "for_acc": Column("For-Acc, %", "share"),
        "for_test": Column("For-Acc (test), %", "share"),
        "ret_acc": Column("Ret-Acc, %", "share"),
        "ret_test": Column("Ret-Acc (test), %", "share"),
        "entropy": Column("entropy", "nats"),
    }
    table = [
        row["ends"][role] | {"name": f"{row['model']}, {words}"}
        for row in rows
        for role, words in ROLES.items()
    ]
    return Table(table, columns, "Mean ± standard deviation over the seeds.")


def probes_table(results: Mapping[str, Any]) -> Table:
    """What linear probes find in the features of every model in its three roles."""
    columns, table = {"model": "probe, %"}, [{"model": r["model"]} for r in results["models"]]
    for what, short in (("forgotten", "class"), ("all classes", "all")):
        for role, words in ROLES.items():
            columns[what + role] = Column(f"{short}: {words}", "share")
            for line, row in zip(table, results["models"], strict=True):
                line[what + role] = row["probes"][role][what]
    caption = (
        "Balanced accuracy of logistic regression on the features that the head sees, over 5 folds "
        f"of {number(results['num_probed'])} images that no model was trained on, "
        f"{number(results['num_probed_forgotten'])} of the forgotten class. Class: it against the "
        f"rest, chance 50 %. All: all classes, chance {number(results['chance'], 'share')} %."
    )
    return Table(table, columns, caption)
