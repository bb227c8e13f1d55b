"""The page of lambda_sweep: trade-off curves, measures by lam, and the table."""

from collections.abc import Mapping
from typing import Any

from experiments.harness.results import Page
from famr_jax import report
from famr_jax.report import Column, Drawing, Grid, Key, Mark, Section, Table, Text, number

COLUMNS = {
    "for_acc": Column("For-Acc, %", "share"),
    "ret_acc": Column("Ret-Acc, %", "share"),
    "test_acc": Column("Test-Acc, %", "share"),
    "entropy": Column("entropy", "nats"),
    "uniform_kl": Column("KL(u‖p)", "nats"),
    "kl_forget": Column("KL to oracle, forget", "nats"),
    "kl_test": Column("KL to oracle, test", "nats"),
    "distance": Column("distance", ""),
}


def means(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of spreads as one of means; what is a number stays."""
    return {n: value["mean"] if isinstance(value, Mapping) else value for n, value in row.items()}


def page(content: Mapping[str, Any]) -> Page:
    """Trade-off curves, measures by lam, and the table of each forget set."""
    results = content["results"]
    dataset, model = results["dataset"], results["model"]
    told = (
        f"{model['name']} ({number(model['num_params'])} weights) on {dataset['name']}, "
        f"{number(dataset['num_classes'])} classes."
    )
    lead = (
        "FAMR at several strengths of its anchor, from one trained model: how much it forgets and "
        "how much it keeps, epoch by epoch, beside models retrained without the forget set."
    )
    cases = [_section(case, results["judged_at"]) for case in results["cases"]]
    return Page("What lam trades", lead, [Text(told), *cases])


def _section(case, epoch):
    told = (
        f"{number(case['num_forget'])} images are forgotten, {number(case['num_retain'])} retained "
        f"(Ret-Acc over {number(case['ret_acc_n'])} of them, Test-Acc over "
        f"{number(case['test_acc_n'])} test images of what is retained). Every lam ran under the "
        f"same {case['rows'][0]['for_acc']['n']} orders of the batches; oracles: "
        f"{case['oracles']['for_acc']['n']}."
    )
    best = ["the original"] * case["original_on_front"]
    for at in sorted({row["epoch"] for row in case["front"]}):
        lams = ", ".join(f"{row['lam']:g}" for row in case["front"] if row["epoch"] == at)
        best.append(f"lam {lams} at epoch {at}")
    front = (
        "Not to be bettered in both, nearness of For-Acc to the oracles' mean and Ret-Acc (means "
        f"over the orders; ringed below): {'; '.join(best)}."
    )
    paths = [
        trade_off(case, "for_acc", "% of the forget set recognised"),
        trade_off(case, "entropy", "entropy on the forget set, nats"),
    ]
    charts = [
        by_lam(case, epoch, "for_acc", "For-Acc", "% of the forget set"),
        by_lam(case, epoch, "ret_acc", "Ret-Acc", "% of retained images"),
        by_lam(case, epoch, "kl_forget", "KL(oracle‖model)", "nats, on the forget set"),
        by_lam(case, epoch, "distance", "Distance from the trained weights", "Euclidean"),
    ]
    key = Key({"original": "grey", "oracles, their 95 % band and null": "blue"})
    grids = [Grid(paths, width=440), Grid(charts, width=440)]
    blocks = [Text(told), Text(front), key, *grids, table(case)]
    return Section(f"Forgetting {case['forget']}", blocks)


def _on_front(case, row):
    return {"lam": row["lam"], "epoch": row["epoch"]} in case["front"]


def trade_off(case: Mapping[str, Any], name: str, words: str) -> Drawing:
    """Ret-Acc against a measure of forgetting: a path a lam, from the original on, by epoch."""
    original, oracle, kept = case["original"], case["oracles"][name], case["oracles"]["ret_acc"]
    found = [means(row) for row in case["rows"]]
    starts = [original | {"lam": lam} for lam in dict.fromkeys(row["lam"] for row in found)]
    marks = [
        Mark(r[name], r["ret_acc"], r["lam"], kind="ring") for r in found if _on_front(case, r)
    ]
    marks += [
        Mark(original[name], original["ret_acc"], "original"),
        Mark(
            oracle["mean"],
            kept["mean"],
            "oracles",
            x_error=oracle["null"],
            y_error=kept["null"],
        ),
    ]
    return report.lines(
        [row | {"end": f"lam {row['lam']:g}"} for row in starts + found],
        name,
        "ret_acc",
        by="lam",
        label="end",
        title="Kept against forgotten",
        unit="share",
        words="Ret-Acc, %",
        x_unit=COLUMNS[name].unit,
        x_words=words,
        band=kept["band"],
        x_band=oracle["band"],
        fit_bands=False,
        marks=marks,
        height=340,
    )


def by_lam(case: Mapping[str, Any], epoch: int, name: str, title: str, words: str) -> Drawing:
    """One measure against lam, after the judged epoch and at the stationary points."""
    rows = [means(r) | {"at": f"epoch {epoch}"} for r in case["rows"] if r["epoch"] == epoch]
    rows += [row | {"at": "stationary"} for row in case["stationary"]]
    oracle = case["oracles"].get(name)
    levels = [(case["original"][name], "original")] if name != "distance" else []
    return report.lines(
        rows,
        "lam",
        name,
        by="at",
        title=title,
        unit=COLUMNS[name].unit,
        words=words,
        band=oracle and oracle["band"],
        levels=levels + ([(oracle["mean"], "oracle")] if oracle else []),
        log_x=True,
        colours={f"epoch {epoch}": "vermillion", "stationary": "green"},
    )


def table(case: Mapping[str, Any]) -> Table:
    """Every measure of the original, of each lam and epoch, of stationary points and oracles."""
    rows = [case["original"] | {"name": "original"}]
    for row in case["rows"]:
        ring = " ○" * _on_front(case, row)
        rows.append(row | {"name": f"lam {row['lam']:g}, epoch {row['epoch']}{ring}"})
    for row in case["stationary"]:
        reached = "" if row["converged"] else " (not reached)"
        rows.append(row | {"name": f"lam {row['lam']:g}, stationary{reached}"})
    for name, entry in (("oracles", "mean"), ("null", "null"), ("band", "band")):
        rows.append({"name": name} | {n: found[entry] for n, found in case["oracles"].items()})
    return Table(
        rows,
        {"name": ""} | COLUMNS,
        caption="Means over the orders of the batches ± standard deviation. ○: on the front. "
        "Null: the mean gap of an oracle to the others. Band: 95 % prediction interval of one more "
        "oracle. Distances: an oracle's is that of other weights, not of a step.",
    )
