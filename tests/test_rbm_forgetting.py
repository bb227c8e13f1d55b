"""Forgetting in a Boltzmann machine: the objective, the Fisher anchor, and that cuts stay cut."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same
from test_rbm import KEY, binary, machine, states

from famr_jax import rbm, unlearn
from famr_jax.types import Unlearner

SGD = optax.sgd(0.05)
SMALL = {"num_steps": 2, "num_chains": 30, "burn_in": 20}


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), machine(6, 4))


FORGET = binary(10, 6, seed=3)


def forget(params, *, lam=1.0, fisher=False, epochs=8):
    method = rbm.forget_gap(lam=lam, fisher=fisher, optimizer=SGD, **SMALL)
    return unlearn.run(method, params, FORGET, epochs=epochs, batch_size=10, key=KEY)


def gap(params):
    """Mean negative log-likelihood of the forget set, exact."""
    log_p = rbm.log_likelihood(params, FORGET.x, rbm.log_partition(params))
    return -float(log_p.mean())


@pytest.mark.parametrize("fisher", [False, True])
def test_the_forget_set_becomes_improbable_and_a_strong_anchor_holds(params, fisher):
    method = rbm.forget_gap(fisher=fisher, optimizer=SGD, **SMALL)
    assert isinstance(method, Unlearner)
    weak, strong = (forget(params, lam=lam, fisher=fisher) for lam in (0.1, 10.0))
    assert weak.finite
    assert gap(weak.params) > gap(strong.params) > gap(params)
    moved = [float(optax.tree.norm(optax.tree.sub(done.params, params))) for done in (weak, strong)]
    assert moved[0] > moved[1] > 0


def test_nothing_is_left_to_do_on_the_samples_themselves(params):
    drawn = rbm.sample(params, KEY, num_samples=4000, num_steps=50)
    method = rbm.forget_gap(lam=0.0, optimizer=SGD, num_steps=5, num_chains=4000, burn_in=50)
    data = binary(4000, 6)
    state = unlearn.begin(method, params, type(data)(drawn, data.labels), key=KEY)
    (_, state, info), *_ = unlearn.run_epochs(
        method, state, type(data)(drawn, data.labels), epochs=1, batch_size=4000, key=KEY
    )
    assert abs(info["gap"]) < 0.15
    assert info["grad_norm"] < 0.1


def test_a_step_is_the_ascent_of_the_gap_and_the_pull_of_the_anchor(params):
    method = rbm.forget_gap(lam=0.7, fisher=True, optimizer=SGD, **SMALL)
    state = method.init(params, FORGET, None, KEY)
    shifted = jax.tree.map(lambda leaf: leaf + 0.1 * (leaf != 0), params)
    state = state._replace(params=shifted)
    new, _ = jax.jit(method.step)(state, unlearn.Pair(FORGET, None), KEY)
    chains, _, fisher = state.context.prepared
    samples = rbm.gibbs(shifted, chains, KEY, num_steps=2)

    def slope(v):
        h = jax.nn.sigmoid(shifted.hidden + v @ shifted.weights)
        return rbm.Boltzmann(-v.T @ h / len(v), -v.mean(0), -h.mean(0))

    for moved, leaf, data, model, old, f in zip(
        new.params, shifted, slope(FORGET.x), slope(samples), params, fisher, strict=True
    ):
        wanted = 0.05 * ((data - model) - 0.7 * f * (leaf - old))
        np.testing.assert_allclose(moved - leaf, wanted, atol=1e-6)


def test_the_fisher_diagonal_is_the_variance_of_the_scores():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), machine(4, 3))
    v = jnp.asarray(states(4), jnp.float32)
    p = jnp.exp(rbm.log_likelihood(params, v, rbm.log_partition(params)))

    def score(v):
        return jax.grad(lambda params: rbm.free_energy(params, v[None])[0])(params)

    scores = jax.vmap(score)(v)
    means = jax.tree.map(lambda s: jnp.tensordot(p, s, 1), scores)
    exact = jax.tree.map(lambda s, m: jnp.tensordot(p, (s - m) ** 2, 1), scores, means)
    drawn = rbm.sample(params, KEY, num_samples=20_000, num_steps=30)
    for found, wanted in zip(rbm.fisher_diagonal(params, drawn), exact, strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.01)


def test_connections_that_are_cut_stay_cut(params):
    mask = rbm.random_mask(KEY, (6, 4), 0.5)
    done = forget(rbm.cut(params, mask), lam=0.1)
    assert (np.asarray(done.params.weights)[np.asarray(mask) == 0] == 0).all()
    assert (done.params.weights != params.weights * mask).sum() == mask.sum()


def test_a_sweep_over_lam_is_single_runs_and_keys_repeat(params):
    lams = jnp.asarray([0.1, 1.0])
    methods = jax.vmap(lambda lam: rbm.forget_gap(lam=lam, optimizer=SGD, **SMALL))(lams)
    keys = jnp.stack([KEY, KEY])
    done = unlearn.run(
        methods, params, FORGET, epochs=2, batch_size=10, key=keys, swept=True
    ).params
    for i, lam in enumerate((0.1, 1.0)):
        alone = forget(params, lam=lam, epochs=2).params
        for leaf, same in zip(done, alone, strict=True):
            np.testing.assert_allclose(leaf[i], same, atol=2e-5)
    assert_same(forget(params, epochs=2).params, forget(params, epochs=2).params)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lam": -1.0}, "`lam` must be finite and >= 0, got -1.0"),
        ({"lam": float("nan")}, "`lam` must be finite"),
        ({"num_steps": 0}, "`num_steps` must be an integer >= 1"),
        ({"num_chains": 0}, "`num_chains` must be an integer >= 1"),
        ({"burn_in": 1.5}, "`burn_in` must be an integer >= 1"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        rbm.forget_gap(optimizer=SGD, **settings)
