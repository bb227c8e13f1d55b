"""The orthogonal problem of Ascent Fails to Forget (arXiv 2509.26427), solved and checked, float64.

Logistic regression with exponential loss e^{-y w.x} and the ridge l2/2 ||w||^2, on samples in
orthogonal groups, y x = 1 on the one coordinate of a group: |R_j| retained ones, and alpha |R_j|
that are forgotten. Three objectives: on all data (D), on the retained data (R), and descent-ascent
(DA), the mean over R minus the mean over F. Each is, in a coordinate, `pull e^{-w} + l2/2 w^2`.

Functions work elementwise on arrays that broadcast. The formulas are derived from the paper's
inequalities; its text prints the loss as e^{+y w.x}, which is none.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from scipy.special import lambertw

from experiments.ascent.newton import newton

DIVERGED = -20.0


class Group(NamedTuple):
    """One group of samples, or a grid of them.

    Attributes:
        num_retain: |R|, the retained samples of all groups.
        num_forget: |F|, the forgotten samples of all groups.
        size: |R_j|, the retained samples of this group.
        alpha: |F_j| / |R_j|.
        l2: The ridge.
        forget_weight: Of the ascent in DA: 1 is the paper's, |F|/|R| the rescaled control.
    """

    num_retain: Any
    num_forget: Any
    size: Any
    alpha: Any
    l2: Any
    forget_weight: Any = 1.0

    def pulls(self) -> dict[str, tuple[Any, Any]]:
        """Weights of the retained and of the forgotten samples of the group, in D, R and DA."""
        everything, forgotten = self.num_retain + self.num_forget, self.alpha * self.size
        return {
            "D": (self.size / everything, forgotten / everything),
            "R": (self.size / self.num_retain, 0 * forgotten),
            "DA": (self.size / self.num_retain, -self.forget_weight * forgotten / self.num_forget),
        }

    def share(self) -> Any:
        """|F|/|R|: the alpha of a group that lost its fair share."""
        return self.num_forget / self.num_retain

    def harmful_from(self) -> Any:
        """The alpha from which Lemma 3 speaks, |F|^2 / (|R| (|F| + |D|)) at weight 1."""
        weighted = self.forget_weight * (self.num_retain + self.num_forget)
        return self.share() * self.num_forget / (self.num_forget + weighted)

    def bounded_to(self) -> Any:
        """The alpha up to which DA has a minimum, |F|/|R| + l2 |F| / (e |R_j|) at weight 1."""
        room = self.l2 * self.num_forget / (np.e * self.size)
        return (self.share() + room) / self.forget_weight


def closed_form(pull: Any, l2: Any, *, branch: int = 0) -> np.ndarray:
    """Stationary point of `pull e^{-w} + l2/2 w^2`: w = W(pull / l2), NaN where there is none.

    Branch 0 is the minimum; branch -1, where -1/e <= pull/l2 < 0, the maximum on its left.

    Source: Lemma 2.
    """
    ratio = np.asarray(pull / l2, np.float64)
    exists = (ratio >= -1 / np.e) & ((branch == 0) | (ratio < 0))
    return np.where(exists, lambertw(np.where(exists, ratio, -0.1), branch).real, np.nan)


def solved(pull: Any, l2: Any) -> np.ndarray:
    """The same minimum by Newton's method from 0, NaN where it finds none.

    The gradient is concave (pull > 0) or convex (pull < 0), so the steps from 0 are monotone.
    """
    pull, l2 = np.broadcast_arrays(np.asarray(pull, np.float64), l2)

    def derivatives(w):
        force = pull[..., None] * np.exp(-w)
        gradient, curvature = l2[..., None] * w - force, l2[..., None] + force
        convex = curvature > 0
        return gradient, np.where(convex, gradient / curvature, np.nan), convex[..., 0]

    start, scale = np.zeros((*pull.shape, 1)), l2 + np.abs(pull)
    return newton(derivatives, start, num_steps=200, scale=scale, tol=1e-12)[..., 0]


def minima(group: Group, solve: Callable = closed_form) -> dict[str, np.ndarray]:
    """The minima w_D, w_R and w_DA."""
    return {name: solve(a + b, group.l2) for name, (a, b) in group.pulls().items()}


def walk(group: Group, *, rate: float) -> Iterator[np.ndarray]:
    """Descent-ascent from w_D, both halves of a step at once: yields w_D, then point after point.

    A coordinate's step is `rate` over the curvature there, so that no tiny ridge needs a million
    steps; the direction is the gradient's. Below -20 a coordinate counts as diverged and stands.
    """
    retain, forget = group.pulls()["DA"]
    w = minima(group)["D"]
    while True:
        yield w
        slope = (retain + forget) * np.exp(-w)
        step = rate * (group.l2 * w - slope) / (group.l2 + np.abs(slope))
        w = np.where(w > DIVERGED, w - step, w)


def alternating(group: Group, *, step: float, num_steps: int) -> np.ndarray:
    """Where descent on R and ascent on F, each with the ridge, taken in turn, end from w_D."""
    w = minima(group)["D"]
    for _ in range(num_steps):
        for pull in group.pulls()["DA"]:
            w = w - step * (group.l2 * w - pull * np.exp(-w))
    return w


def grid() -> Group:
    """A thousand samples: forget sets of 1 to 30 %, groups of 1 to 90 %, seven ridges, 61 alphas.

    The alphas go from 0 to twice |F|/|R|, or to the whole forget set if that comes first.
    """
    num_forget = np.array([10.0, 50, 100, 300])[:, None, None, None]
    num_retain = 1000 - num_forget
    size = np.array([0.01, 0.1, 0.5, 0.9])[:, None, None] * num_retain
    top = np.minimum(2 * num_forget / num_retain, num_forget / size)
    l2 = np.logspace(-6, 0, 7)[:, None]
    arrays = (num_retain, num_forget, size, np.linspace(0, 1, 61) * top, l2)
    return Group(*np.broadcast_arrays(*arrays))


def check() -> dict[str, Any]:
    """Lemmas 2 to 5 and Corollary 1 over `grid`: points, violations and extremes."""
    group = grid()
    rescaled = group._replace(forget_weight=group.share())
    w_d, w_r, w_da = minima(group).values()
    has_minimum, above = group.alpha <= group.bounded_to(), group.alpha > group.share()
    bound = np.abs(np.log((1 + group.alpha) * group.num_retain / 1000))
    return {
        "lemma_2": _lemma_2(group),
        "lemma_3": _lemma_3(group),
        "lemma_3_rescaled": _lemma_3(rescaled),
        "lemma_4": {
            "points": w_d.size,
            "violations": int((np.abs(w_r - w_d) > bound + 1e-12).sum()),
        },
        "lemma_5": {
            "points": int((above & has_minimum).sum()),
            "violations": int((np.abs(w_r - w_da) < w_r)[above & has_minimum].sum()),
        },
        "corollary_1": _corollary_1(),
    }


def _lemma_2(group: Group) -> dict[str, Any]:
    """The closed forms against Newton's minima, and against where descent-ascent ends."""
    closed, by_newton = minima(group), minima(group, solved)
    none = group.alpha > group.bounded_to()
    end = next(islice(walk(group, rate=0.5), 5000, None))
    return {
        "points": none.size,
        "without_minimum": int(none.sum()),
        "largest_error": max(_largest(closed[name] - by_newton[name]) for name in closed),
        "end_error": _largest((end - closed["DA"])[~none]),
        "disagreements": sum(int((np.isnan(w["DA"]) != none).sum()) for w in (closed, by_newton)),
        "diverged": int((end[none] <= DIVERGED).sum()),
        "alternating": _alternating_errors(),
    }


def _alternating_errors() -> list[dict[str, float]]:
    """Distance of the alternating end point to the closed form at twice the ridge, by step size."""
    group = Group(900.0, 100.0, 810.0, np.array([0.02, 0.05, 0.1]), 0.1)
    doubled = minima(group._replace(l2=2 * group.l2))["DA"]
    return [
        {
            "step": step,
            "error": _largest(alternating(group, step=step, num_steps=round(400 / step)) - doubled),
        }
        for step in (0.1, 0.05, 0.025)
    ]


def _lemma_3(group: Group) -> dict[str, Any]:
    """Order of the minima and direction of the steps in the lemma's range, below and above it."""
    w_d, w_r, w_da = minima(group).values()
    edge = 1e-9  # on the edges of the range two minima are equal, and rounding would decide
    low, high = group.harmful_from(), group.share()
    ranges = {
        "below": group.alpha < low * (1 - edge),
        "inside": (group.alpha > low * (1 + edge)) & (group.alpha < high * (1 - edge)),
        "above": group.alpha > high * (1 + edge),
    }
    steps = np.stack(list(islice(walk(group, rate=0.05), 200)))
    distance = np.abs(steps - w_r)
    towards = (steps[1] - w_d) * (w_r - w_d) > 0
    facts = {
        "in_order": (w_da <= w_d) & (w_d <= w_r),
        "starts_towards": towards,
        "ever_nearer": np.any(np.diff(distance, axis=0) < -1e-12, axis=0),
        "ends_nearer": np.abs(w_da - w_r) < np.abs(w_d - w_r),
    }
    rows = {}
    for name, where in ranges.items():
        end = np.where(np.isnan(w_da), np.inf, np.abs(w_da - w_r))[where]
        rows[name] = {
            "points": int(where.sum()),
            **{fact: int((where & true).sum()) for fact, true in facts.items()},
            "median_before": float(np.median(np.abs(w_d - w_r)[where])),
            "median_after": float(np.median(end)),
        }
    return rows


def _corollary_1() -> list[dict[str, float]]:
    """Distances of the oracle to the original and to DA, as l2 and |F|/|R| - alpha vanish."""
    rows = []
    for small in 10.0 ** -np.arange(1, 9):
        group = Group(900.0, 100.0, 810.0, 100 / 900 * (1 - small), small)
        w_d, w_r, w_da = minima(group).values()
        rows.append({"l2": small, "before": abs(w_r - w_d), "after": abs(w_r - w_da)})
    return rows


def sweep() -> dict[str, Any]:
    """The minima over alpha for a group of 90 of 900 retained samples, 100 forgotten, l2 = 0.1.

    And the distance to the oracle along descent-ascent at an alpha of each range.
    """
    group = Group(900.0, 100.0, 90.0, np.linspace(0, 0.3, 151), 0.1)
    few = group._replace(alpha=np.array([0.005, 0.06, 0.14, 0.25]))
    steps = np.stack(list(islice(walk(few, rate=0.02), 401)))
    distance = np.abs(steps - minima(few)["R"])
    return {
        "group": group._replace(alpha=None)._asdict(),
        "harmful_from": group.harmful_from(),
        "share": group.share(),
        "bounded_to": group.bounded_to(),
        "alpha": group.alpha,
        "minima": minima(group),
        "rescaled": minima(group._replace(forget_weight=group.share()))["DA"],
        "paths": [{"alpha": a, "distance": d} for a, d in zip(few.alpha, distance.T, strict=True)],
    }


def random_sets(*, draws: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """Random forget sets of 100 of 1000 samples in 10 equal groups, l2 = 0.01, at both weights.

    The alphas of the groups, each weighed by |R_j|, average to |F|/|R|: they cannot all lie in the
    range of Lemma 3 unless all are equal. Distances are those of the whole vectors.
    """
    draw = np.random.default_rng(seed)
    forgotten = draw.multivariate_hypergeometric([100] * 10, 100, size=draws).astype(np.float64)
    fair = Group(900.0, 100.0, 100 - forgotten, forgotten / (100 - forgotten), 0.01)
    rows = []
    for weight in (1.0, fair.share()):
        group = fair._replace(forget_weight=weight)
        _, w_r, w_da = minima(group).values()
        steps = np.stack(list(islice(walk(group, rate=1e-3), 300)))
        distance = np.linalg.norm(steps - w_r, axis=-1)
        inside = (group.alpha >= group.harmful_from()) & (group.alpha <= group.share())
        end = np.linalg.norm(w_da - w_r, axis=-1)
        rows.append(
            {
                "forget_weight": weight,
                "draws": draws,
                "groups_in_range": float(np.mean(inside)),
                "sets_in_range": float(np.mean(np.all(inside, axis=1))),
                "starts_towards": float(np.mean(distance[1] < distance[0])),
                "nearest_to_before": float(np.median(distance.min(0) / distance[0])),
                "without_minimum": float(np.mean(np.isnan(end))),
                "median_before": float(np.median(distance[0])),
                "median_after": float(np.median(np.where(np.isnan(end), np.inf, end))),
            }
        )
    return rows


def _largest(values: Any) -> float:
    return float(np.nanmax(np.abs(values)))
