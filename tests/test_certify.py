"""Each certificate where it must hold, where it is made to fail, and where it says nothing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, random_batch, to_float64
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from famr_jax import certify, curvature
from famr_jax.certify import segment
from famr_jax.losses import uniform_kl
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.minimise import minimise
from famr_jax.types import Context, Pair

KEY = jax.random.key(0)
LAM = 0.1


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


class Convex:
    """Softmax regression: FAMR's forget loss in flat weights, its end, and dense derivatives."""

    def __init__(self, model):
        self.model = model
        params, self.forget = to_float64((drawn(model.init), random_batch(12, seed=3)))
        self.anchor, self.unravel = ravel_pytree(params)
        objective = AnchoredUniform(model.apply, jnp.asarray(LAM))
        pair = Pair(self.forget, None)
        found = minimise(objective, params, Context(params), pair, key=KEY, tol=1e-9)
        assert found.converged
        self.end = ravel_pytree(found.params)[0]
        self.loss = jax.jit(
            lambda flat: jnp.mean(uniform_kl(self.model.apply(self.unravel(flat), self.forget.x)))
        )
        self.grad, self.hessian = jax.jit(jax.grad(self.loss)), jax.jit(jax.hessian(self.loss))
        self.g = float(jnp.linalg.norm(self.grad(self.anchor)))

    def residual(self, flat):
        return float(jnp.linalg.norm(self.grad(flat) + LAM * (flat - self.anchor)))

    def range(self, flat):
        values = np.linalg.eigvalsh(np.asarray(self.hessian(flat)))
        return values[0], values[-1]

    @property
    def distance(self):
        return float(jnp.linalg.norm(self.end - self.anchor))


@pytest.fixture(scope="module")
def convex(logistic):
    with jax.enable_x64(True):
        yield Convex(logistic)


def is_vacuous(certificate, word):
    assert certificate.verdict == "vacuous"
    assert certificate.bound is None
    assert certificate.ratio is None
    assert word in certificate.why


def holds(certificate, *, ratio=math.inf):
    assert certificate.verdict == "holds", certificate
    assert 1 - 1e-9 <= certificate.ratio <= ratio


def test_stationarity(convex):
    residual = convex.residual(convex.end)
    holds(certify.stationarity(residual, convex.g, tol=1e-8))
    half_way = (convex.anchor + convex.end) / 2
    assert certify.stationarity(convex.residual(half_way), convex.g, tol=0.1).verdict == "violated"
    is_vacuous(certify.stationarity(0.0, 0.0, tol=0.1), "already")


def test_strong_convexity(convex):
    lowest = convex.range(convex.end)[0]
    assert lowest == pytest.approx(0, abs=1e-12)  # a shift of all logits changes nothing
    assert certify.strong_convexity(lowest, LAM, error=1e-12).verdict == "holds"
    assert certify.strong_convexity(-0.2, LAM, error=0.01).verdict == "violated"
    holds(certify.strong_convexity(-0.05, LAM, error=0.01), ratio=2.001)
    is_vacuous(certify.strong_convexity(-0.1, LAM, error=0.01), "error")
    is_vacuous(certify.strong_convexity(0.1, 0.0), "anchor")


def test_step_rule(convex):
    top = convex.range(convex.anchor)[1]
    holds(certify.step_rule(1 / (top + LAM), top, LAM), ratio=1 + 1e-9)
    assert certify.step_rule(1.01 / (top + LAM), top, LAM).verdict == "violated"
    is_vacuous(certify.step_rule(0.1, -1.0, LAM), "curvature")


def descend(convex, step, num_steps):
    flats = [convex.anchor]
    for _ in range(num_steps):
        flat = flats[-1]
        flats.append(flat - step * (convex.grad(flat) + LAM * (flat - convex.anchor)))
    return flats, [float(jnp.linalg.norm(flat - convex.end)) for flat in flats]


def test_linear_rate(convex):
    x = np.c_[np.ones(12), np.asarray(convex.forget.x).reshape(12, -1)]
    proved = np.linalg.norm(x, 2) ** 2 / 12 / 2  # diag p - p p^T <= 1/2
    assert proved >= max(convex.range(convex.anchor)[1], convex.range(convex.end)[1])
    for step in (1 / (proved + LAM), 0.3 / (proved + LAM), 1.9 / (proved + LAM)):
        _, distances = descend(convex, step, 20)
        holds(certify.linear_rate(distances, step, 0.0, proved, LAM))
    assert certify.linear_rate([1.0, 0.5, 0.49], 0.1, 1.0, 5.0, LAM).verdict == "violated"
    is_vacuous(certify.linear_rate([1.0, 0.5], 0.1, -1.0, 5.0, LAM), "factor")
    is_vacuous(certify.linear_rate([1.0, 0.5], 1.0, 1.0, 5.0, LAM), "factor")
    is_vacuous(certify.linear_rate([0.0, 0.0], 0.1, 1.0, 5.0, LAM), "minimum")
    # What looks like a violation may be the error of the minimum.
    late = ([1e-3, 9e-4], 0.1, 2.0, 5.0, LAM)
    assert certify.linear_rate(*late).verdict == "violated"
    assert certify.linear_rate(*late, error=1e-4).verdict == "holds"
    is_vacuous(certify.linear_rate(*late, error=1e-3), "no better")


@pytest.mark.parametrize("error", [0.25, 0.3, 0.5, 0.85])
def test_a_rate_does_not_hold_where_the_error_may_hide_growth(error):
    grows = ([1.0, 0.5, 0.9], 0.1, 1.0, 5.0, LAM)
    assert certify.linear_rate(*grows).verdict == "violated"
    assert certify.linear_rate(*grows, error=0.2).verdict == "violated"
    is_vacuous(certify.linear_rate(*grows, error=error), "moved away")
    is_vacuous(certify.linear_rate(*grows, error=0.95), "no better")
    # At the minimum, as far as that is known, distances may do as they like.
    settled = [1.0, 0.1, error / 20, error / 10]
    assert certify.linear_rate(settled, 0.1, 1.0, 5.0, LAM, error=error / 9).verdict == "holds"


def test_linear_rate_is_tight_on_a_quadratic():
    """Along the flattest direction descent contracts by exactly 1 - step (lowest + lam)."""
    distances = [(1 - 0.1 * (2 + LAM)) ** k for k in range(8)]
    holds(certify.linear_rate(distances, 0.1, 2.0, 5.0, LAM), ratio=1 + 1e-9)


def test_anchor_distance(convex):
    residual = convex.residual(convex.end)
    holds(certify.anchor_distance(convex.distance, convex.g, LAM, residual=residual))
    low = min(0, convex.range(convex.anchor)[0], convex.range(convex.end)[0])
    holds(certify.anchor_distance(convex.distance, convex.g, LAM, lowest=low, residual=residual))
    too_far = certify.anchor_distance(convex.g / LAM * 1.01, convex.g, LAM)
    assert too_far.verdict == "violated"
    is_vacuous(certify.anchor_distance(1.0, 1.0, LAM, lowest=-0.2), "convex")
    is_vacuous(certify.anchor_distance(1.0, 1.0, 0.0), "convex")


def test_anchor_distance_of_a_point_that_is_not_stationary(convex):
    """The residual's share is needed: without it the bound is broken."""
    away = convex.anchor + 3 * convex.g / LAM * jnp.ones_like(convex.anchor)
    distance = float(jnp.linalg.norm(away - convex.anchor))
    residual = convex.residual(away)
    holds(certify.anchor_distance(distance, convex.g, LAM, residual=residual), ratio=2)
    assert certify.anchor_distance(distance, convex.g, LAM).verdict == "violated"


@given(st.floats(0.01, 1.0))
def test_descent_distance_needs_no_stationary_point(convex, share):
    with jax.enable_x64(True):
        point = convex.anchor + share * (convex.end - convex.anchor)
        losses = float(convex.loss(convex.anchor)), float(convex.loss(point))
        holds(certify.descent_distance(share * convex.distance, *losses, LAM))


def test_descent_distance(convex):
    losses = float(convex.loss(convex.anchor)), float(convex.loss(convex.end))
    assert certify.descent_distance(10 * convex.distance, *losses, LAM).verdict == "violated"
    is_vacuous(certify.descent_distance(1.0, 0.5, 0.6, LAM), "did not fall")
    is_vacuous(certify.descent_distance(1.0, 0.6, 0.5, 0.0), "lam is 0")


def test_newton_gap(convex):
    at_anchor = convex.hessian(convex.anchor)
    newton = -jnp.linalg.solve(
        at_anchor + LAM * jnp.eye(at_anchor.shape[0]), convex.grad(convex.anchor)
    )
    gap = float(jnp.linalg.norm(convex.end - convex.anchor - newton))

    def drift(flat):
        return jnp.linalg.norm(convex.hessian(flat) - at_anchor, 2)

    (drifted,) = segment.along(drift, convex.anchor, convex.end, points=9)
    given = (convex.distance, 0.0, LAM)
    residual = convex.residual(convex.end)
    holds(certify.newton_gap(gap, drifted.mean, *given, residual=residual))
    # The paper's identity leaves the drift out.
    assert certify.newton_gap(gap, 0.0, *given, residual=residual).verdict == "violated"
    is_vacuous(certify.newton_gap(None, 0.1, 1.0, -0.2, LAM), "definite")


def test_resolvent():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(9, 9))
    h, g = factor @ factor.T + 0.5 * np.eye(9), rng.normal(size=9)
    lowest = np.linalg.eigvalsh(h)[0]
    for lam in (1e-3, 0.1, 10.0):
        gap = np.linalg.norm(np.linalg.solve(h + lam * np.eye(9), g) - np.linalg.solve(h, g))
        holds(certify.resolvent(gap, np.linalg.norm(g), lowest, lam))
        above = certify.resolvent(100 * gap, np.linalg.norm(g), 10 * lowest, lam)
        assert above.verdict == "violated"
    # Tight for a gradient along the flattest direction.
    flat = np.linalg.eigh(h)[1][:, 0]
    gap = np.linalg.norm(np.linalg.solve(h + np.eye(9), flat) - np.linalg.solve(h, flat))
    holds(certify.resolvent(gap, 1.0, lowest, 1.0), ratio=1 + 1e-8)
    is_vacuous(certify.resolvent(None, 1.0, 0.0, LAM), "definite")


def test_influence_distance():
    holds(certify.influence_distance(0.5, 2.0, 1.0, 0.5), ratio=2)
    assert certify.influence_distance(1.01, 2.0, 1.0, 0.5).verdict == "violated"
    is_vacuous(certify.influence_distance(1.0, 2.0, -1e-3, 0.5), "-0.001")


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_no_bound_is_zero_because_a_square_underflows(kind):
    """lambda_min 1e-30 squared is 0 in float32; 1e-170 in float64."""
    small = 1e-170 if kind is float else 1e-30
    one, low = kind(1.0), kind(small)
    tiny_gap = certify.influence_distance(one, kind(small), low, kind(small))
    assert (tiny_gap.verdict, tiny_gap.bound) == ("holds", pytest.approx(1.0))
    damped = certify.resolvent(kind(0.5), kind(small), low, kind(small))
    assert (damped.verdict, damped.bound) == ("holds", pytest.approx(0.5))
    large = certify.influence_distance(one, one, kind(1e-18), one)
    assert large.bound == pytest.approx(1e36, rel=1e-6)


def test_a_bound_beyond_all_numbers_says_nothing():
    for certificate in (
        certify.influence_distance(1.0, 1.0, 1e-170, LAM),
        certify.resolvent(1.0, 1.0, 1e-320, LAM),
        certify.step_rule(1.0, 1e-320, 0.0),
        certify.anchor_distance(1.0, 1.0, 1e-320),
        certify.descent_distance(1.0, 1.0, 0.0, 1e-320),
        certify.newton_gap(1.0, 1e200, 1e200, 0.0, LAM),
        certify.minimum_distance(1.0, [1.0, 1.0], 1e-320),
    ):
        is_vacuous(certificate, "beyond")


def test_minimum_distance(convex):
    other = convex.anchor + 0.7
    norms = [convex.residual(convex.end), convex.residual(other)]
    distance = float(jnp.linalg.norm(convex.end - other))
    holds(certify.minimum_distance(distance, norms, LAM))
    assert certify.minimum_distance(distance, norms, 1e3 * LAM).verdict == "violated"
    is_vacuous(certify.minimum_distance(distance, norms, 0.0), "convex")


def test_output_divergence(convex):
    outputs = convex.model.apply
    ends = [convex.unravel(flat) for flat in (convex.anchor, convex.end)]
    gap = segment.output_gap(*(outputs(params, convex.forget.x) for params in ends))
    slope = segment.output_slope(outputs, ends[0], convex.forget.x, tol=1e-9, key=KEY)
    holds(certify.output_divergence(gap, slope, convex.distance))
    assert certify.output_divergence(gap, slope / 100, convex.distance).verdict == "violated"
    is_vacuous(certify.output_divergence(0.0, slope, 0.0), "same")


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="measured"):
        certify.stationarity(math.nan, 1.0, tol=0.1)
    with pytest.raises(ValueError, match="measured"):
        certify.resolvent(None, 1.0, 1.0, LAM)
    with pytest.raises(ValueError, match="start_norm"):
        certify.stationarity(1.0, -1.0, tol=0.1)
    with pytest.raises(ValueError, match="distances"):
        certify.linear_rate([1.0], 0.1, 0.0, 1.0, LAM)
    with pytest.raises(ValueError, match="grad_norms"):
        certify.minimum_distance(1.0, [1.0, math.inf], 1.0)
    with pytest.raises(ValueError, match="lowest"):
        certify.resolvent(1.0, 1.0, math.nan, LAM)
    with pytest.raises(ValueError, match="points"):
        segment.along(lambda flat: flat, jnp.ones(1), jnp.ones(1), points=1)


GOOD = {
    "stationarity": (1.0, 1.0),
    "strong_convexity": (-0.05, LAM),
    "step_rule": (0.1, 1.0, LAM),
    "linear_rate": ([1.0, 0.5], 0.1, 1.0, 2.0, LAM),
    "anchor_distance": (1.0, 1.0, LAM),
    "descent_distance": (1.0, 0.6, 0.5, LAM),
    "newton_gap": (1.0, 0.1, 1.0, 0.1, LAM),
    "resolvent": (1.0, 1.0, 0.1, LAM),
    "influence_distance": (1.0, 1.0, 0.1, LAM),
    "minimum_distance": (1.0, [1.0, 1.0], 0.1),
    "output_divergence": (1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("wrap", [float, jnp.asarray, np.asarray])
@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_judged_by_a_nan(name, wrap):
    """In any argument, and as an array too: a NaN neither holds nor is violated nor vacuous."""
    function = getattr(certify, name)
    more = {"tol": 0.1} if name == "stationarity" else {}
    assert function(*GOOD[name], **more).verdict != "vacuous"
    for i, value in enumerate(GOOD[name]):
        bad = [value[0], wrap(math.nan)] if isinstance(value, list) else wrap(math.nan)
        with pytest.raises(ValueError, match="finite"):
            function(*GOOD[name][:i], bad, *GOOD[name][i + 1 :], **more)


@pytest.mark.parametrize("points", [2, 3, 5, 8])
def test_along_integrates_polynomials_exactly(points):
    start, end = {"a": jnp.asarray(-1.0)}, {"a": jnp.asarray(3.0)}
    power = 2 * points - 3
    line, cube = segment.along(lambda p: (p["a"], p["a"] ** power), start, end, points=points)
    assert line == pytest.approx((-1.0, 1.0, 3.0))
    assert cube.mean == pytest.approx((3.0 ** (power + 1) - 1) / (power + 1) / 4)
    assert (cube.low, cube.high) == pytest.approx(((-1.0) ** power, 3.0**power))


@functools.cache
def problem(model):
    params, batch = to_float64((drawn(model.init), random_batch(10, seed=5)))

    def loss_fn(params, batch):
        return uniform_kl(model.apply(params, batch.x))

    return params, batch, loss_fn, lambda params, batch: model.apply(params, batch.x)


def test_curvature_range_encloses_the_spectrum(model):
    params, batch, loss_fn, _ = problem(model)
    flat, unravel = ravel_pytree(params)
    dense = jax.hessian(lambda flat: jnp.mean(loss_fn(unravel(flat), batch)))(flat)
    values = np.linalg.eigvalsh(np.asarray(dense))
    low, high = segment.curvature_range(
        curvature.Hessian(loss_fn, params, batch), params, tol=1e-6, key=KEY
    )
    assert values[0] < -1e-3
    assert low <= values[0] + 1e-12
    assert high >= values[-1] - 1e-12
    np.testing.assert_allclose([low, high], values[[0, -1]], atol=1e-5 * values[-1])


@pytest.mark.parametrize("batch_size", [None, 3])
def test_output_slope_is_the_norm_of_the_dense_jacobian(model, batch_size):
    params, batch, _, outputs_fn = problem(model)
    flat, unravel = ravel_pytree(params)
    dense = jax.jacobian(lambda flat: outputs_fn(unravel(flat), batch))(flat).reshape(-1, flat.size)
    wanted = np.linalg.norm(np.asarray(dense), 2) / math.sqrt(10)
    slope = segment.output_slope(
        outputs_fn, params, batch, batch_size=batch_size, tol=1e-8, key=KEY
    )
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    assert slope >= wanted * (1 - 1e-12)


def test_outputs_of_a_net_diverge_by_no_more_than_the_mean_slope(model):
    params, batch, _, outputs_fn = problem(model)
    other = jax.tree.map(lambda leaf: leaf + 0.5, params)

    def slope(p):
        return segment.output_slope(outputs_fn, p, batch, tol=1e-8, key=KEY)

    (slopes,) = segment.along(slope, params, other, points=7)
    assert slopes.low < 0.9 * slopes.high
    gap = segment.output_gap(outputs_fn(params, batch), outputs_fn(other, batch))
    distance = 0.5 * math.sqrt(ravel_pytree(params)[0].size)
    holds(certify.output_divergence(gap, slopes.mean, distance))
