"""Cubic Newton steps against the secular equation by dense eigenvectors, their limits and laws."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import assert_same, drawn, random_batch, to_float64
from jax.flatten_util import ravel_pytree

from famr_jax import methods
from famr_jax.curvature import Matrix
from famr_jax.methods.cure_newton import quadratic
from famr_jax.types import Batch
from famr_jax.unlearn import begin

KEY, L2, DIM = jax.random.key(5), 0.05, 12
LOST = 1e-33
"""Length of what lies below the normal numbers of single precision, times 1e4: CPUs flush it."""
cure_file = importlib.import_module("famr_jax.methods.cure_newton")  # its name is the function's
SPECTRA = {
    "definite": np.linspace(0.1, 3, DIM),
    "indefinite": np.linspace(-2, 3, DIM),
    "negative": np.linspace(-3, -0.1, DIM),
    "singular": np.maximum(np.linspace(-1, 3, DIM), 0),
}


@partial(jax.jit, static_argnames="rank")
def STEP(matrix, slope, cubic, *, rank=DIM):
    return quadratic(Matrix(matrix), slope, rank=rank).step(cubic)


def problem(spectrum, seed=0):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    return (turn * spectrum) @ turn.T, rng.normal(size=DIM), turn


def by_hand(matrix, slope, cubic):
    """The minimiser and its damping, by the root of the secular equation."""
    values, turn = np.linalg.eigh(matrix)
    coefficients, least = turn.T @ slope, max(-values[0], 0)

    def length(damping):
        return np.linalg.norm(coefficients / (values + damping))

    high = least + np.sqrt(cubic * np.linalg.norm(slope) / 2) + 1e-300
    low = least + 1e-14 * (high - least)
    damping = scipy.optimize.brentq(
        lambda a: length(a) - 2 * a / cubic, low, high, xtol=1e-300, rtol=1e-15
    )
    return -turn @ (coefficients / (values + damping)), damping


def polynomial(matrix, slope, cubic, s):
    return slope @ s + s @ matrix @ s / 2 + cubic / 6 * np.linalg.norm(s) ** 3


# ---- one step


@pytest.mark.parametrize("cubic", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_step_is_the_root_of_the_secular_equation_and_the_global_minimum(x64, name, cubic):
    matrix, slope, _ = problem(SPECTRA[name])
    s, damping, fall = map(np.asarray, STEP(matrix, slope, cubic))
    wanted, root = by_hand(matrix, slope, cubic)
    np.testing.assert_allclose(s, wanted, rtol=1e-8, atol=1e-10 * np.linalg.norm(wanted))
    np.testing.assert_allclose(damping, root, rtol=1e-9)
    shifted = matrix + damping * np.eye(DIM)
    assert np.linalg.norm(shifted @ s + slope) < 1e-8 * np.linalg.norm(slope)
    np.testing.assert_allclose(damping, cubic / 2 * np.linalg.norm(s), rtol=1e-8)
    assert np.linalg.eigvalsh(shifted)[0] > -1e-9
    lowest = polynomial(matrix, slope, cubic, s)
    np.testing.assert_allclose(fall, -lowest, rtol=1e-8)
    rng = np.random.default_rng(1)
    starts = [s + np.linalg.norm(s) * rng.normal(size=DIM) for _ in range(5)] + [-s]
    for start in starts:
        found = scipy.optimize.minimize(partial(polynomial, matrix, slope, cubic), start)
        assert found.fun >= lowest - 1e-6 * abs(lowest)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_step_of_fewer_products_is_the_minimum_in_the_krylov_space(x64, name):
    matrix, slope, _ = problem(SPECTRA[name])
    powers = [slope]
    for _ in range(3):
        powers.append(matrix @ powers[-1])
    basis, _ = np.linalg.qr(np.stack(powers, 1))
    wanted, root = by_hand(basis.T @ matrix @ basis, basis.T @ slope, 0.7)
    s, damping, _ = STEP(matrix, slope, 0.7, rank=4)
    np.testing.assert_allclose(s, basis @ wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(damping, root, rtol=1e-9)


def test_without_a_cubic_term_it_is_newtons_and_with_a_huge_one_the_gradients(x64):
    matrix, slope, _ = problem(SPECTRA["definite"])
    s, damping, _ = STEP(matrix, slope, 1e-12)
    np.testing.assert_allclose(s, -np.linalg.solve(matrix, slope), rtol=1e-9)
    np.testing.assert_allclose(damping, 5e-13 * np.linalg.norm(s), rtol=1e-8)
    errors = []
    for cubic in (1e8, 1e10):
        wanted = -slope * np.sqrt(2 / (cubic * np.linalg.norm(slope)))
        s, _, _ = STEP(matrix, slope, cubic)
        errors.append(np.linalg.norm(s - wanted) / np.linalg.norm(wanted))
    assert errors[0] < 1e-3
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.01)


def test_a_singular_matrix_is_solved_where_the_gradient_lies_in_its_range(x64):
    matrix, slope, turn = problem(SPECTRA["singular"])
    slope, span = matrix @ slope, turn[:, SPECTRA["singular"] > 0]
    for cubic in (1e-6, 1.0):
        wanted, _ = by_hand(span.T @ matrix @ span, span.T @ slope, cubic)
        np.testing.assert_allclose(STEP(matrix, slope, cubic)[0], span @ wanted, atol=1e-8)
    least = -np.linalg.pinv(matrix, rcond=1e-10) @ slope
    np.testing.assert_allclose(STEP(matrix, slope, 1e-6)[0], least, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_of_the_hard_case_it_is_the_minimum_of_what_the_gradient_reaches(x64, count):
    """g orthogonal to all but some eigenvectors: the random directions that follow are not used."""
    matrix, _, turn = problem(SPECTRA["indefinite"])
    seen = turn[:, -count - 2 : -2] if count == 1 else turn[:, [1, 6, 9]]
    slope = seen @ np.arange(1.0, count + 1)
    wanted, root = by_hand(seen.T @ matrix @ seen, seen.T @ slope, 2.0)
    s, damping, fall = STEP(matrix, slope, 2.0)
    np.testing.assert_allclose(s, seen @ wanted, atol=1e-9)
    np.testing.assert_allclose(damping, root, rtol=1e-8)
    np.testing.assert_allclose(fall, -polynomial(matrix, slope, 2.0, np.asarray(s)), rtol=1e-8)


@pytest.mark.parametrize("share", [1e-6, 1e-12, 1e-20])
def test_nearly_of_the_hard_case_it_is_still_the_minimum(x64, share):
    values = np.array([-1.0, 1.0, 2.0])
    slope = np.array([share, 0.1, 0.1])
    matrix, cubic = np.diag(values), 0.5
    found = quadratic(Matrix(jnp.asarray(matrix)), jnp.asarray(slope), rank=3)
    found = found._replace(
        values=jnp.asarray(values),
        first=jnp.asarray(slope / np.linalg.norm(slope)),
        rows=jnp.eye(3),
    )
    s, damping, _ = map(np.asarray, found.step(cubic))
    assert np.linalg.norm((matrix + damping * np.eye(3)) @ s + slope) < 1e-12
    np.testing.assert_allclose(damping, 1.0, rtol=1e-5)
    np.testing.assert_allclose(cubic / 2 * np.linalg.norm(s), damping, rtol=1e-12)


@pytest.mark.parametrize("name", ["definite", "indefinite"])
def test_single_precision_holds_over_all_scales(name):
    for curvature in (1e-18, 1.0, 1e18):
        for size in (1e-18, 1.0, 1e18):
            for cubic in (1e-18, 1.0, 1e18):
                matrix, slope, _ = problem(curvature * SPECTRA[name])
                slope = size * slope
                given = (jnp.asarray(each, jnp.float32) for each in (matrix, slope, cubic))
                s, damping, _ = (np.asarray(each, float) for each in STEP(*given))
                left = matrix @ s + damping * s + slope
                backward = 1e-4 * (curvature + damping) * (np.linalg.norm(s) + LOST)
                assert np.linalg.norm(left) < backward + 1e-4 * np.linalg.norm(slope)
                wanted = cubic / 2 * np.linalg.norm(s)
                assert abs(damping - wanted) <= 1e-4 * (wanted + cubic * LOST) + 1e-37


def test_no_gradient_no_step():
    matrix, *_ = problem(SPECTRA["indefinite"])
    for each in STEP(jnp.asarray(matrix, jnp.float32), jnp.zeros(DIM, jnp.float32), 1.0):
        np.testing.assert_array_equal(each, 0)


# ---- the method


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def sets(double):
    return to_float64((random_batch(10, seed=1), random_batch(40, seed=2)))


def flat_of(tree):
    return np.asarray(ravel_pytree(tree)[0])


def dense(apply_fn, params, *parts):
    """The mean loss over some sets with a ridge, its gradient and Hessian, of flat weights."""
    unravel = ravel_pytree(params)[1]
    x, labels = (jnp.concatenate([getattr(p, n) for p in parts]) for n in ("x", "labels"))

    def objective(flat):
        log_p = jax.nn.log_softmax(apply_fn(unravel(flat), x))
        losses = -jnp.take_along_axis(log_p, labels[:, None], 1)
        return jnp.mean(losses) + L2 / 2 * flat @ flat

    return jax.jit(objective), jax.jit(jax.grad(objective)), jax.jit(jax.hessian(objective))


def minimum(apply_fn, params, *parts):
    _, slope, matrix = dense(apply_fn, params, *parts)
    flat = flat_of(params)
    for _ in range(30):
        flat = flat - np.linalg.solve(matrix(flat), slope(flat))
    assert np.linalg.norm(slope(flat)) < 1e-13
    return ravel_pytree(params)[1](jnp.asarray(flat))


def test_it_is_dense_cubic_newton_with_its_trials_on_a_network(model, sets, double):
    """Every step, every refused trial, by NumPy, from weights where the Hessian is indefinite."""
    params, (forget, retain) = to_float64(drawn(model.init)), sets
    objective, slope, matrix = dense(model.apply, params, retain)
    flat, cubic, refused = flat_of(params), 0.01, 0
    before = float(objective(flat))
    assert np.linalg.eigvalsh(matrix(flat))[0] < -0.01
    for _ in range(3):
        g, h = np.asarray(slope(flat)), np.asarray(matrix(flat))
        while True:
            s, damping = by_hand(h, g, cubic)
            here, there = objective(flat), objective(flat + s)
            if there - here <= polynomial(h, g, cubic, s):
                flat, cubic = flat + s, cubic / 2
                break
            cubic, refused = 2 * cubic, refused + 1
        assert there < here
    assert refused > 2
    method = methods.cure_newton(model.apply, rank=1000, steps=3, cubic=0.01, l2=L2)
    state = begin(method, params, forget, retain, key=KEY)
    np.testing.assert_allclose(flat_of(state.params), flat, rtol=1e-5, atol=1e-6)
    info = {"before": before, "after": there, "refused": refused, "damping": damping}
    for name, value in (info | {"cubic": cubic}).items():
        np.testing.assert_allclose(state.info[name], value, rtol=1e-5)


def test_every_step_lowers_the_retained_objective(model, sets, double):
    params, (forget, retain) = to_float64(drawn(model.init)), sets
    method = methods.cure_newton(model.apply, rank=3, steps=1)
    found = [float("inf")]
    for _ in range(6):
        state = begin(method, params, forget, retain, key=KEY)
        assert state.info["before"] <= found[-1]
        assert state.info["after"] < state.info["before"]
        found.append(float(state.info["after"]))
        params = state.params


def test_from_the_minimum_its_first_step_tends_to_newtons_and_its_end_is_retraining(
    logistic, sets, double
):
    forget, retain = sets
    params = minimum(logistic.apply, to_float64(drawn(logistic.init)), forget, retain)
    _, slope, matrix = dense(logistic.apply, params, retain)
    start = flat_of(params)
    removal = methods.newton_removal(logistic.apply, matrix="hessian", l2=L2, damping=0.0)
    newton = flat_of(begin(removal, params, forget, retain, key=KEY).params) - start
    errors = []
    for cubic in (1e-3, 1e-4):
        s, _, _ = STEP(matrix(start), slope(start), cubic, rank=51)
        errors.append(np.linalg.norm(np.asarray(s) - newton) / np.linalg.norm(newton))
    assert errors[0] < 1e-2
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.1)
    method = methods.cure_newton(logistic.apply, rank=51, steps=8, cubic=0.1, l2=L2)
    end = begin(method, params, forget, retain, key=KEY)
    retrained = flat_of(minimum(logistic.apply, params, retain))
    assert np.linalg.norm(start - retrained) > 0.1
    assert np.linalg.norm(flat_of(end.params) - retrained) < 1e-7


def test_refused_to_the_end_it_changes_nothing(model, sets, double):
    params, (forget, retain) = to_float64(drawn(model.init)), sets
    method = methods.cure_newton(model.apply, steps=2, max_trials=2, cubic=1e-9)
    state = begin(method, params, forget, retain, key=KEY)
    assert_same(state.params, params)
    assert state.info["refused"] == 4
    assert state.info["cubic"] == pytest.approx(16e-9)
    assert state.info["after"] == state.info["before"]


def test_what_is_not_finite_is_refused(logistic, sets, double):
    params, (forget, retain) = to_float64(drawn(logistic.init)), sets

    def broken(weights, x):
        far = sum(
            map(jnp.linalg.norm, jax.tree.leaves(jax.tree.map(jnp.subtract, weights, params)))
        )
        return jnp.where(far > 0.05, jnp.nan, logistic.apply(weights, x))

    method = methods.cure_newton(broken, steps=1, max_trials=30, cubic=1e-3)
    state = begin(method, params, forget, retain, key=KEY)
    assert state.info["refused"] > 3
    assert state.info["after"] < state.info["before"]
    assert 0 < np.linalg.norm(flat_of(state.params) - flat_of(params)) < 0.05
    spoilt = Batch(retain.x.at[0].set(jnp.nan), retain.labels)
    state = begin(method, params, forget, spoilt, key=KEY)
    assert_same(state.params, params)


def test_micro_batches_change_nothing(logistic, sets, double, monkeypatch):
    params, (forget, retain) = to_float64(drawn(logistic.init)), sets
    wanted = begin(methods.cure_newton(logistic.apply), params, forget, retain, key=KEY)
    monkeypatch.setattr(cure_file, "BATCH", 7)
    again = methods.cure_newton(lambda *a: logistic.apply(*a))
    found = begin(again, params, forget, retain, key=KEY)
    np.testing.assert_allclose(flat_of(found.params), flat_of(wanted.params), rtol=1e-8)


BAD = [
    ({"rank": 0}, "`rank` must be an integer >= 1"),
    ({"steps": 0}, "`steps` must be an integer >= 1"),
    ({"max_trials": 0}, "`max_trials` must be an integer >= 1"),
    ({"cubic": 0.0}, "`cubic` must be finite and > 0"),
    ({"l2": -1.0}, "`l2` must be finite and >= 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_refuses(logistic, settings, message):
    with pytest.raises(ValueError, match=message):
        methods.cure_newton(logistic.apply, **settings)


def test_weights_of_half_precision_are_refused_in_words(logistic):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), drawn(logistic.init))
    with pytest.raises(ValueError, match="must be of float32 or float64"):
        begin(
            methods.cure_newton(logistic.apply), params, random_batch(4, 0), random_batch(5, 1),
            key=KEY,
        )  # fmt: skip
