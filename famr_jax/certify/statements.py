"""Certificates: each statement of the FAMR paper, and its corrected form, as measured <= bound.

Each takes measured numbers and answers with a `Certificate`: it holds, it is violated, or it is
vacuous because what it presumes is not so. No constant is assumed: `certify.segment` measures
curvatures and Jacobian norms on the way from one point to another. J is FAMR's objective,
L_forget + lam/2 |params - anchor|^2; norms are Euclidean over all weights.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from famr_jax.types import check_number

ROUNDING = 1e-9
"""Relative excess of a measured side over its bound that is put down to float64."""


class Certificate(NamedTuple):
    """One statement, judged.

    Attributes:
        name: What is stated, in a few words.
        measured: The side that was measured; None where vacuous and not measured.
        bound: The side that the statement puts above it; None where vacuous.
        verdict: Whether measured <= bound.
        why: What is missing, where vacuous.
    """

    name: str
    measured: float | None
    bound: float | None
    verdict: Literal["holds", "violated", "vacuous"]
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """Bound over measured: 1 is tight; None where vacuous or where nothing was there."""
        return None if self.bound is None or not self.measured else self.bound / self.measured


def stationarity(grad_norm: float, start_norm: float, *, tol: float) -> Certificate:
    """FAMR's end is a stationary point of J.

        |grad L_forget(end) + lam (end - anchor)| <= tol |grad L_forget(anchor)|

    Args:
        grad_norm: |grad J(end)|.
        start_norm: |grad J(anchor)|.
        tol: What counts as zero.

    Source: FAMR (arXiv 2506.14515), optimality condition.
    """
    _check("tol", tol, above=0)
    missing = "" if start_norm else "the anchor is stationary already"
    return _judge("stationarity", grad_norm, tol * start_norm, missing, {"start_norm": start_norm})


def strong_convexity(lowest: float, lam: float, *, error: float = 0.0) -> Certificate:
    """The anchor makes J strongly convex: it outweighs the forget loss's negative curvature.

        max(0, -lambda_min) <= lam,    and J's modulus is lam + lambda_min

    Proved where the forget loss is convex (a model linear in its parameters: pass 0); elsewhere it
    is a matter of measuring lambda_min wherever J is said to be convex.

    Args:
        lowest: lambda_min of the forget loss's Hessian.
        lam: FAMR's anchor strength.
        error: How far off `lowest` may be; within it of -lam nothing is decided.

    Source: FAMR (arXiv 2506.14515), which says it of every model.
    """
    _check("lowest", lowest)
    _check_sizes({"lam": lam, "error": error})
    missing = ""
    if lam == 0:
        missing = "there is no anchor, lam is 0"
    elif abs(lowest + lam) <= error:
        missing = "the error of the eigenvalue is larger than its distance to -lam"
    return _judge("strong convexity", max(-lowest, 0.0), lam, missing)


def step_rule(step: float, highest: float, lam: float) -> Certificate:
    """A step of gradient descent is short enough never to overshoot.

        step <= 1 / (L + lam)

    Twice that is where descent starts to diverge. L at the anchor alone says nothing of the path.

    Args:
        step: The learning rate of plain gradient descent; the rule is none for Adam.
        highest: L, the largest eigenvalue of the forget loss's Hessian along the path.
        lam: FAMR's anchor strength.

    Source: FAMR (arXiv 2506.14515), step rule.
    """
    _check("highest", highest)
    top = highest + lam
    missing = "" if top > 0 else "J has no positive curvature"
    return _judge("step rule", step, _over(1.0, top), missing, {"lam": lam})


def linear_rate(
    distances: Sequence[float] | np.ndarray,
    step: float,
    lowest: float,
    highest: float,
    lam: float,
    *,
    error: float = 0.0,
) -> Certificate:
    """Gradient descent comes nearer to the minimum by a constant factor each step.

        d_{k+1} / d_k <= max(|1 - step (lowest + lam)|, |1 - step (highest + lam)|)

    With step <= 1/(highest + lam) that is 1 - step (lowest + lam). The measured side is the worst
    step, (d_{k+1} - error) / (d_k + error): what the error may explain is no violation. Nor does
    the rate hold where it may hide that an iterate away from the minimum went further off.

    Args:
        distances: |params_k - minimum| of each iterate, at least two.
        step: The learning rate of plain gradient descent.
        lowest: Least eigenvalue of the forget loss's Hessian between iterates and minimum.
        highest: Largest there.
        lam: FAMR's anchor strength.
        error: How far off a distance may be: |grad J|/(lowest + lam) at what stands for the
            minimum.

    Source: FAMR (arXiv 2506.14515), convergence; with the modulus in place of lam.
    """
    _check_sizes({"lam": lam, "error": error})
    away = np.asarray(distances, np.float64)
    if away.size < 2 or not np.all(np.isfinite(away)) or np.any(away < 0):
        got = f"got {away.tolist()}"
        raise ValueError(f"`distances` must be two or more finite numbers >= 0, {got}.")
    for name, value in {"lowest": lowest, "highest": highest}.items():
        _check(name, value)
    _check("step", step, above=0)
    factor = max(abs(1 - step * (lowest + lam)), abs(1 - step * (highest + lam)))
    missing = "" if factor < 1 else f"the curvatures allow a factor of {factor:.3g}"
    if not np.all(away[:-1] > 0):
        missing = "an iterate is the minimum already"
    elif error and error >= np.max(away[1:]):
        missing = "the minimum is known no better than the iterates' distances to it"
    before = np.where(away[:-1] > 0, away[:-1] + error, np.inf)
    worst = float(np.max((away[1:] - error) / before))
    further = away[1:] > np.maximum(away[:-1], error)
    if not missing and worst <= factor and np.any(further):
        missing = "the error of the minimum may hide that an iterate moved away from it"
    return _judge("linear rate", max(worst, 0.0), factor, missing)


def anchor_distance(
    distance: float, grad_norm: float, lam: float, *, lowest: float = 0.0, residual: float = 0.0
) -> Certificate:
    """FAMR's end is near the anchor, by the gradient it started from.

        |end - anchor| <= (|g| + |grad J(end)|) / (lam + lambda_min)

    The paper's form, |g|/lam, is this with lambda_min = 0: it needs a convex forget loss.

    Args:
        distance: |end - anchor|.
        grad_norm: |g|, g the forget loss's gradient at the anchor.
        lam: FAMR's anchor strength.
        lowest: lambda_min of the forget loss's Hessian, averaged along the segment; 0 if convex.
        residual: |grad J(end)|, 0 at an exact stationary point.

    Source: FAMR (arXiv 2506.14515), proximity; from <grad J(end) - grad J(anchor), end - anchor>.
    """
    _check("lowest", lowest)
    missing = "" if lam + lowest > 0 else "J is not strongly convex on the segment"
    bound = _over(grad_norm + residual, lam + lowest)
    sizes = {"grad_norm": grad_norm, "lam": lam, "residual": residual}
    return _judge("distance, convex", distance, bound, missing, sizes)


def descent_distance(
    distance: float, loss_at_anchor: float, loss_at_end: float, lam: float
) -> Certificate:
    """FAMR's end is near the anchor, by the forget loss it gained: no convexity needed.

        |end - anchor| <= sqrt(2 (L_forget(anchor) - L_forget(end)) / lam)

    True of any point with J(end) <= J(anchor), stationary or not.

    Args:
        distance: |end - anchor|.
        loss_at_anchor: L_forget there.
        loss_at_end: L_forget there.
        lam: FAMR's anchor strength.
    """
    gain = loss_at_anchor - loss_at_end
    _check("loss_at_anchor - loss_at_end", gain)
    missing = "lam is 0" if lam == 0 else "" if gain >= 0 else "the forget loss did not fall"
    bound = math.sqrt(2 * max(gain, 0.0) / lam) if lam > 0 else 0.0
    return _judge("distance, descent", distance, bound, missing, {"lam": lam})


def newton_gap(
    gap: float | None,
    drift: float,
    distance: float,
    lowest: float,
    lam: float,
    *,
    residual: float = 0.0,
) -> Certificate:
    """FAMR's step is one damped Newton step on the forget loss, up to how far its Hessian drifts.

        |(end - anchor) + (H + lam)^-1 g| <= (drift |end - anchor| + |grad J(end)|) / mu

    mu = lam + lambda_min. The paper's identity has 0 on the right: true of a quadratic loss only.

    Args:
        gap: The left side, H the forget loss's Hessian at the anchor and g its gradient there;
            None where H + lam is not positive definite.
        drift: |H(t) - H(anchor)|, a spectral norm averaged along the segment.
        distance: |end - anchor|.
        lowest: lambda_min of H.
        lam: FAMR's anchor strength.
        residual: |grad J(end)|.

    Source: FAMR (arXiv 2506.14515), influence link, with its error.
    """
    _check("lowest", lowest)
    missing = "" if lam + lowest > 0 else "H + lam is not positive definite"
    bound = _over(drift * distance + residual, lam + lowest)
    sizes = {"drift": drift, "distance": distance, "lam": lam, "residual": residual}
    return _judge("Newton step", gap, bound, missing, sizes)


def resolvent(gap: float | None, grad_norm: float, lowest: float, lam: float) -> Certificate:
    """Damping a solve by lam moves its answer by little, if the matrix is definite.

        |(H + lam)^-1 g - H^-1 g| <= lam |g| / (lambda_min (lambda_min + lam))

    Args:
        gap: The left side; None where H is not positive definite.
        grad_norm: |g|.
        lowest: lambda_min of H.
        lam: The damping.

    Source: FAMR (arXiv 2506.14515), the linear algebra under its distance to influence.
    """
    missing = _needs_definite(lowest)
    bound = _over(lam, lowest + lam) * _over(grad_norm, lowest)
    return _judge("resolvent", gap, bound, missing, {"grad_norm": grad_norm, "lam": lam})


def influence_distance(distance: float, grad_norm: float, lowest: float, lam: float) -> Certificate:
    """The paper's statement, which is no theorem: FAMR's end is near the influence estimate.

        |end - w*| <= lam |g| / lambda_min^2

    The two solve different equations, with the forget loss's Hessian and the retained data's, so
    the left side need not fall with lam; `minimum_distance` is true.

    Args:
        distance: |end - w*|, w* the influence estimate of the retrained weights.
        grad_norm: |g|, the gradient of the influence step.
        lowest: lambda_min of H, the Hessian of the influence step.
        lam: FAMR's anchor strength.

    Source: FAMR (arXiv 2506.14515), with the constant of its O() set to one.
    """
    missing = _needs_definite(lowest)
    bound = _over(lam, lowest) * _over(grad_norm, lowest)
    return _judge(
        "distance to influence", distance, bound, missing, {"grad_norm": grad_norm, "lam": lam}
    )


def minimum_distance(distance: float, grad_norms: Sequence[float], modulus: float) -> Certificate:
    """Two points are no further apart than J's gradients there tell, where J is strongly convex.

        |a - b| <= (|grad J(a)| + |grad J(b)|) / modulus

    With a = FAMR's end and b = w* it is what remains true of their distance.

    Args:
        distance: |a - b|.
        grad_norms: |grad J| at both.
        modulus: lam + lambda_min of the forget loss's Hessian, averaged along the segment.
    """
    _check("modulus", modulus)
    missing = "" if modulus > 0 else "J is not strongly convex between the points"
    bound = _over(sum(grad_norms), modulus)
    sizes = {"grad_norms": np.min(grad_norms), "the sum of grad_norms": sum(grad_norms)}
    return _judge("distance, gradients", distance, bound, missing, sizes)


def output_divergence(gap: float, slope: float, distance: float) -> Certificate:
    """Outputs differ by no more than the weights do, times the Jacobian norm between them.

        rms_i |f_i(a) - f_i(b)| <= slope |a - b|,    slope = mean over the segment of |J|/sqrt(N)

    Args:
        gap: Root mean square over examples of the distance of the logits.
        slope: From `output_slope`, averaged along the segment; its largest value does as well.
        distance: |a - b|.

    Source: FAMR (arXiv 2506.14515), output divergence, with its L_f measured.
    """
    missing = "" if distance else "the points are the same"
    sizes = {"slope": slope, "distance": distance}
    return _judge("output divergence", gap, slope * distance, missing, sizes)


def _needs_definite(lowest):
    _check("lowest", lowest)
    return "" if lowest > 0 else f"H is not positive definite, its lambda_min is {lowest:.3g}"


def _over(numerator, denominator):
    # Quotients, not products: the square of a small eigenvalue is 0, and so would be its bound.
    return float(numerator) / float(denominator) if denominator > 0 else 0.0


def _check(name, value, *, above=-math.inf, least=-math.inf):
    # `check_number` lets arrays pass, and a NaN among them would be judged.
    check_number(name, np.asarray(value).tolist(), above=above, least=least)


def _check_sizes(sizes):
    for name, size in sizes.items():
        _check(name, size, least=0)


def _judge(name, measured, bound, missing="", sizes=None):
    """The certificate; `missing` says what the statement presumes and the numbers deny."""
    _check_sizes(sizes or {})
    if missing and measured is None:
        return Certificate(name, None, None, "vacuous", missing)
    _check_sizes({"measured": measured})
    if not missing and not math.isfinite(bound):
        missing = "the bound is beyond all floating-point numbers"
    if missing:
        return Certificate(name, float(measured), None, "vacuous", missing)
    verdict = "holds" if measured <= bound * (1 + ROUNDING) else "violated"
    return Certificate(name, float(measured), float(bound), verdict)
