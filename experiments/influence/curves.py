"""How well influence tells retraining as training set and ridge grow: curves, and a verdict."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.harness.results import measured

KINDS = ("single", "group")
MINIMUM = 1e-6
"""Largest distance to its minimum, ||gradient|| / l2, at which a convex model counts as there."""
RANK, SLOPES = 0.9, (0.8, 1.25)
"""What a good prediction has: at least this rank, and a slope of truth on it in this range."""


class Point(NamedTuple):
    """What influence scored at one training set and ridge, means over the starts.

    Attributes:
        train: N.
        l2: Ridge.
        rank: Of the first-order prediction.
        slope: Of truth on it.
        newton: Slope of truth on one Newton step for each removal.
        null: Rank of another start's truth; None where there is one start.
        own: Rank for the removed example's own loss.
        test_loss: Of the original, that of chance where the ridge leaves nothing to predict with.
    """

    train: int
    l2: float
    rank: float
    slope: float
    newton: float
    null: float | None
    own: float
    test_loss: float

    @property
    def l2_n(self) -> float:
        """Ridge times N: the objective's sum of losses weighs against l2_n / 2 ||params||^2."""
        return self.l2 * self.train

    @property
    def good(self) -> bool:
        """Whether the first-order prediction tells both the order and the size of the changes."""
        return self.rank >= RANK and SLOPES[0] <= self.slope <= SLOPES[1]


class Curve(NamedTuple):
    """A model and a kind of removal over training sets and ridges.

    Attributes:
        model: Its name.
        removed: "single" or "group".
        points: One for each training set and ridge, both ascending.
        exact: Whether every solve converged, and every convex model is at its minimum.
    """

    model: str
    removed: str
    points: tuple[Point, ...]
    exact: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """The training sets' sizes."""
        return tuple(dict.fromkeys(point.train for point in self.points))

    @property
    def good_from(self) -> float | None:
        """The least ridge times N from which on every point is good; None where the last is not."""
        found = None
        for point in sorted(self.points, key=lambda point: -point.l2_n):
            if not point.good:
                break
            found = point.l2_n
        return found

    def others(self) -> str:
        """The ranges of what stands beside the first-order prediction."""
        parts = [f"newton slope {_range(point.newton for point in self.points)}"]
        if self.removed == "single":
            parts.append(f"own rank {_range(point.own for point in self.points)}")
        if self.points[0].null is not None:
            parts.append(f"null {_range(point.null for point in self.points)}")
        return "  ".join(parts)


def curves(results: Mapping[str, Any], *, convex: bool | None = None) -> list[Curve]:
    """The curves of all models, or of those that are convex or not."""
    found = []
    for model in results["models"]:
        if convex not in (None, model["convex"]):
            continue
        rows = [row for row in results["rows"] if row["model"] == model["model"]]
        solves = [row for row in results["solves"] if row["model"] == model["model"]]
        exact = all(_is_exact(solve, model["convex"]) for solve in solves)
        for kind in KINDS:
            places = dict.fromkeys((row["train"], row["l2"]) for row in rows)
            points = tuple(_point(rows, solves, train, l2, kind) for train, l2 in places)
            found.append(Curve(model["model"], kind, points, exact))
    return found


def _point(rows, solves, train, l2, kind):
    def mean(removed, prediction, score):
        for row in rows:
            place = (row["train"], row["l2"], row["removed"], row["prediction"])
            if place == (train, l2, removed, prediction):
                return measured(row[score]["mean"])
        return None

    rank, slope = (mean(kind, "first order", score) for score in ("rank", "slope"))
    newton, null = mean(kind, "newton", "slope"), mean(kind, "null", "rank")
    own = mean("own", "first order", "rank")
    here = [each["test_loss"] for each in solves if (each["train"], each["l2"]) == (train, l2)]
    return Point(train, l2, rank, slope, newton, null, own, sum(map(measured, here)) / len(here))


def _is_exact(solve, convex):
    norms = [solve["gradient_norm"], solve["gradient_norm_retrained"]] if convex else []
    return solve["converged"] and all(measured(norm) <= MINIMUM * solve["l2"] for norm in norms)


def judge(found: Sequence[Curve]) -> str:
    """One verdict on curves: holds where every point is good, fails where none is, else mixed.

    Not resolved from one size of the training set, where a solve stopped early, or where a convex
    model is not at its minimum.
    """
    if not all(curve.exact and len(curve.sizes) > 1 for curve in found):
        return "not resolved"
    good = [point.good for curve in found for point in curve.points]
    return "holds" if all(good) else "mixed" if any(good) else "fails"


def told(curve: Curve) -> str:
    """A curve in words: first-order slopes by ridge times N, ranks, and what stands beside."""
    points = sorted(curve.points, key=lambda point: point.l2_n)
    slopes = ", ".join(f"{point.slope:.2f}" for point in points)
    places = ", ".join(f"{point.l2_n:g}" for point in points)
    where = "nowhere"
    if curve.good_from is not None:
        losses = _range(point.test_loss for point in points if point.l2_n >= curve.good_from)
        where = f"from l2 N = {curve.good_from:g} on, at a test loss of {losses}"
    return (
        f"{curve.model} {curve.removed}: slope {slopes} at l2 N = {places}, rank "
        f"{_range(point.rank for point in points)}, good (slope {SLOPES[0]} to {SLOPES[1]}, rank "
        f"{RANK}) {where}; beside it {curve.others().replace('  ', ', ')}"
    )


def _range(values):
    values = list(values)
    ends = f"{min(values):.2f}", f"{max(values):.2f}"
    return " to ".join(dict.fromkeys(ends))
