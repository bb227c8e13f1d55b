"""Removals from a curvature store against the dense Newton step, retraining, and one another."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, random_batch, to_float64
from jax.flatten_util import ravel_pytree

from famr_jax import curvature, influence, methods
from famr_jax.anchors import eigenspace as eigenspace_anchor
from famr_jax.influence import stored
from famr_jax.methods.gauss_newton_removal import Model
from famr_jax.types import Batch, Pair
from famr_jax.unlearn import begin

KEY, L2 = jax.random.key(5), 0.05
INIT = jax.jit(lambda method, *args: method.init(*args))


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


class Fitted(NamedTuple):
    """Logistic regression at its minimum, and what is dense there."""

    model: Model
    params: dict
    forget: Batch
    retain: Batch
    unravel: object
    store: curvature.Eigenspace

    def gradient(self, flat, weight):
        return SLOPE(self.model, self.unravel(flat), self.forget, self.retain, weight)

    def minimum(self, flat, weight):
        """The minimiser of the mean over both sets, the forget set taken out by `weight`."""
        for _ in range(30):
            slope, matrix = self.gradient(flat, weight)
            flat = flat - np.linalg.solve(matrix, slope)
        assert np.linalg.norm(self.gradient(flat, weight)[0]) < 1e-13
        return flat


@jax.jit
def SLOPE(model, params, forget, retain, weight):
    flat, unravel = ravel_pytree(params)

    def objective(flat):
        parts = [jnp.sum(model.losses(unravel(flat), data)) for data in (forget, retain)]
        size = (1 - weight) * len(forget) + len(retain)
        return ((1 - weight) * parts[0] + parts[1]) / size + L2 / 2 * jnp.vdot(flat, flat)

    return jax.grad(objective)(flat), jax.hessian(objective)(flat)


@pytest.fixture(scope="module")
def fitted(logistic, double):
    forget, retain = to_float64((random_batch(10, seed=1), random_batch(40, seed=2)))
    flat, unravel = ravel_pytree(to_float64(drawn(logistic.init)))
    model = Model(logistic.apply)
    here = Fitted(model, None, forget, retain, unravel, None)
    params = unravel(here.minimum(flat, 0.0))
    store = model.store(params, forget, retain, rank=400, key=KEY)
    return here._replace(params=params, store=store)


def flat_of(tree):
    return np.asarray(ravel_pytree(tree)[0])


def newton(fitted):
    """The Newton step with the exact retained matrix, from the retained set itself."""
    slope, matrix = fitted.gradient(flat_of(fitted.params), 1.0)
    return -np.linalg.solve(matrix, slope)


@pytest.mark.parametrize("name", ["gauss_newton_removal", "win_u"])
@pytest.mark.parametrize("given", [True, False])
def test_both_are_the_newton_step_with_the_exact_retained_matrix(fitted, name, given):
    """On logistic regression, where the model is linear, trust chooses the ridge."""
    store = fitted.store if given else None
    method = methods.BY_NAME[name](fitted.model.apply_fn, l2=L2, store=store)
    assert method.epoch_over == ("forget" if given else "retain")
    retain = None if given else fitted.retain
    state = INIT(method, fitted.params, fitted.forget, retain, KEY)
    moved = flat_of(state.params) - flat_of(fitted.params)
    step = newton(fitted)
    assert np.linalg.norm(moved - step) < 1e-10 * np.linalg.norm(step)
    assert state.info["damping"] == L2
    assert state.info["trusted"] == 1
    assert state.info["outside"] < 1e-7


def test_the_rank_of_the_curvature_is_enough_and_less_is_said(fitted):
    model, params = fitted.model, fitted.params
    ask = {"l2": L2, "curvature": partial(model.curvature, params)}
    step = newton(fitted)
    errors, outside = [], []
    for rank in (34, 12):  # 2 classes beyond the first times 17 features
        store = model.store(params, fitted.forget, fitted.retain, rank=rank, key=KEY)
        found = stored.inside(model.losses, model.outputs, params, fitted.forget, store, **ask)
        moved = flat_of(found.trusted.solution.value)
        errors.append(np.linalg.norm(moved - step) / np.linalg.norm(step))
        outside.append(found.outside)
        b = stored._change(model.losses, params, fitted.forget, 50.0, L2, batch_size=None)
        rest = flat_of(b) - np.asarray(store.rows).T @ (np.asarray(store.rows) @ flat_of(b))
        wanted = np.linalg.norm(rest) / np.linalg.norm(flat_of(b))
        np.testing.assert_allclose(found.outside, wanted, atol=1e-9)
    assert errors[0] < 1e-8
    assert errors[1] > 0.05
    assert outside[1] > 0.05
    assert "of the gradient outside the store" in found.why
    assert "damping 0.05 by trust" in found.why
    assert f"{outside[1]:.0%}" in found.why


def test_weighting_the_forget_set_by_t_the_distance_to_retraining_falls_as_its_square(fitted):
    model, params, start = fitted.model, fitted.params, flat_of(fitted.params)
    of_forget = model.curvature(params, fitted.forget)
    m, n = len(fitted.forget), fitted.store.size
    mean, _ = SLOPE_OF(model, params, fitted.forget)
    far, classical = [], []
    for t in (0.4, 0.2, 0.1, 0.05):
        b = t * m / (n - t * m) * (flat_of(mean) + L2 * start)
        left = fitted.store.without(of_forget, t * m, like=params)
        step = flat_of(left.solve(fitted.unravel(jnp.asarray(b)), damping=L2).value)
        retrained = fitted.minimum(start, t) - start
        far.append(np.linalg.norm(step - retrained))
        whole = flat_of(fitted.store.solve(fitted.unravel(jnp.asarray(b)), damping=L2).value)
        classical.append(np.linalg.norm(step - whole) / np.linalg.norm(step))
    powers = np.log2(np.array(far[:-1]) / far[1:])
    assert np.all(np.abs(powers - 2) < [0.3, 0.15, 0.08])
    assert far[0] < 0.2 * np.linalg.norm(fitted.minimum(start, 0.4) - start)
    # The classical removal, which leaves the forget part in, is this one to first order alone.
    assert np.all(np.abs(np.log2(np.array(classical[:-1]) / classical[1:]) - 1) < 0.2)


@jax.jit
def SLOPE_OF(model, params, data):
    return jax.grad(lambda params: jnp.mean(model.losses(params, data)))(params), None


def test_woodbury_is_the_dense_matrix_of_a_short_store_and_says_where_it_is_indefinite(fitted):
    model, params = fitted.model, fitted.params
    store = model.store(params, fitted.forget, fitted.retain, rank=12, key=KEY)
    m, n = len(fitted.forget), store.size
    part = curvature.matrix_of(model.curvature(params, fitted.forget), params).array
    rows, matrix = np.asarray(store.rows), np.asarray(store.matrix)
    low = (n * rows.T @ matrix @ rows - m * np.asarray(part)) / (n - m)
    b = flat_of(stored._change(model.losses, params, fitted.forget, n, L2, batch_size=None))
    least = np.linalg.eigvalsh(low)[0]
    assert least < -1e-3
    settings = {"l2": 0.0, "root": influence.dual.CROSS_ENTROPY.root}
    ask = partial(stored.woodbury, model.losses, model.outputs, params, fitted.forget, store)
    found = ask(**settings, damping=2 * -least)
    b0 = flat_of(stored._change(model.losses, params, fitted.forget, n, 0.0, batch_size=None))
    wanted = np.linalg.solve(low + 2 * -least * np.eye(len(b)), b0)
    np.testing.assert_allclose(flat_of(found.trusted.solution.value), wanted, rtol=1e-8, atol=1e-10)
    assert found.trusted.met
    assert "as given" in found.why
    refused = ask(**settings, damping=0.5 * -least)
    assert not refused.trusted.met
    assert refused.trusted.solution.negative_curvature
    assert "indefinite" in refused.why
    np.testing.assert_array_equal(flat_of(refused.params), flat_of(params))
    # By trust the damping is raised until the matrix is positive definite.
    raised = ask(**settings)
    assert raised.trusted.met
    assert raised.trusted.damping > -least


def test_inside_a_short_store_it_is_the_projected_newton_step(fitted):
    model, params = fitted.model, fitted.params
    store = model.store(params, fitted.forget, fitted.retain, rank=12, key=KEY)
    found = stored.inside(
        model.losses,
        model.outputs,
        params,
        fitted.forget,
        store,
        l2=L2,
        curvature=partial(model.curvature, params),
    )
    kept = np.asarray(curvature.matrix_of(model.curvature(params, fitted.retain), params).array)
    b = flat_of(stored._change(model.losses, params, fitted.forget, store.size, L2, batch_size=3))
    rows = np.asarray(store.rows)
    y = np.linalg.solve(rows @ kept @ rows.T + L2 * np.eye(12), rows @ b)
    np.testing.assert_allclose(flat_of(found.trusted.solution.value), rows.T @ y, atol=1e-10)


def test_the_dual_removal_is_the_primal_one_of_the_last_layer(model):
    params = to_float64(drawn(model.init))
    forget, retain = to_float64((random_batch(10, seed=1), random_batch(14, seed=2)))
    method = methods.dual_removal(model.apply, l2=L2)
    state = INIT(method, params, forget, retain, KEY)

    def losses(head, batch):
        return Model(model.apply).losses({**params, "head": head}, batch)

    wanted = influence.remove(
        losses, params["head"], forget, retain, l2=L2, normaliser="n-m", tol=1e-13, key=KEY
    )
    step = flat_of(wanted.solution.value)
    moved = flat_of(state.params["head"]) - flat_of(params["head"])
    assert np.linalg.norm(moved - step) < 1e-4 * np.linalg.norm(step)
    np.testing.assert_array_equal(flat_of(state.params["layer_0"]), flat_of(params["layer_0"]))
    assert state.info["converged"] == 1


@pytest.fixture(scope="module")
def net(model, double):
    """A network whose output moves far from linear on a step at no damping."""
    params = to_float64(drawn(model.init))
    return Model(model.apply), params, *to_float64((random_batch(10, 1), random_batch(14, 2)))


def test_trust_finds_the_damping_whose_divergence_is_in_the_band(net):
    model, params, forget, retain = net
    store = model.store(params, forget, retain, rank=400, key=KEY)
    found = stored.inside(
        model.losses, model.outputs, params, forget, store,
        l2=1e-4, curvature=partial(model.curvature, params),
    )  # fmt: skip
    trusted = found.trusted
    assert trusted.met
    assert 0.02 <= trusted.divergence <= 0.03
    assert trusted.damping > 1e-4
    step = trusted.solution.value
    moved = jax.tree.map(jnp.add, params, step)
    start, change = jax.jvp(lambda p: model.apply_fn(p, forget.x), (params,), (step,))
    p, q = (
        np.asarray(jax.nn.softmax(z)) for z in (model.apply_fn(moved, forget.x), start + change)
    )
    np.testing.assert_allclose(trusted.divergence, np.mean(np.sum(p * np.log(p / q), 1)), rtol=1e-9)
    np.testing.assert_allclose(flat_of(found.params), flat_of(moved))


def test_trust_works_with_any_solver_counts_its_products_and_refuses_in_words(net):
    model, params, forget, retain = net
    matrix = model.curvature(params, retain)
    b, _ = SLOPE_OF(model, params, forget)

    def step_of(damping):
        return curvature.solve(matrix, b, damping=damping, tol=1e-3, max_steps=200)

    ask = partial(curvature.trust_damping, step_of, model.outputs, params, retain)
    found = ask(start=1e-3, most=1e3)
    alone = curvature.solve(matrix, b, damping=found.damping, tol=1e-3, max_steps=200)
    assert found.met
    assert 0.02 <= found.divergence <= 0.03
    assert found.num_trials > 2
    assert found.num_products > alone.num_steps
    np.testing.assert_allclose(flat_of(found.solution.value), flat_of(alone.value), rtol=1e-9)
    assert found.why.startswith(f"damping {float(found.damping):.2g} by trust")
    assert f"{int(found.num_products)} products" in found.why
    none = ask(start=1e-6, most=1e-4)
    assert not none.met
    assert none.why.startswith("refused: no damping up to")
    np.testing.assert_array_equal(flat_of(none.solution.value), 0)
    from_above = ask(start=100 * found.damping, most=1e6)
    assert 0.02 <= from_above.divergence <= 0.03


def test_the_anchor_of_a_store_is_its_metric_and_goes_on_without_the_forget_set(net):
    model, params, forget, retain = net
    store = model.store(params, forget, retain, rank=20, key=KEY)
    anchor = eigenspace_anchor(store, outside=0.1)
    part = curvature.on_rows(model.curvature(params, forget), params, store.rows, size=10)
    left = curvature.on_rows(model.curvature(params, retain), params, store.rows, size=14)
    away = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(leaf), params)
    delta = flat_of(away) - flat_of(params)
    for made, matrix in ((anchor, store.matrix), (anchor.without(part), left.matrix)):
        inner = np.asarray(store.rows) @ delta
        rest = delta @ delta - inner @ inner
        wanted = inner @ np.asarray(matrix) @ inner / 2 + 0.1 / 2 * rest
        np.testing.assert_allclose(made(away, params), wanted, rtol=1e-8)
    method = methods.famr(model.apply_fn, anchor=anchor)
    state = begin(method, params, forget, key=KEY)
    assert np.isfinite(method.step(state, Pair(forget[:5], None), KEY)[1]["objective"])


BAD = [
    ("gauss_newton_removal", {"rank": 0}, "`rank` must be an integer >= 1"),
    ("gauss_newton_removal", {"l2": -1.0}, "`l2` must be finite and >= 0"),
    ("win_u", {"damping": 0.0}, "`damping` must be finite and > 0"),
    ("dual_removal", {"l2": 0.0}, "`l2` must be finite and > 0"),
    ("dual_removal", {"max_steps": 0}, "`max_steps` must be an integer >= 1"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_refuses(logistic, name, settings, message):
    with pytest.raises(ValueError, match=message):
        methods.BY_NAME[name](logistic.apply, **settings)
