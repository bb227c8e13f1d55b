"""The toy landscape of Ascent Fails to Forget (arXiv 2509.26427), section 5.2, in float64.

Fourteen samples at x = -1, 1, 3, 4 with labels -, +, -, + and multiplicities 5, 4, 1, 4; a model
h = s(a x + b x^2); squared error and the ridge l2/2 ||(a, b)||^2, l2 = 0.1. Two of the four copies
at x = 4 are forgotten. Descent-ascent on sums then minimises with multiplicity 0 there, because the
two copies that stay cancel the two that ascend.

The text's s(z) = 1 / (1 + e^{-(1 + z) / 2}) does not give the text's story, with labels -1 and 1 or
with 0 and 1. Ours does: s(z) = tanh(z / 2), labels -1 and 1. It is a reconstruction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import minimum_filter
from scipy.optimize import minimize

X = np.array([-1.0, 1.0, 3.0, 4.0])
LABELS = np.array([-1.0, 1.0, -1.0, 1.0])
COPIES = {
    "D": np.array([5.0, 4, 1, 4]),
    "R": np.array([5.0, 4, 1, 2]),
    "DA": np.array([5.0, 4, 1, 0]),
}
L2 = 0.1
DESIGN = np.stack([X, X**2], axis=1)
STEP, NUM_STEPS, KEPT = 2e-3, 10_000, 60


class Convention(NamedTuple):
    """How the text may be read.

    Attributes:
        name: In words.
        function: s.
        slope: Its derivative, as a function of its value.
        labels: The targets.
        cut: Outputs above it say +.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    cut: float


def _logistic(z: np.ndarray) -> np.ndarray:
    return (1 + np.tanh((1 + z) / 4)) / 2


OURS = Convention(
    "tanh(z/2), labels -1 and 1", lambda z: np.tanh(z / 2), lambda h: (1 - h * h) / 2, LABELS, 0.0
)
LITERAL = (
    Convention("as printed, labels -1 and 1", _logistic, lambda h: h * (1 - h) / 2, LABELS, 0.5),
    Convention(
        "as printed, labels 0 and 1", _logistic, lambda h: h * (1 - h) / 2, (LABELS + 1) / 2, 0.5
    ),
)


def loss(point: np.ndarray, copies: np.ndarray, convention: Convention = OURS) -> np.ndarray:
    """sum_i copies_i (h_i - y_i)^2 + l2/2 ||point||^2 at points (a, b), `[..., 2]`."""
    h = convention.function(point @ DESIGN.T)
    return np.sum(copies * (h - convention.labels) ** 2, -1) + L2 / 2 * np.sum(point**2, -1)


def gradient(point: np.ndarray, copies: np.ndarray, convention: Convention = OURS) -> np.ndarray:
    """Gradient of `loss`, `[..., 2]`."""
    h = convention.function(point @ DESIGN.T)
    inner = 2 * copies * (h - convention.labels) * convention.slope(h)
    return inner @ DESIGN + L2 * point


def signs(point: np.ndarray, convention: Convention = OURS) -> str:
    """What the model says at the four x, as -+++."""
    above = convention.function(point @ DESIGN.T) > convention.cut
    return "".join(np.where(above, "+", "-"))


def minima(copies: np.ndarray, convention: Convention = OURS) -> list[dict[str, Any]]:
    """The minima in [-6, 6]^2, the lowest first: those of a fine grid, polished by BFGS."""
    line = np.linspace(-6, 6, 401)
    points = np.stack(np.meshgrid(line, line), -1)
    heights = loss(points, copies, convention)
    lowest = heights == minimum_filter(heights, size=3)
    found = []
    for start in points[lowest]:
        end = minimize(loss, start, (copies, convention), "BFGS", gradient, options={"gtol": 1e-9})
        new = not any(np.allclose(end.x, other["point"], atol=1e-4) for other in found)
        if new and np.linalg.norm(end.jac) < 1e-6:
            found.append({"point": end.x, "loss": end.fun, "signs": signs(end.x, convention)})
    return sorted(found, key=lambda minimum: minimum["loss"])


def descend(start: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent in our convention to the last step: (steps `[k]`, points `[k, ..., 2]`).

    Keeps some of the points, the start among them, evenly spaced in the logarithm of the step.
    """
    kept = np.unique([0, *np.geomspace(1, NUM_STEPS, KEPT).round().astype(int)])
    point, points = np.asarray(start, np.float64), []
    for step in range(NUM_STEPS + 1):
        if step == kept[len(points)]:
            points.append(point)
        point = point - STEP * gradient(point, copies)
    return kept, np.stack(points)


def story() -> dict[str, Any]:
    """Descent-ascent from the trained point, and fine-tuning on R from every point of its path."""
    trained = minima(COPIES["D"])[0]["point"]
    steps, ascended = descend(trained, COPIES["DA"])
    _, tuned = descend(ascended, COPIES["R"])
    oracle = minima(COPIES["R"])[0]
    home = np.linalg.norm(tuned[-1] - oracle["point"], axis=-1) < 1e-3
    ends = {"D": trained, "DA": ascended[-1], "fine-tuned": tuned[-1, -1], "R": oracle["point"]}
    return {
        "descent_ascent": ascended,
        "fine_tuning": tuned[:, -1],
        "steps": steps,
        "comes_home": home,
        "last_home": int(steps[home].max()),
        "ends": {
            name: {
                "point": point,
                "loss": loss(point, COPIES["R"]),
                "signs": signs(point),
                "gradient": np.linalg.norm(gradient(point, COPIES["R"])),
            }
            for name, point in ends.items()
        },
    }


def readings() -> list[dict[str, Any]]:
    """The minima of the three problems in each reading of the text, ours first."""
    return [
        {"name": each.name, **{kind: minima(copies, each) for kind, copies in COPIES.items()}}
        for each in (OURS, *LITERAL)
    ]


def traps(reading: dict[str, Any]) -> bool:
    """Whether a reading tells the story.

    The trained model and the oracle lie behind one boundary, descent-ascent has no minimum there,
    and where it ends is, behind the other boundary, a minimum of the retained loss too.
    """
    trained, oracle = (reading[kind][0]["signs"] for kind in ("D", "R"))
    ends = {minimum["signs"] for minimum in reading["DA"]}
    held = {minimum["signs"] for minimum in reading["R"]}
    return trained == oracle and oracle not in ends and ends <= held
