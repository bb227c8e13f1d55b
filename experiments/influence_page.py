"""The page of `influence_vs_retraining`: predicted against true changes, scores and status."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import curves
from famr_jax.report import elements as page
from famr_jax.report import plot
from famr_jax.report.elements import number
from famr_jax.report.style import colour

METHODS = {"first order": "vermillion", "newton": "blue"}
SCORES, STATUS = ("rank", "slope", "error"), ("lambda_min_of_hessian", "gradient_norm")
DRAWN = 500

Changes = Mapping[str, np.ndarray]
"""Changes of the losses by removal and query, `[removals, queries]`: the truth, each prediction."""


def write(content: dict[str, Any], drawn: Sequence[Mapping[str, Changes]]) -> str:
    """The whole page.

    Args:
        content: The JSON.
        drawn: For each model, the changes by kind of removal.
    """
    cases = content["results"]["cases"]
    scores = [
        (case["model"], kind, name, found["n"], *(number(found[score]["mean"]) for score in SCORES))
        for case in cases
        for kind, table in case["scores"].items()
        for name, found in table.items()
    ]
    solves = [
        (
            case["model"],
            each["num_params"],
            each["solved"],
            *(number(each[name]) for name in STATUS),
        )
        for case in cases
        for each in case["status"]
    ]
    figures = [
        scatter(f"{case['model']}, {kind}", changes)
        for case, kinds in zip(cases, drawn, strict=True)
        for kind, changes in kinds.items()
    ]
    return curves.report(
        content,
        "Influence against retraining",
        "Predicted changes of test losses when training images are removed, beside those of models "
        "really retrained without them.",
        page.section(
            "Predicted and true changes of the test losses",
            page.key(*METHODS.items()),
            page.grid(*figures),
            page.paragraph(
                f"First start; {DRAWN} pairs of removal and query drawn at random, the axes over "
                "the middle 98 % of them. On the grey line the prediction is right.",
                kind="note",
            ),
        ),
        page.section(
            "Scores",
            page.table(
                ("model", "removed", "prediction", "n", *SCORES),
                scores,
                numeric=(3, 4, 5, 6),
                caption="Mean over n starts, or pairs of starts for null and another start. Rank: "
                "Spearman's correlation over the removals, mean over the queries. Slope: of truth "
                "on prediction. Error: ||truth - prediction|| / ||truth||, 1 for doing nothing.",
            ),
        ),
        page.section(
            "Solves, one line a start",
            page.table(
                ("model", "weights", "Gauss-Newton + l2", "lambda_min, Hessian + l2", "gradient"),
                solves,
                numeric=(1, 3, 4),
                wide=(2,),
            ),
        ),
    )


def scatter(title: str, changes: Changes) -> page.Html:
    """Predicted against true changes, and the line of perfect prediction."""
    truth = changes["truth"]
    chosen = np.random.default_rng(0).permutation(truth.size)[:DRAWN]
    drawing, panel = plot.axes(title, "true change (nats)", margin=(52, 44, 44, 12))
    y = truth.ravel()[chosen]
    seen = [y]
    for method, tone in METHODS.items():
        x = changes[method].ravel()[chosen]
        panel.plot(x, y, "o", color=colour(tone), markersize=3, markeredgewidth=0, alpha=0.5)
        seen.append(x)
    low, high = np.percentile(seen, [1, 99])
    panel.plot((low, high), (low, high), color=colour("grey"), linewidth=1.2, zorder=1)
    panel.set_xlim(low, high)
    panel.set_ylim(low, high)
    panel.locator_params(nbins=5)
    plot.x_label(panel, "predicted change (nats)")
    return page.figure(drawing, f"{title}: predicted against true changes of the test losses")
