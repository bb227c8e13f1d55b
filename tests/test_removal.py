"""Removal against retraining, its bound against the gradient, its noise against exact densities."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from famr_jax.certify import logistic
from famr_jax.certify.logistic import account, fit, gaussian_delta, gaussian_shift, release, remove

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def problem(seed=0, n=60, dim=5, heads=3):
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(size=(n, dim - 1)), np.ones(n)]
    truth = rng.normal(size=(dim, heads))
    signs = np.where(x @ truth + rng.logistic(size=(n, heads)) > 0, 1.0, -1.0)
    return jnp.asarray(x), jnp.asarray(signs)


def mask(rows, n=60):
    return np.isin(np.arange(n), rows)


def left(fitted, x, signs):
    """Norm of each head's gradient of the objective on what is retained, by NumPy."""
    keep = np.asarray(fitted.retained)
    x, signs, w = np.asarray(x)[keep], np.asarray(signs)[keep], np.asarray(fitted.weights)
    pull = -signs / (1 + np.exp(signs * (x @ w.T)))
    ridge = float(fitted.l2) * len(x) * w
    return np.linalg.norm(pull.T @ x + ridge + np.asarray(fitted.b), axis=1)


@pytest.mark.parametrize("noise", ["output", "objective"])
def test_the_fit_is_scikit_learns(noise):
    from sklearn.linear_model import LogisticRegression

    x, signs = problem()
    fitted = fit(x, signs, l2=0.01, sigma=1.0, noise=noise, key=KEY)
    np.testing.assert_allclose(left(fitted, x, signs), fitted.spent, atol=1e-12)
    assert np.all(fitted.spent < 1e-10)
    if noise == "output":
        for head, s in zip(fitted.weights, signs.T, strict=True):
            reference = LogisticRegression(C=1 / (0.01 * 60), fit_intercept=False, tol=1e-10)
            np.testing.assert_allclose(head, reference.fit(x, s).coef_[0], atol=1e-5)


def test_the_fit_arrives_from_afar():
    """Separable data and next to no ridge, where a whole Newton step from zero runs away."""
    x, signs = problem(n=12, dim=10)
    fitted = fit(100 * x, signs, l2=1e-7, sigma=1.0, key=KEY)
    assert np.all(fitted.spent <= 1e-11)


@given(
    seed=st.integers(0, 5),
    rows=st.lists(st.integers(0, 59), min_size=1, max_size=30, unique=True),
    l2=st.sampled_from([1e-3, 1e-2, 1.0]),
    noise=st.sampled_from(["output", "objective"]),
)
def test_the_bound_is_above_the_gradient_that_is_left(seed, rows, l2, noise):
    with jax.enable_x64(True):
        x, signs = problem(seed)
        before = fit(x, signs, l2=l2, sigma=0.5, noise=noise, key=jax.random.key(seed))
        after = remove(before, x, signs, mask(rows))
        truth = left(after.fitted, x, signs)
        np.testing.assert_allclose(after.residual, truth, atol=1e-10)
        assert np.all(truth <= after.fitted.spent)
        refitted = logistic._fit(x, signs, before.b, after.fitted.retained, l2)[0]
        assert jnp.linalg.norm(after.fitted.weights - refitted) <= after.fitted.distance


@pytest.mark.parametrize("settle", [False, True])
def test_a_stream_of_removals_stays_within_its_bounds(settle):
    x, signs = problem()
    start = fitted = fit(x, signs, l2=0.05, sigma=1.0, key=KEY)
    total = 0
    for i in range(12):
        fitted, bound, residual = remove(fitted, x, signs, mask([2 * i]), settle=settle)
        total = bound if settle else total + bound
        np.testing.assert_allclose(fitted.spent, total, atol=1e-10)
        assert np.all(residual <= fitted.spent)
    retrained = fit(x, signs, l2=0.05, sigma=1.0, retained=fitted.retained, key=KEY)

    def gap(to):
        return jnp.linalg.norm(to.weights - retrained.weights)

    assert gap(fitted) <= fitted.distance
    # The Newton steps did the work: doing nothing is further away, and settling is nearer.
    assert gap(fitted) < (0.01 if settle else 0.2) * gap(start)


def test_the_step_is_exact_where_the_loss_is_quadratic_enough():
    """Its error falls as the square of what is removed: the share of a heavy ridge goes exactly."""
    x, signs = problem()
    for scale, power in ((1e-2, 1e-3), (1e-4, 1e-7)):
        fitted = fit(scale * x, signs, l2=1.0, sigma=1.0, key=KEY)
        after = remove(fitted, scale * x, signs, mask(range(30)))
        retrained = fit(
            scale * x, signs, l2=1.0, sigma=1.0, retained=after.fitted.retained, key=KEY
        )
        error = jnp.linalg.norm(after.fitted.weights - retrained.weights)
        assert error <= power * jnp.linalg.norm(fitted.weights - retrained.weights)


def test_curve_is_the_largest_slope():
    slope = jax.vmap(jax.grad(jax.grad(jax.nn.sigmoid)))(jnp.linspace(-8, 8, 100_001))
    np.testing.assert_allclose(jnp.max(jnp.abs(slope)), logistic.CURVE, rtol=1e-7)


@pytest.mark.parametrize("noise", ["output", "objective"])
def test_a_spent_budget_says_retrain(noise):
    x, signs = problem()
    fitted = fit(x, signs, l2=0.05, sigma=0.5, noise=noise, key=KEY)
    promise = {"epsilon": 1.0, "delta": 1e-4}
    now = account(fitted, **promise)
    assert now.stands
    assert now.advice == "release"
    assert now.remaining == pytest.approx(now.budget)
    assert now.certified == (noise == "output")
    for i in range(30):
        fitted = remove(fitted, x, signs, mask([i])).fitted
        before, now = now, account(fitted, **promise)
        assert now.remaining < before.remaining
        if not now.stands:
            break
    assert 1 < i < 29
    assert not now.certified
    assert "retrain" in now.advice
    again = fit(x, signs, l2=0.05, sigma=0.5, retained=fitted.retained, noise=noise, key=KEY)
    assert account(again, **promise).stands


def test_the_budget_is_the_shift_that_the_noise_hides():
    x, signs = problem()
    shift = gaussian_shift(1.0, 1e-4)
    objective = fit(x, signs, l2=0.05, sigma=0.3, noise="objective", key=KEY)
    np.testing.assert_allclose(account(objective, epsilon=1.0, delta=1e-4).budget, 0.3 * shift)
    output = fit(x, signs, l2=0.05, sigma=0.3, key=KEY)
    spent = account(output, epsilon=1.0, delta=1e-4).budget * np.array([0.6, 0.8, 0])
    at_limit = logistic.Fitted(
        output.weights, output.b, output.retained, spent, 0.05, 0.3, "output"
    )
    np.testing.assert_allclose(at_limit.distance, 0.3 * shift)


def test_release_draws_afresh_on_the_output_only():
    x, signs = problem()
    one, other = jax.random.split(KEY)
    output = fit(x, signs, l2=0.05, sigma=2.0, key=KEY)
    noise = np.stack([release(output, key=k) - output.weights for k in jax.random.split(one, 50)])
    assert scipy.stats.kstest(noise.ravel() / 2.0, "norm").pvalue > 1e-3
    objective = fit(x, signs, l2=0.05, sigma=2.0, noise="objective", key=KEY)
    np.testing.assert_array_equal(release(objective, key=other), objective.weights)
    assert jnp.any(objective.b != 0)
    assert jnp.all(output.b == 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("shift", [0.05, 0.5, 3.0])
def test_gaussian_delta_is_the_integral(shift, epsilon):
    """The hockey-stick divergence by quadrature, max(p - e^epsilon q, 0)."""
    p, q = scipy.stats.norm(0, 1), scipy.stats.norm(shift, 1)
    # p > e^epsilon q left of this point.
    edge = shift / 2 - epsilon / shift
    grid = np.linspace(edge - 40, edge, 400_001)
    excess = np.maximum(p.pdf(grid) - np.exp(epsilon + q.logpdf(grid)), 0)
    wanted = scipy.integrate.simpson(excess, x=grid)
    np.testing.assert_allclose(gaussian_delta(shift, epsilon), wanted, rtol=1e-6, atol=1e-15)


@given(st.floats(0, 20), st.floats(1e-9, 0.9))
def test_gaussian_shift_inverts_delta(epsilon, delta):
    shift = gaussian_shift(epsilon, delta)
    np.testing.assert_allclose(gaussian_delta(shift, epsilon), delta, atol=2e-14)
    assert gaussian_delta(shift, epsilon) <= delta
    assert gaussian_delta(shift / 2, epsilon) < delta


@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_constant_from_the_literature_is_safe_for_small_epsilon_only(delta):
    c = np.sqrt(2 * np.log(1.5 / delta))
    for epsilon in (0.01, 0.1, 0.5, 1, 2, 4, 7):
        assert gaussian_delta(epsilon / c, epsilon) < delta
        assert epsilon / c < gaussian_shift(epsilon, delta)
    for epsilon in (10, 20, 100):
        assert gaussian_delta(epsilon / c, epsilon) > delta


def test_a_residual_that_depends_on_the_noise_can_break_the_promise():
    """Why "objective" is not called certified: always towards zero, never longer than allowed."""
    epsilon, delta, dim = 1.0, 1e-4, 65
    shift = gaussian_shift(epsilon, delta)
    radius = scipy.stats.chi(dim)
    grid = np.linspace(1e-3, 25, 200_001)
    excess = np.maximum(radius.pdf(grid + shift) - np.exp(epsilon) * radius.pdf(grid), 0)
    assert scipy.integrate.simpson(excess, x=grid) > 10 * delta


@pytest.mark.parametrize("steps", [1, 3])
def test_privacy_loss_is_the_density_ratio_of_one_weight(steps):
    """In one dimension: the noise is a function of the weight, inverted here by differences."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(12, 1)))
    draws = np.linspace(-4, 4, 1601)
    signs = jnp.asarray(np.where(rng.random(12) < 0.5, 1.0, -1.0))[:, None]
    signs = jnp.broadcast_to(signs, (12, len(draws)))
    removals = np.stack([mask([i], n=12) for i in range(steps)])
    everything = jnp.ones(12, bool)
    weights, _ = logistic._fit(x, signs, jnp.asarray(draws)[:, None], everything, 0.2)
    fitted = logistic.Fitted(
        weights, jnp.asarray(draws)[:, None], everything, jnp.zeros(1601), 0.2, 1.0, "objective"
    )
    losses = logistic.privacy_loss(fitted, x, signs, removals)
    after = fitted
    for rows in removals:
        after = remove(after, x, signs, rows).fitted
    # The noise that would have made a retrained model end there; its law against N(0, 1).
    keep = np.asarray(after.retained)
    w = np.asarray(after.weights)
    pull = np.asarray(signs)[:, :1] / (1 + np.exp(np.asarray(signs)[:, :1] * (x @ w.T)))
    other = (pull * x * keep[:, None]).sum(0) - 0.2 * keep.sum() * w[:, 0]
    density = scipy.stats.norm.logpdf(draws) - np.log(np.gradient(other, draws))
    wanted = density - scipy.stats.norm.logpdf(other)
    np.testing.assert_allclose(losses[5:-5], wanted[5:-5], atol=1e-4)
    # And the promise, whose delta the exact law has far below the one that the bound allows.
    epsilon = 0.3
    excess = np.maximum(1 - np.exp(epsilon - np.asarray(losses)), 0) * scipy.stats.norm.pdf(draws)
    bound = float(jnp.max(after.spent))
    assert scipy.integrate.simpson(excess, x=draws) <= gaussian_delta(bound, epsilon)


def test_privacy_loss_has_the_jacobian_of_the_removal():
    """In five dimensions, its columns by differences: heads that start a little apart."""
    x, signs = problem()
    signs = jnp.repeat(signs[:, :1], 10, axis=1)
    fitted = fit(x, signs, l2=0.05, sigma=2.0, noise="objective", key=KEY)
    shifts = 1e-5 * np.concatenate([np.eye(5), -np.eye(5)])
    around = replace(fitted, weights=fitted.weights[:1] + shifts)
    rows = mask(range(20))
    ends = np.asarray(remove(around, x, signs, rows).fitted.weights)
    volume = np.linalg.slogdet((ends[:5] - ends[5:]) / 2e-5)[1]

    def log_density(w, keep):
        kept, s = np.asarray(x)[keep], np.asarray(signs)[keep, 0]
        p = 1 / (1 + np.exp(-s * (kept @ w)))
        b = kept.T @ (-s * (1 - p)) + 0.05 * len(s) * w
        hessian = (kept.T * (p * (1 - p))) @ kept + 0.05 * len(s) * np.eye(5)
        return np.linalg.slogdet(hessian)[1] - b @ b / (2 * 2.0**2)

    start, end = np.asarray(fitted.weights)[0], ends.mean(0)
    wanted = log_density(start, ~mask([])) - volume - log_density(end, ~rows)
    loss = logistic.privacy_loss(fitted, x, signs, rows[None])[0]
    np.testing.assert_allclose(loss, wanted, atol=1e-6)
    assert abs(volume) > 1e-3


def test_one_vs_rest():
    signs = logistic.one_vs_rest(jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(signs, [[-1, -1, 1], [1, -1, -1]])
    assert signs.dtype == jnp.float64
    for label in (-1, 3):
        with pytest.raises(ValueError, match="0 to 2"):
            logistic.one_vs_rest(jnp.array([label, 0]), 3)
    with pytest.raises(ValueError, match="`labels` must be integers"):
        logistic.one_vs_rest(jnp.array([0.5, 0]), 3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"l2": 0.0}, "l2"),
        ({"sigma": -1.0}, "sigma"),
        ({"noise": "nowhere"}, "noise"),
        ({"retained": np.zeros(60, bool)}, "retained"),
        ({"retained": np.arange(60)}, "boolean mask"),
        ({"x": np.ones((60, 5), np.float32)}, "float64"),
        ({"x": np.full((60, 5), np.nan)}, "finite"),
        ({"x": np.ones((59, 5))}, "signs"),
        ({"signs": np.zeros((60, 3))}, "signs"),
    ],
)
def test_fit_refuses(change, word):
    x, signs = problem()
    given = {"x": x, "signs": signs, "l2": 0.1, "sigma": 1.0, "key": KEY} | change
    with pytest.raises(ValueError, match=word):
        fit(given.pop("x"), given.pop("signs"), **given)


def test_remove_and_account_refuse():
    x, signs = problem()
    fitted = fit(x, signs, l2=0.1, sigma=1.0, key=KEY)
    for rows in (mask([]), mask(range(60)), mask([1], n=59), mask([1]).astype(int)):
        with pytest.raises(ValueError, match="rows"):
            remove(fitted, x, signs, rows)
    once = remove(fitted, x, signs, mask([1])).fitted
    with pytest.raises(ValueError, match="retained"):
        remove(once, x, signs, mask([1, 2]))
    for wrong in (x.astype(jnp.float32), x * jnp.nan):
        with pytest.raises(ValueError, match=r"float64|finite"):
            remove(fitted, wrong, signs, mask([1]))
    with pytest.raises(ValueError, match="objective"):
        logistic.privacy_loss(fitted, x, signs, mask([1])[None])
    for shift, epsilon in ((-1.0, 1.0), (1.0, -1.0), (np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"shift|epsilon"):
            gaussian_delta(shift, epsilon)
    for epsilon, delta in ((-1.0, 0.1), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match=r"epsilon|delta"):
            account(fitted, epsilon=epsilon, delta=delta)


def test_a_stream_does_not_retrace():
    x, signs = problem()
    fitted = fit(x, signs, l2=0.1, sigma=1.0, key=KEY)
    traces = logistic._remove._cache_size()
    for i in range(3):
        fitted = remove(fitted, x, signs, mask([i])).fitted
    assert logistic._remove._cache_size() <= traces + 1
