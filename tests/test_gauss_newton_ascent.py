"""Gauss-Newton ascent by dense matrices, as the removal it is of one step, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, drawn, random_batch, to_float64
from jax.flatten_util import ravel_pytree

from famr_jax import curvature, methods
from famr_jax.methods.gauss_newton_removal import Model
from famr_jax.unlearn import begin

KEY = jax.random.key(5)


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def net(model, double):
    """Model, weights, forget and retained set, and a store of 20 directions."""
    params = to_float64(drawn(model.init))
    sets = to_float64((random_batch(10, seed=1), random_batch(30, seed=2)))
    made = Model(model.apply)
    return made, params, *sets, made.store(params, *sets, rank=20, key=KEY)


def flat_of(tree):
    return np.asarray(ravel_pytree(tree)[0])


@jax.jit
def SLOPE(model, params, data):
    return jax.value_and_grad(lambda params: jnp.mean(model.losses(params, data)))(params)


def test_one_step_at_the_rate_of_a_removal_is_the_removal_without_a_ridge(net):
    model, params, forget, retain, store = net
    for rank, given in ((20, store), (1000, None)):
        one = {"store": given, "rank": rank, "damping": 0.3}
        sets = (forget, None if given else retain)
        removal = methods.gauss_newton_removal(model.apply_fn, **one)
        wanted = begin(removal, params, *sets, key=KEY)
        for rate in (None, 10 / 30):
            ascent = methods.gauss_newton_ascent(model.apply_fn, steps=1, rate=rate, **one)
            assert ascent.epoch_over == ("forget" if given else "retain")
            found = begin(ascent, params, *sets, key=KEY)
            np.testing.assert_allclose(
                flat_of(found.params), flat_of(wanted.params), rtol=1e-10, atol=1e-12
            )
            np.testing.assert_allclose(found.info["outside"], wanted.info["outside"], atol=1e-7)
            assert found.info["damping"] == 0.3


def test_three_steps_are_those_of_the_dense_matrix_at_the_trained_weights(net):
    model, params, forget, retain, store = net
    kept = np.asarray(curvature.matrix_of(model.curvature(params, retain), params).array)
    rows, unravel = np.asarray(store.rows), ravel_pytree(params)[1]
    inside = rows @ kept @ rows.T
    damping = np.trace(inside) / 100
    inverse = rows.T @ np.linalg.inv(inside + damping * np.eye(20)) @ rows
    flat, rate = flat_of(params), 10 / 30 / 3
    values = []
    for _ in range(3):
        value, slope = SLOPE(model, unravel(jnp.asarray(flat)), forget)
        values.append(float(value))
        flat = flat + rate * inverse @ flat_of(slope)
    found = begin(methods.gauss_newton_ascent(model.apply_fn, store=store), params, forget, key=KEY)
    np.testing.assert_allclose(flat_of(found.params), flat, rtol=1e-8, atol=1e-10)
    after, _ = SLOPE(model, unravel(jnp.asarray(flat)), forget)
    info = {"before": values[0], "after": after, "damping": damping, "refused": 0}
    for name, value in info.items():
        np.testing.assert_allclose(found.info[name], value, rtol=1e-8)


def test_a_small_rate_raises_the_forget_loss_by_the_gradients_length_in_the_inverse(net):
    model, params, forget, retain, _ = net
    kept = np.asarray(curvature.matrix_of(model.curvature(params, retain), params).array)
    value, slope = SLOPE(model, params, forget)
    g = flat_of(slope)
    first = g @ np.linalg.solve(kept + 0.3 * np.eye(len(g)), g)
    errors = []
    for rate in (1e-3, 1e-4):
        method = methods.gauss_newton_ascent(
            model.apply_fn, rank=1000, steps=1, rate=rate, damping=0.3
        )
        info = begin(method, params, forget, retain, key=KEY).info
        np.testing.assert_allclose(info["before"], value)
        errors.append(float((info["after"] - info["before"]) / rate - first))
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.1)
    assert abs(errors[1]) < 0.01 * first


def test_steps_to_what_is_not_finite_are_refused(net):
    model, params, forget, _, store = net

    def broken(weights, x):
        away = jax.tree.map(jnp.subtract, weights, params)
        far = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(away)))
        return jnp.where(far > limit, jnp.inf, model.apply_fn(weights, x))

    limit = np.inf
    steps = [
        begin(
            methods.gauss_newton_ascent(broken, store=store, steps=steps, rate=0.1),
            params, forget, key=KEY,
        ).params
        for steps in (1, 2)
    ]  # fmt: skip
    first, second = (np.linalg.norm(flat_of(each) - flat_of(params)) for each in steps)
    limit = (first + second) / 2
    held = methods.gauss_newton_ascent(
        lambda *given: broken(*given), store=store, steps=4, rate=0.1
    )
    found = begin(held, params, forget, key=KEY)
    np.testing.assert_allclose(flat_of(found.params), flat_of(steps[0]), rtol=1e-12)
    assert found.info["refused"] == 3
    assert np.isfinite(found.info["after"])
    far = begin(
        methods.gauss_newton_ascent(model.apply_fn, store=store, rate=1e308), params, forget,
        key=KEY,
    )  # fmt: skip
    assert_same(far.params, params)
    assert far.info["refused"] == 3


def test_a_store_that_the_forget_set_is_not_of_moves_nothing(net):
    model, params, forget, _, store = net
    other = curvature.Eigenspace(store.rows, 1e-3 * store.matrix, store.size)
    method = methods.gauss_newton_ascent(model.apply_fn, store=other, damping=1e-6)
    found = begin(method, params, forget, key=KEY)
    assert_same(found.params, params)
    assert found.info["refused"] == 3


@pytest.mark.parametrize("name", ["gauss_newton_ascent", "gauss_newton_removal"])
def test_a_store_that_does_not_fit_the_weights_or_the_forget_set_is_refused(net, name):
    model, params, forget, _, store = net
    method = methods.BY_NAME[name](
        model.apply_fn, store=curvature.Eigenspace(store.rows, store.matrix, 4), damping=1e3
    )
    assert_same(begin(method, params, forget, key=KEY).params, params)  # 4 less 10 examples
    other = curvature.Eigenspace(store.rows[:, 1:], store.matrix, store.size)
    dim, half = store.rows.shape[1], jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    for given, weights, message in (
        (other, params, f"must have the store's {dim - 1} weights, got {dim}"),
        (store, half, "must be of float32 or float64, got float16"),
    ):
        with pytest.raises(ValueError, match=message):
            begin(methods.BY_NAME[name](model.apply_fn, store=given), weights, forget, key=KEY)


BAD = [
    ({"rank": 0}, "`rank` must be an integer >= 1"),
    ({"steps": 0}, "`steps` must be an integer >= 1"),
    ({"rate": 0.0}, "`rate` must be finite and > 0"),
    ({"damping": 0.0}, "`damping` must be finite and > 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_refuses(logistic, settings, message):
    with pytest.raises(ValueError, match=message):
        methods.gauss_newton_ascent(logistic.apply, **settings)
