"""The report of lambda_sweep: trade-off curves, measures by lam, and the table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, interval, number
from famr_jax.report.style import colour

TITLE = "What lam trades"
LEAD = (
    "FAMR at several strengths of its anchor, from one trained model: how much it forgets and how "
    "much it keeps, epoch by epoch, beside models retrained without the forget set."
)
UNITS = {"for_acc": "share", "ret_acc": "share", "test_acc": "share", "distance": ""}
COLUMNS = {
    "for_acc": "For-Acc, %",
    "ret_acc": "Ret-Acc, %",
    "test_acc": "Test-Acc, %",
    "entropy": "entropy",
    "uniform_kl": "KL(u‖p)",
    "kl_forget": "KL to oracle, forget",
    "kl_test": "KL to oracle, test",
    "distance": "distance",
}
BY_LAM = (
    ("for_acc", "For-Acc", "% of the forget set"),
    ("ret_acc", "Ret-Acc", "% of retained images"),
    ("kl_forget", "KL(oracle‖model)", "nats, on the forget set"),
    ("distance", "Distance from the trained weights", "Euclidean"),
)
TONES = ("purple", "vermillion", "green", "ink", "muted")


def report(content: dict[str, Any]) -> str:
    """The whole page from the JSON, self-contained."""
    results = content["results"]
    dataset, model = results["dataset"], results["model"]
    setting = (
        f"{model['name']} ({number(model['num_params'])} weights) on {dataset['name']}, "
        f"{number(dataset['num_classes'])} classes."
    )
    return curves.report(
        content,
        TITLE,
        LEAD,
        page.paragraph(setting),
        *(_case(case, results["judged_at"]) for case in results["cases"]),
    )


def _case(case: dict[str, Any], epoch: int) -> Html:
    lams = sorted({row["lam"] for row in case["rows"]})
    counted = case["oracles"]["for_acc"]["n"]
    return page.section(
        f"Forgetting {case['forget']}",
        page.paragraph(
            f"{number(case['num_forget'])} images are forgotten, {number(case['num_retain'])} "
            f"retained (Ret-Acc over {number(case['ret_acc_n'])} of them, Test-Acc over "
            f"{number(case['test_acc_n'])} test images of what is retained). Every lam ran under "
            f"the same {case['rows'][0]['for_acc']['n']} orders of the batches; oracles: {counted}."
        ),
        page.paragraph(_on_front(case)),
        page.key(("original", "grey"), ("oracles, their 95 % band and null", "blue")),
        page.grid(
            trade_off(case, lams, "for_acc", "% of the forget set recognised", 100),
            trade_off(case, lams, "entropy", "entropy on the forget set, nats", 1),
            width=440,
        ),
        page.grid(*(_by_lam(case, lams, epoch, *each) for each in BY_LAM), width=440),
        _table(case),
    )


def _on_front(case: dict[str, Any]) -> str:
    epochs = sorted({row["epoch"] for row in case["front"]})
    told = [
        "lam " + ", ".join(f"{row['lam']:g}" for row in case["front"] if row["epoch"] == epoch)
        + f" at epoch {epoch}"
        for epoch in epochs
    ]  # fmt: skip
    best = "; ".join(["the original"] * case["original_on_front"] + told)
    return (
        "Not to be bettered in both, nearness of For-Acc to the oracles' mean and Ret-Acc (means "
        f"over the orders; ringed below): {best}."
    )


def trade_off(
    case: dict[str, Any], lams: Sequence[float], name: str, words: str, scale: float
) -> Html:
    """Ret-Acc against one measure of forgetting: a line a lam, from the original on, by epoch.

    Args:
        case: One case of the JSON.
        lams: The lines.
        name: The measure on the horizontal axis.
        words: That axis.
        scale: What it is multiplied by.
    """
    drawing, panel = plot.axes(
        "Kept against forgotten", "Ret-Acc, %", width=460, height=340, margin=(48, 44, 44, 96)
    )
    ends, shown, start = [], [], (scale * case["original"][name], 100 * case["original"]["ret_acc"])
    oracle = [case["oracles"][each] for each in (name, "ret_acc")]
    for found, factor, span in ((oracle[0], scale, panel.axvspan), (oracle[1], 100, panel.axhspan)):
        if found["band"]:
            ends_of = [factor * end for end in _possible(found["band"], factor)]
            span(*ends_of, facecolor=colour("blue"), alpha=0.12, linewidth=0)
    nulls = [
        factor * (each["null"] or 0) for each, factor in zip(oracle, (scale, 100), strict=True)
    ]
    at = [factor * each["mean"] for each, factor in zip(oracle, (scale, 100), strict=True)]
    bars = {"fmt": "o", "color": colour("blue"), "markersize": 5, "linewidth": 2, "zorder": 5}
    panel.errorbar(*at, xerr=nulls[0], yerr=nulls[1], **bars)
    ringed = {(row["lam"], row["epoch"]) for row in case["front"]}
    for i, lam in enumerate(lams):
        rows = [row for row in case["rows"] if row["lam"] == lam]
        x = [start[0], *(scale * row[name]["mean"] for row in rows)]
        y = [start[1], *(100 * row["ret_acc"]["mean"] for row in rows)]
        tone = TONES[i % len(TONES)]
        style = {"color": colour(tone), "linewidth": 1.8, "markersize": 3.5}
        panel.plot(x, y, marker="o", **style)
        shown.append((x, y))
        rings = [j + 1 for j, row in enumerate(rows) if (lam, row["epoch"]) in ringed]
        ring = {"facecolors": "none", "edgecolors": colour(tone), "s": 70, "linewidth": 1.4}
        panel.scatter(np.asarray(x)[rings], np.asarray(y)[rings], zorder=6, **ring)
        ends.append((y[-1], f"lam {lam:g}", tone))
    panel.plot(*start, marker="o", markersize=7, color=colour("grey"), zorder=6)
    xs, ys = ([at[k], *(v for drawn in shown for v in drawn[k])] for k in (0, 1))
    for values, limit in ((xs, panel.set_xlim), (ys, panel.set_ylim)):
        pad = 0.06 * (max(values) - min(values) or 1)
        limit(min(values) - pad, max(values) + pad)
    plot.x_label(panel, words)
    plot.label_ends(panel, ends)
    told = "; ".join(f"{text} ends at {height:.3g}" for height, text, _ in ends)
    return page.figure(drawing, f"Ret-Acc against {words}: {told}")


def _by_lam(
    case: dict[str, Any], lams: Sequence[float], epoch: int, name: str, title: str, words: str
) -> Html:
    scale = 100 if UNITS.get(name) == "share" else 1
    rows = [row for row in case["rows"] if row["epoch"] == epoch]
    lines = [(f"epoch {epoch}", [scale * row[name]["mean"] for row in rows], "vermillion")]
    if case["stationary"]:
        lines.append(("stationary", [scale * row[name] for row in case["stationary"]], "green"))
    oracle = case["oracles"].get(name)
    levels = [("original", scale * case["original"][name], "grey")] if name != "distance" else []
    if oracle:
        levels.append(("oracle", scale * oracle["mean"], "blue"))
    band = oracle and oracle["band"] and [scale * end for end in _possible(oracle["band"], scale)]
    return curves.curves(title, words, lams, lines, levels=levels, band=band, log_y=False)


def _possible(band: Sequence[float], scale: float) -> list[float]:
    """A band cut to what there is: shares end at 0 and 1, nothing is below 0."""
    return [min(max(end, 0.0), 1.0 if scale == 100 else np.inf) for end in band]


def _table(case: dict[str, Any]) -> Html:
    unit = lambda name: UNITS.get(name, "nats")  # noqa: E731

    def told(found: dict[str, Any], name: str) -> str:
        value = number(found["mean"], unit(name))
        return value if found["sd"] is None else f"{value} ± {number(found['sd'], unit(name))}"

    best = {(row["lam"], row["epoch"]) for row in case["front"]}
    rows = [["original", *(number(case["original"][name], unit(name)) for name in COLUMNS)]]
    for row in case["rows"]:
        ring = " ○" if (row["lam"], row["epoch"]) in best else ""
        name = f"lam {row['lam']:g}, epoch {row['epoch']}{ring}"
        rows.append([name, *(told(row[name], name) for name in COLUMNS)])
    for row in case["stationary"]:
        name = f"lam {row['lam']:g}, stationary" + ("" if row["converged"] else " (not reached)")
        rows.append([name, *(number(row[name], unit(name)) for name in COLUMNS)])
    for name, entry in (("oracles", "mean"), ("null", "null")):
        found = [case["oracles"].get(c, {}).get(entry) for c in COLUMNS]
        rows.append([name, *(number(v, unit(c)) for v, c in zip(found, COLUMNS, strict=True))])
    bands = [case["oracles"].get(c, {}).get("band") for c in COLUMNS]
    rows.append(["band", *(interval(b, unit(c)) for b, c in zip(bands, COLUMNS, strict=True))])
    return page.table(
        ("", *COLUMNS.values()),
        rows,
        numeric=range(1, len(COLUMNS) + 1),
        caption="Means over the orders of the batches ± standard deviation. ○: on the front. "
        "Null: the mean gap of an oracle to the others. Band: 95 % prediction interval of one more "
        "oracle. Distances: an oracle's is that of other weights, not of a step.",
    )
