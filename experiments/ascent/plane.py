"""The correlated problem of Ascent Fails to Forget (arXiv 2509.26427) in the plane, in float64.

Retained samples are (1, eps) and forgotten ones (eps, 1), of one label. With a and b the weights of
the two kinds in an objective (`Group.pulls`), and x = w1 + eps w2, y = eps w1 + w2 their margins,

    J(w) = a e^{-x} + b e^{-y} + l2/2 ||w||^2.

D and R are convex. DA, whose b is negative, may have no stationary point at all.
"""

from typing import Any

import numpy as np

from experiments.ascent.newton import newton
from experiments.ascent.orthogonal import Group

SCAN = 1500
CELLS = {
    "H": "R >= D >= DA in x and y, so that descent-ascent leads away from the oracle",
    "A": "DA above D in x or y",
    "B": "D above R in x or y, and DA below D",
    "N": "descent-ascent has no minimum and diverges",
}


def minima(group: Group, eps: Any) -> dict[str, np.ndarray]:
    """The minima of D, R and DA in weights, each `[..., 2]`, NaN where there is none.

    Args:
        group: One or many, alpha > 0.
        eps: Overlap of the two features, in (0, 1); broadcasts with the group's fields.
    """
    *fields, eps = np.broadcast_arrays(*group, np.float64(eps))
    pulls = Group(*fields).pulls()
    starts = dict.fromkeys(("D", "R"), np.zeros((*eps.shape, 2)))
    starts["DA"] = _start_of_descent_ascent(*pulls["DA"], fields[4], eps)
    return {name: minimum_near(*pulls[name], fields[4], eps, at) for name, at in starts.items()}


def margins(w: np.ndarray, eps: Any) -> tuple[np.ndarray, np.ndarray]:
    """x = w1 + eps w2 and y = eps w1 + w2."""
    return w[..., 0] + eps * w[..., 1], eps * w[..., 0] + w[..., 1]


def gradient(a: Any, b: Any, l2: Any, eps: Any, w: np.ndarray) -> np.ndarray:
    """The gradient of J in the weights, `[..., 2]`."""
    x, y = margins(w, eps)
    p, q = a * np.exp(-x), b * np.exp(-y)
    return np.stack([l2 * w[..., 0] - p - eps * q, l2 * w[..., 1] - eps * p - q], axis=-1)


def minimum_near(a: Any, b: Any, l2: Any, eps: Any, w: np.ndarray) -> np.ndarray:
    """The minimum that Newton's method finds from w by steps of at most 1; NaN for none."""

    def derivatives(w):
        x, y = margins(w, eps)
        p, q = a * np.exp(-x), b * np.exp(-y)
        h11, h12, h22 = l2 + p + eps**2 * q, eps * (p + q), l2 + eps**2 * p + q
        g, det = gradient(a, b, l2, eps, w), h11 * h22 - h12 * h12
        s1 = (h22 * g[..., 0] - h12 * g[..., 1]) / det
        s2 = (h11 * g[..., 1] - h12 * g[..., 0]) / det
        return g, np.stack([s1, s2], axis=-1), (h11 > 0) & (det > 0)

    scale = np.abs(a) + np.abs(b) + l2
    return newton(derivatives, w, num_steps=100, scale=scale, tol=1e-10, longest=1.0)


def _start_of_descent_ascent(a: Any, b: Any, l2: Any, eps: Any) -> np.ndarray:
    """A point near the minimum of DA, `[..., 2]`, NaN where DA has no stationary point.

    Eliminating y from grad J = 0 leaves one equation F(x) = 0 for x below W0((1 + eps^2) a / l2),
    which is x_R. F goes to +infinity at both ends; its largest root is the minimum, the next a
    saddle. A scan finds where F turns negative, and a finer one round its least value decides where
    the first found none.
    """
    a, b, l2, eps = (np.asarray(value)[..., None] for value in (a, b, l2, eps))
    square, double = 1 + eps**2, 2 * eps
    start = np.zeros((*eps.shape, 2))
    top = margins(minimum_near(a, 0 * b, l2, eps, start), eps)[0]

    def function(x):
        """F, and y: y solves the first equation, F is what the second leaves."""
        q = (square * a * np.exp(-x) - l2 * x) / (-b * double)
        y = -np.log(np.maximum(q, 1e-300))
        return y - (double * a * np.exp(-x) + square * b * q) / l2, y

    def first_root(below):
        values, y = function(top - below)
        at = np.argmax(values < 0, axis=-1, keepdims=True)
        found = np.any(values < 0, axis=-1, keepdims=True)

        def take(array):
            return np.take_along_axis(np.broadcast_to(array, values.shape), at, -1)

        return np.where(found, take(top - below), np.nan), take(y), np.argmin(values, -1)

    scan = np.logspace(-8, np.log10(40), SCAN)
    x, y, least = first_root(scan)
    around = scan[np.clip(least[..., None] + np.array([-1, 1]), 0, SCAN - 1)]
    finer = around[..., :1] + (around[..., 1:] - around[..., :1]) * np.linspace(0, 1, 200)
    x_finer, y_finer, _ = first_root(finer)
    x, y = np.where(np.isnan(x), (x_finer, y_finer), (x, y))
    return np.concatenate([x - eps * y, y - eps * x], axis=-1) / (1 - eps**2)


def lemma_9(group: Group, eps: Any) -> Any:
    """The alpha from which Lemma 9 says x_D >= x_DA and y_D >= y_DA."""
    ratio = (1 + eps**2) / (2 * eps)
    share_of_forget = group.num_forget / (group.num_retain + group.num_forget)
    return np.maximum(ratio, 1 / (ratio * share_of_forget)) * group.harmful_from()


def phase_map(*, num_forget: int, l2: float, cells: int = 40) -> dict[str, Any]:
    """Which ordering holds where, over eps and over alpha up to |F|/|R|, at |R_ij| = 0.9 |R|.

    A row of `map` is one alpha, a letter of it one eps; `CELLS` says what the letters mean.
    """
    eps = np.linspace(0.02, 0.98, cells)
    num_retain = 1000.0 - num_forget
    alpha = np.linspace(0, num_forget / num_retain, cells + 1)[1:, None]
    group = Group(num_retain, float(num_forget), 0.9 * num_retain, alpha, l2)
    found = minima(group, eps)
    (x_d, y_d), (x_r, y_r), (x_da, y_da) = (margins(w, eps) for w in found.values())
    none = np.isnan(x_da)
    below = (x_da <= x_d) & (y_da <= y_d)
    in_order = below & (x_d <= x_r) & (y_d <= y_r)
    letters = np.select([none, in_order, ~below], ["N", "H", "A"], "B")
    said = (alpha >= lemma_9(group, eps)) & ~none
    before, after = (np.linalg.norm(found[n] - found["R"], axis=-1) for n in ("D", "DA"))
    return {
        "num_forget": num_forget,
        "l2": l2,
        "eps": eps,
        "alpha": alpha[:, 0],
        "map": ["".join(row) for row in letters],
        "counts": {letter: int((letters == letter).sum()) for letter in CELLS},
        "lemma_9": lemma_9(group, eps),
        "lemma_9_points": int(said.sum()),
        "lemma_9_violations": int((said & ~below).sum()),
        "ends_farther": int((after > before)[~none].sum()),
        "largest_residual": _residual(group, eps, found),
    }


def _residual(group: Group, eps: np.ndarray, found: dict[str, np.ndarray]) -> float:
    norms = [
        np.linalg.norm(gradient(*pulls, group.l2, eps, found[name]), axis=-1)
        for name, pulls in group.pulls().items()
    ]
    return float(np.nanmax(norms))
