"""The page of federated_unlearning: ways back by round, rounds, and every measure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.federated.judging import AS_LONG, column
from experiments.federated.recovery import METHODS
from experiments.harness.results import Page
from famr_jax.report import Column, Grid, Section, Table, Text, dots, lines, number, palette

COLUMNS = {
    "for_acc": ("For-Acc", "share"),
    "test_acc": ("Test-Acc", "share"),
    "ret_acc": ("Ret-Acc", "share"),
    "kl_forget": ("KL to oracle, forget", "nats"),
    "kl_test": ("KL to oracle, test", "nats"),
    "yeom": ("Yeom: called members", "share"),
    "svc_attack": ("SVC: called non-members", "share"),
    "backdoor": ("Trigger's success", "share"),
}
STAGES = {
    "unlearned": "Right after the unlearning",
    "retrained": "Recovered: test accuracy is that of the retrained models",
    "own": "Recovered: accuracy on the remaining clients' data is back, no retrained model needed",
}


def page(content: Mapping[str, Any]) -> Page:
    """A section for each split."""
    results, flags = content["results"], content["config"]["flags"]
    dataset = results["dataset"]
    lead = (
        f"{results['model']['name']} on {dataset['name']}, {number(dataset['num_train'])} training "
        f"images shared out over {flags['clients']} clients; each client is forgotten in turn, "
        "then the others go on by federated averaging."
    )
    sections = [_section(split, flags) for split in results["splits"]]
    return Page("Forgetting a client of a federation", lead, sections)


def _section(split, flags):
    sizes = split["forgotten"]
    told = (
        f"{len(sizes)} cases: {flags['seeds']} seeds, forgotten clients of {min(sizes)} to "
        f"{max(sizes)} images. Oracles a case: {flags['oracles']}."
    )
    tones = palette(METHODS)
    charts = [
        _ways(split, "for_acc", "The forgotten client's images", tones),
        _ways(split, "test_acc", "Test images", tones),
    ]
    tables = [
        Section(f"{title} ({split['split']})", [_table(split, stage)])
        for stage, title in STAGES.items()
    ]
    shown = [Text(told), Grid(charts, width=430), _rounds(split, tones), *tables]
    return Section(f"Clients: {split['split']}", shown)


def _ways(split, name, title, tones):
    rows = [
        {"model": way["model"], "round": number, name: value}
        for way in split["paths"]
        for number, value in zip(way["round"], way[name], strict=True)
    ]
    levels = [
        (float(np.mean(column(split, model, "", name))), model) for model in ("original", "oracle")
    ]
    return lines(
        rows,
        "round",
        name,
        by="model",
        title=title,
        unit="share",
        words="accuracy, %",
        x_words="rounds (0 = original; 1 = the unlearning round)",
        levels=levels,
        colours=tones,
        y_range=(None, 1),
        key=True,
    )


def _rounds(split, tones):
    rows = [
        {"model": method, "rounds": value}
        for method in ("oracle", *METHODS)
        for value in column(split, method, "retrained", "rounds")
    ]
    return dots(
        rows,
        "model",
        "rounds",
        "model",
        title="Rounds until test accuracy is that of the retrained models",
        words="rounds",
        y_range=(0, None),
        colours=tones | {"oracle": "blue"},
        caption="A dot a case; those that never got there are left out.",
        width=760,
    )


def _table(split, stage):
    models = ["original", "oracle", "null", *METHODS, *([AS_LONG] if stage == "retrained" else [])]
    taken = [name for name in COLUMNS if column(split, "original", "", name) is not None]
    rows = []
    for model in models:
        at = "" if model in models[:3] else stage
        row: dict[str, Any] = {"model": model}
        for name in taken:
            values = column(split, model, at, name)
            if values is not None:
                row[name] = float(np.nanmean(values))
        counts = column(split, model, stage, "rounds")
        if counts is not None:
            row["rounds"] = float(np.nanmean(counts)) if np.isfinite(counts).any() else None
            row["missed"] = int(np.isnan(counts).sum())
        rows.append(row)
    columns = {"model": ""} | {name: Column(*COLUMNS[name]) for name in taken}
    if stage != "unlearned":
        columns |= {"rounds": "rounds, of those that got there", "missed": "never got there"}
    caption = (
        "Means over the cases. Null: the distance of an oracle to the other oracles' mean; for KL "
        "it is the oracles' own row."
    )
    return Table(rows, columns, caption)
