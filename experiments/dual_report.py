"""The reports of the dual experiments: one self-contained page each, from their JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import Html, number
from famr_jax.report.style import colour

LOSSES = {"squared": "squared loss", "cross_entropy": "cross-entropy"}
TRAINED = ("original", "retrained")
NOTHING = "error of doing nothing: 1"


def influence(content: dict[str, Any]) -> str:
    """The page of `dual_influence`."""
    results = content["results"]
    rows = results["linearised"]
    shares = sorted({row["share"] for row in rows})

    def means(loss: str, *path: str) -> list[float]:
        """By share, over the forget sets."""
        found = [
            [_at(r, path) for r in rows if r["loss"] == loss and r["share"] == s] for s in shares
        ]
        return [float(np.mean(values)) for values in found]

    percent = [100 * share for share in shares]
    errors = []
    for loss, tones in (
        ("squared", ("blue", "green")),
        ("cross_entropy", ("vermillion", "purple")),
    ):
        for route, tone in zip(("primal", "dual"), tones, strict=True):
            found = means(loss, "error", route)
            errors.append((f"{route}, {LOSSES[loss]}", tone, percent, found))
    kinds = {"original": "grey", "dual": "vermillion", "retrained": "blue"}
    accuracy = [
        (name, tone, percent, [100 * v for v in means("cross_entropy", "forget_accuracy", name)])
        for name, tone in kinds.items()
    ]
    table = [
        (
            LOSSES[loss],
            f"{share:.0%}",
            *(number(means(loss, "error", name)[i]) for name in ("primal", "dual")),
            number(means(loss, "from_primal")[i]),
            number(means(loss, "test_output_error")[i]),
            number(means(loss, "as_published")[i]),
            *(number(means(loss, "forget_accuracy", k)[i], "share") for k in kinds),
            *(number(means(loss, "test_accuracy", k)[i], "share") for k in kinds),
        )
        for loss in LOSSES
        for i, share in enumerate(shares)
    ]
    columns = ("Loss", "Forgotten", "Primal", "Dual", "Dual − primal", "Test outputs")
    columns += ("As published", "Forget: original", "dual", "retrained")
    columns += ("Test: original", "dual ", "retrained ")
    count = len(rows) // (len(shares) * len(LOSSES))
    limitless = []
    for row in results["infinite"]:
        name, half = LOSSES[row["loss"]], f"half of {results['infinite_train']} images forgotten"
        found = row["outputs"]
        told = f"error {found['error']:.2g}, slope {found['slope']:.3f}, N = {found['n']}"
        limitless.append(_scatter(f"Outputs, {name}", half, *row["scatter"]["outputs"], told))
        found = row["losses"]["first order"]
        told = f"error {found['error']:.2g}, slope {found['slope']:.3f}, N = {found['n']}"
        limitless.append(_scatter(f"Losses, {name}", half, *row["scatter"]["losses"], told))
    return curves.report(
        content,
        "Removal in function space",
        f"A network of {number(results['num_params'])} parameters, linearised where it "
        f"starts and trained on {number(results['num_train'])} digits; {count} random forget "
        "sets for each share. The error is ‖estimate − retrained‖ / ‖original − retrained‖: 0 "
        "is retraining, 1 is doing nothing.",
        page.section(
            "How near to retraining?",
            page.key(*((name, tone) for name, tone, *_ in errors)),
            page.grid(
                _curves("Error", NOTHING, "% forgotten", errors, log_y=True, level=1.0),
                _curves("Forget accuracy", "% of images, cross-entropy", "% forgotten", accuracy),
                width=420,
            ),
            page.key(*kinds.items()),
            page.table(
                columns,
                table,
                numeric=range(1, len(columns)),
                caption="Means over the forget sets; a random move of the true length scores 1.41. "
                "As published: the distance over ‖retrained‖, which the starting weights flatter. "
                "Accuracies in %.",
            ),
        ),
        page.section(
            "Infinite width: no parameters",
            page.paragraph(
                "Changes on the test images, true and estimated; the line is equality. Losses to "
                "first order."
            ),
            page.grid(*limitless, width=420),
        ),
    )


def timing(content: dict[str, Any]) -> str:
    """The page of `dual_timing`."""
    results = content["results"]
    cross, rows = results["crossings"], results["rows"]
    limit = rows[0]["retained_outputs"]
    tones = {"primal": "ink", "dense": "blue", "matrix-free": "green", "kernel": "purple"}
    names = {
        "primal": "primal",
        "dense": "dual, kernel kept",
        "matrix-free": "dual, matrix-free",
        "kernel": "building the kernel",
    }
    by_size = {row["num_params"]: row for row in reversed(rows) if row["share"] == 0.5}
    sizes = cross["num_params"]
    seconds = [
        (names[k], tone, sizes, [float(np.median(by_size[s]["seconds"][k])) for s in sizes])
        for k, tone in tones.items()
    ]
    ratios = [
        (name, tone, sizes, route["ratios"])
        for (name, route), tone in zip(
            cross["routes"].items(), ("blue", "purple", "green"), strict=True
        )
    ]
    table = [
        (
            number(row["num_params"]),
            f"{row['share']:.0%}",
            number(row["retained_outputs"]),
            *(number(float(np.median(row["seconds"][k]))) for k in tones),
            *(number(row["status"][k]["products"]) for k in ("primal", "matrix-free")),
            number(max(row["error"].values())),
            number(sum(row["first_call"].values())),
            row["chosen"],
        )
        for row in rows
    ]
    columns = ("Parameters", "Forgotten", "Retained outputs", *names.values())
    columns += ("Products, primal", "dual", "Largest error", "First calls", "Form by cost")
    return curves.report(
        content,
        "Which route to removal is faster?",
        f"One removal from a linearised network on {number(results['num_train'])} digits, by "
        "conjugate gradients to the same residual; median of "
        f"{len(rows[0]['seconds']['primal'])} interleaved rounds, compilation apart.",
        page.section(
            "Time against parameters",
            page.grid(
                _with_key(
                    seconds,
                    _curves(
                        *("Seconds", "s a removal, half forgotten", "parameters", seconds),
                        log_x=True,
                        log_y=True,
                    ),
                ),
                _with_key(
                    ratios,
                    _curves(
                        *(
                            "Primal over dual",
                            f"above 1 the dual wins; | {limit} retained outputs",
                        ),
                        *("parameters", ratios),
                        log_x=True,
                        log_y=True,
                        level=1.0,
                        mark=limit,
                    ),
                ),
                width=420,
            ),
            page.table(columns, table, numeric=range(len(columns) - 1)),
        ),
    )


def control(content: dict[str, Any]) -> str:
    """The page of `dual_control`."""
    results = content["results"]
    rows = results["rows"]
    names, ridges = list(rows[0]["error"]), list(dict.fromkeys(row["l2"] for row in rows))
    count = len(rows) // len(ridges)

    def means(*path: str) -> list[float]:
        """By ridge, over the seeds."""
        return [float(np.mean([_at(r, path) for r in rows if r["l2"] == l2])) for l2 in ridges]

    tones = dict(zip(names, ("blue", "green", "vermillion", "purple", "grey"), strict=True))
    weights = [(name, tone, ridges, means("error", name)) for name, tone in tones.items()]
    weights.append(("dual, linearised network", "ink", ridges, means("linearised_error")))
    outputs = [(k, tone, ridges, means("test_output_error", k)) for k, tone in tones.items()]
    table = [
        (
            f"{row['l2']:g}",
            row["seed"],
            number(row["distance_from_start"]),
            *(number(row["error"][name]) for name in names),
            number(row["linearised_error"]),
            *(number(row["trained"][k]["test_accuracy"], "share") for k in TRAINED),
            "; ".join(
                f"{name}: {each['why'].partition(':')[0]}" if "why" in each else f"{name}: training"
                for name, each in (row["status"] | row["trained"]).items()
                if not each["converged"]
            )
            or "none",
        )
        for row in rows
    ]
    columns = ("l2", "Seed", "Distance from start", *names, "Dual, linearised")
    columns += ("Test: original", "retrained", "Not converged")
    return curves.report(
        content,
        "Outside the linear regime",
        f"A network of {number(results['num_params'])} parameters that is not linearised, on "
        f"{number(results['num_train'])} images of two digits, of which "
        f"{rows[0]['num_forget']} are forgotten; squared loss, {count} seeds.",
        page.section(
            "Error against the ridge",
            page.key(*((name, tone) for name, tone, *_ in weights)),
            page.grid(
                _curves("Weights", NOTHING, "l2", weights, log_x=True, log_y=True, level=1.0),
                _curves("Test outputs", NOTHING, "l2", outputs, log_x=True, log_y=True, level=1.0),
                width=420,
            ),
            page.table(
                columns,
                table,
                numeric=range(len(columns) - 1),
                wide=(len(columns) - 1,),
                caption="Curves are means over the seeds. Retrained from the original: another "
                "stationary point of the retained objective, the null. Distance from start: "
                "relative to the starting weights. Accuracies in %.",
            ),
        ),
    )


def _with_key(curves: Sequence[tuple], figure: Html) -> Html:
    """A figure under its own legend."""
    return page.element("div", page.key(*((name, tone) for name, tone, *_ in curves)), figure)


def _at(row: dict[str, Any], path: Sequence[str]) -> float:
    for name in path:
        row = row[name]
    return row


def _curves(
    title: str,
    unit: str,
    x_words: str,
    curves: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    *,
    log_x: bool = False,
    log_y: bool = False,
    level: float | None = None,
    mark: float | None = None,
) -> Html:
    """Curves (name, colour, x, y) on one panel; `level` a horizontal, `mark` a vertical line."""
    drawing, panel = plot.axes(title, unit, width=460, height=300, margin=(58, 44, 48, 16))
    if log_x:
        panel.set_xscale("log")
    if log_y:
        panel.set_yscale("log")
    for line, value in ((panel.axhline, level), (panel.axvline, mark)):
        if value is not None:
            line(value, color=colour("grey"), linewidth=1.4, linestyle=(0, (2, 3)))
    for i, (_, tone, x, y) in enumerate(curves):
        style = {"color": colour(tone), "linewidth": 2.2, "marker": "o", "markersize": 4}
        # Curves that coincide show through each other.
        dash = (3.0 * (i % 2), (4, 4)) if _coincides(curves, i) else "-"
        panel.plot(plot.finite(x), plot.finite(y), linestyle=dash, **style)
    panel.minorticks_off()
    plot.x_label(panel, x_words)
    told = "; ".join(
        f"{name}: " + ", ".join(f"{a:.4g} {b:.3g}" for a, b in zip(x, y, strict=True))
        for name, _, x, y in curves
    )
    return page.figure(drawing, f"{title}, {unit}, against {x_words}. {told}")


def _coincides(curves: Sequence[tuple], i: int) -> bool:
    others = [y for j, (*_, y) in enumerate(curves) if j != i]
    return any(
        len(y) == len(curves[i][3]) and np.allclose(y, curves[i][3], rtol=0.05) for y in others
    )


def _scatter(
    title: str, unit: str, true: Sequence[float], estimate: Sequence[float], told: str
) -> Html:
    drawing, panel = plot.axes(title, unit, width=460, height=340, margin=(58, 44, 48, 16))
    ends = [min(true), max(true)]
    panel.plot(ends, ends, color=colour("grey"), linewidth=1.4)
    panel.scatter(true, estimate, s=12, color=colour("blue"), alpha=0.5, linewidth=0)
    plot.x_label(panel, "true change (retrained), and upwards the estimated one")
    return page.figure(drawing, f"{title}, {unit}: {told}", caption=told)
