"""The page of influence against retraining: curves over the ridge, clouds, scores and solves."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness.results import Page
from experiments.influence.curves import Curve, curves
from experiments.influence.scores import METHODS, SCORES
from famr_jax.report import Column, Drawing, Grid, Section, Table, Text, lines, scatter

COLOURS = {"first order": "vermillion", "newton": "blue"}
SOLVES = {
    "model": None,
    "train": "N",
    "l2": None,
    "start": None,
    "num_params": "weights",
    "solved": Column("Gauss-Newton + l2", wide=True),
    "lambda_min_of_hessian": "lambda_min, Hessian + l2",
    "gradient_norm": "gradient",
    "gradient_norm_retrained": "largest after retraining",
}
CAPTION = (
    "Mean over n starts, or pairs of starts for null and another start. Rank: Spearman's "
    "correlation over the removals, mean over the queries. Slope: of truth on prediction. Error: "
    "||truth - prediction|| / ||truth||, 1 for doing nothing. "
    "Null: the truth of one start as a prediction of another. Own: the removed example's own loss."
)
CURVES = (
    "Ridge times N is what the ridge weighs against one example; the first-order prediction leaves "
    "out that a removal changes the curvature, and matters less the larger it is. Newton takes one "
    "step with the curvature of what is left. On the dotted line the size is right."
)
CLOUDS = (
    "First start, at the least and the largest ridge times N; pairs of removal and query drawn at "
    "random, the axes over the middle 98 % of them. On the grey line the prediction is right."
)


def page(content: Mapping[str, Any]) -> Page:
    """Slopes and ranks over the ridge, predicted against true changes, scores and solves."""
    results = content["results"]
    scores = [
        {name: row[name] for name in ("model", "train", "l2", "removed", "prediction", "n")}
        | {score: row[score]["mean"] for score in SCORES}
        for row in results["rows"]
    ]
    charts = [chart for curve in curves(results) for chart in (slopes(curve), ranks(curve))]
    names = {"train": "N", "l2": None}
    columns = {name: names.get(name) for name in scores[0]}
    blocks = [
        Section("Curves over the ridge", [Grid(charts, width=440), Text(CURVES, kind="note")]),
        Section("Scores", [Table(scores, columns, caption=CAPTION)]),
        Section("Solves, one line a start", [Table(results["solves"], SOLVES)]),
    ]
    if clouds := [cloud(drawn) for drawn in results["clouds"]]:
        shown = [Grid(clouds, width=440), Text(CLOUDS, kind="note")]
        blocks.insert(1, Section("Predicted and true changes of the test losses", shown))
    lead = (
        "Predicted changes of test losses when training images are removed, beside those of models "
        "really retrained without them, for several training sets and ridges."
    )
    return Page("Influence against retraining", lead, blocks)


def slopes(curve: Curve) -> Drawing:
    """Slope of truth on prediction by ridge times N, a line for each method and training set."""
    rows = [
        {"l2_n": point.l2_n, "line": f"{method}, N={size}", "slope": value}
        for size in curve.sizes
        for method in METHODS
        for point in curve.points
        if point.train == size
        for value in [point.slope if method == "first order" else point.newton]
    ]
    return _over_ridge(curve, rows, "slope", [(1.0, "size right")], log=True)


def ranks(curve: Curve) -> Drawing:
    """Rank of the first-order prediction by ridge times N, and that of another start."""
    rows = [
        {"l2_n": point.l2_n, "line": f"{name}, N={size}", "rank": value}
        for size in curve.sizes
        for name in ("first order", "null")
        for point in curve.points
        if point.train == size
        for value in [point.rank if name == "first order" else point.null]
        if value is not None
    ]
    return _over_ridge(curve, rows, "rank", [(1.0, "order right")], log=False)


def _over_ridge(curve, rows, score, levels, *, log):
    return lines(
        rows,
        "l2_n",
        score,
        "line",
        title=f"{curve.model}, {curve.removed}: {score}",
        x_words="ridge times N",
        levels=levels,
        log_x=True,
        log_y=log,
        key=True,
    )


def cloud(drawn: Mapping[str, Sequence[float]]) -> Drawing:
    """Predicted against true changes, and the line of perfect prediction."""
    rows = [
        {"method": method, "predicted": predicted, "truth": truth}
        for method in METHODS
        for predicted, truth in zip(drawn[method], drawn["truth"], strict=True)
    ]
    return scatter(
        rows,
        "predicted",
        "truth",
        by="method",
        title=f"{drawn['model']}, {drawn['removed']}, N {drawn['train']}, l2 {drawn['l2']:g}",
        words="true change (nats)",
        x_words="predicted change (nats)",
        identity=True,
        middle=98,
        colours=COLOURS,
    )
