"""The report of architecture_scaling: curves by epoch for each axis, probes, and the table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, interval, number
from famr_jax.report.style import colour
from famr_jax.statistics import prediction_interval

TITLE = "Does a larger model forget more completely?"
LEAD = (
    "Models of several sizes, each trained to the same accuracy on held-out images, forget one "
    "class by FAMR at one setting. Beside them: themselves before, and models retrained without "
    "the class to the same accuracy (the oracles)."
)
TONES = ("purple", "vermillion", "green", "ink", "muted")
ROLES = {"original": "grey", "famr": "vermillion", "oracle": "blue"}
NAMES = {"original": "original", "famr": "FAMR", "oracle": "oracle"}


def report(content: dict[str, Any]) -> str:
    """The whole page from the JSON, self-contained."""
    results = content["results"]
    rows = {row["model"]: row for row in results["models"]}
    dataset = results["dataset"]
    count = results["models"][0]["ends"]["famr"]["for_acc"]["n"]
    setting = (
        f"{dataset['name']}, {number(dataset['num_classes'])} classes; "
        f"{number(results['num_train'])} images train, {number(results['num_forget'])} of them are "
        f"forgotten; training stops at the first epoch that reaches "
        f"{number(results['target'], 'share')}\u202f% on {number(results['num_held_out'])} "
        f"held-out images. {count} seeds a model, each an original, FAMR from it, and an oracle."
    )
    return curves.report(
        content,
        TITLE,
        LEAD,
        page.paragraph(setting),
        *(
            _axis(axis, [rows[name] for name in names], results)
            for axis, names in results["axes"].items()
        ),
        page.section("The numbers", _training(results), _ends(results), _probes(results)),
    )


def _axis(axis: str, rows: Sequence[dict[str, Any]], results: dict[str, Any]) -> Html:
    trend = results["trends"][axis]["for_acc"]
    points = f"{number(trend['mean'], 'share')} points"
    if trend["interval"]:
        points += f" (95 % interval {interval(trend['interval'], 'share')})"
    chance, most = results["chance"], results["max_entropy"]
    return page.section(
        f"By {axis}",
        page.paragraph(
            f"For-Acc after FAMR, {rows[-1]['model']} less {rows[0]['model']}: {points}. Lines are "
            "means over the seeds; shaded is one standard deviation either way; in blue the 95 % "
            "prediction interval of one more oracle, of any of these models."
        ),
        page.grid(
            _by_epoch("For-Acc", "% of the forget set", rows, "for_acc", 100, ("chance", chance)),
            _by_epoch("Ret-Acc", "% of retained images", rows, "ret_acc", 100),
            _by_epoch("Entropy on the forget set", "nats", rows, "entropy", 1, ("log C", most)),
            _dots(rows),
            width=440,
        ),
    )


def _by_epoch(
    title: str,
    words: str,
    rows: Sequence[dict[str, Any]],
    name: str,
    scale: float,
    level: tuple[str, float] | None = None,
) -> Html:
    drawing, panel = plot.axes(title, words, width=460, height=300, margin=(44, 40, 44, 132))
    ends, told = [], []
    for i, row in enumerate(rows):
        values = scale * np.asarray(row["curves"][name], np.float64)
        tone, epochs = TONES[i % len(TONES)], np.arange(len(values))
        mean, sd = values.mean(1), values.std(1, ddof=1)
        panel.plot(epochs, mean, color=colour(tone), linewidth=2.2, marker="o", markersize=3.5)
        shade = {"color": colour(tone), "alpha": 0.13, "linewidth": 0}
        panel.fill_between(epochs, mean - sd, mean + sd, **shade)
        ends.append((mean[-1], row["model"], tone))
        told.append(f"{row['model']} from {mean[0]:.3g} to {mean[-1]:.3g}")
    oracles = [v for row in rows for v in row["ends"]["oracle"][name]["values"]]
    low, high = (scale * end for end in prediction_interval(oracles))
    panel.axhspan(low, high, facecolor=colour("blue"), alpha=0.12, linewidth=0)
    ends.append((scale * float(np.mean(oracles)), "oracles", "blue"))
    if level:
        height = scale * level[1]
        panel.axhline(height, color=colour("grey"), linewidth=1.4, linestyle=(0, (2, 3)))
        ends.append((height, level[0], "grey"))
    last = len(rows[0]["curves"][name]) - 1
    panel.set_ylim(0, min(panel.get_ylim()[1], 1.02 * scale) if scale == 100 else None)
    panel.set_xlim(0, last)
    panel.set_xticks(sorted({*np.linspace(0, last, 3).round().astype(int).tolist()}))
    plot.x_label(panel, "epoch of FAMR (0 = original)")
    plot.label_ends(panel, ends)
    return page.figure(drawing, f"{title}, {words}: {'; '.join(told)}")


def _dots(rows: Sequence[dict[str, Any]]) -> Html:
    """What the probe finds, model by model: every seed a dot, means as bars."""
    drawing, panel = plot.axes(
        "What features still know", "% balanced accuracy of a linear probe for the class",
        width=460, height=300, margin=(44, 40, 44, 100),
    )  # fmt: skip
    ends, told = [(50.0, "chance", "grey")], []
    for shift, (role, tone) in enumerate(ROLES.items()):
        means = []
        for i, row in enumerate(rows):
            values = 100 * np.asarray(row["probes"][role]["forgotten"]["values"], np.float64)
            at = np.full(len(values), i + 0.2 * (shift - 1))
            panel.scatter(at, values, s=16, color=colour(tone), zorder=4)
            bar = {"color": colour(tone), "linewidth": 2}
            panel.hlines(values.mean(), at[0] - 0.08, at[0] + 0.08, **bar)
            means.append(values.mean())
        ends.append((means[-1], NAMES[role], tone))
        told.append(f"{NAMES[role]} " + ", ".join(f"{mean:.1f}" for mean in means))
    panel.axhline(50, color=colour("grey"), linewidth=1.4, linestyle=(0, (2, 3)))
    panel.set_xlim(-0.5, len(rows) - 0.5)
    panel.set_ylim(45, 101)
    panel.set_xticks(range(len(rows)), [row["model"] for row in rows])
    plot.label_ends(panel, ends)
    return page.figure(drawing, f"Balanced accuracy of the probe: {'; '.join(told)}")


def _told(found: dict[str, Any], unit: str = "share") -> str:
    return f"{number(found['mean'], unit)} ± {number(found['sd'], unit)}"


def _training(results: dict[str, Any]) -> Html:
    rows = []
    for row in results["models"]:
        cells = [row["model"], number(row["num_params"])]
        for role in ("original", "oracle"):
            found = row["training"][role]
            cells += [", ".join(map(str, found["epoch"])), _told(found["accuracy"])]
        rows.append(cells)
    columns = ("model", "weights", "originals: epoch", "held-out, %", "oracles: epoch")
    return page.table(
        (*columns, "held-out, %"),
        rows,
        numeric=range(1, 6),
        caption="Epoch at which each seed reached the accuracy (0: it did not), and the accuracy "
        "there, mean ± standard deviation. Oracles: held-out images of the other classes.",
    )


def _ends(results: dict[str, Any]) -> Html:
    columns = {
        "for_acc": "For-Acc, %", "for_test": "For-Acc (test), %", "ret_acc": "Ret-Acc, %",
        "ret_test": "Ret-Acc (test), %", "entropy": "entropy",
    }  # fmt: skip
    rows = [
        (
            f"{row['model']}, {NAMES[role]}",
            *(_told(row["ends"][role][c], "nats" if c == "entropy" else "share") for c in columns),
        )
        for row in results["models"]
        for role in ROLES
    ]
    caption = "Mean ± standard deviation over the seeds."
    return page.table(("", *columns.values()), rows, numeric=range(1, 6), caption=caption)


def _probes(results: dict[str, Any]) -> Html:
    rows = [
        (
            row["model"],
            *(
                _told(row["probes"][role][what])
                for what in ("forgotten", "all classes")
                for role in ROLES
            ),
        )
        for row in results["models"]
    ]
    columns = [f"{what}: {name}" for what in ("class", "all") for name in NAMES.values()]
    return page.table(
        ("probe, %", *columns),
        rows,
        numeric=range(1, 7),
        caption=f"Balanced accuracy of logistic regression on the features that the head sees, "
        f"over 5 folds of {number(results['num_probed'])} images that no model was trained on, "
        f"{number(results['num_probed_forgotten'])} of the forgotten class. Class: it against the "
        f"rest, chance 50 %. All: all classes, chance {number(results['chance'], 'share')} %.",
    )
