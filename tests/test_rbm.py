"""Boltzmann machines against sums over all their states, and against scikit-learn's."""

import itertools
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same
from scipy.special import logsumexp

from famr_jax import loop, rbm
from famr_jax.rbm import Boltzmann, ContrastiveDivergence
from famr_jax.rbm.likelihood import BLOCK
from famr_jax.types import Batch

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


def states(size):
    """All states of some units, `[2^size, size]`."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=size)))


def machine(num_visible, num_hidden, *, scale=0.7, seed=0):
    rng = np.random.default_rng(seed)
    drawn = (
        scale * rng.normal(size=s) for s in ((num_visible, num_hidden), num_visible, num_hidden)
    )
    return Boltzmann(*(jnp.asarray(each) for each in drawn))


def log_z_by_visible(params):
    """log Z by the sum over visible states, in float64."""
    weights, visible, hidden = (np.asarray(leaf, np.float64) for leaf in params)
    v = states(len(visible))
    return logsumexp(v @ visible + np.logaddexp(0, hidden + v @ weights).sum(1))


def binary(size, num_visible, seed=0):
    x = np.random.default_rng(seed).integers(0, 2, (size, num_visible))
    return Batch(jnp.asarray(x, jnp.float32), jnp.zeros(size, int))


def bars_and_stripes(side=3):
    """Every image of whole rows or whole columns: far from independent pixels."""
    rows = np.repeat(states(side)[:, :, None], side, axis=2)
    x = np.concatenate([rows, rows.transpose(0, 2, 1)]).reshape(-1, side * side)
    return Batch(jnp.asarray(x, jnp.float32), jnp.zeros(len(x), int))


def test_free_energy_sums_out_the_hidden_units(x64):
    params, v = machine(5, 4), states(5)
    weights, visible, hidden = params
    h = states(4)
    energy = -(v @ weights @ h.T) - (v @ visible)[:, None] - (h @ hidden)[None]
    np.testing.assert_allclose(rbm.free_energy(params, v), -logsumexp(-energy, axis=1), rtol=1e-12)


@pytest.mark.parametrize("num_hidden", [1, 4, BLOCK + 2])
def test_log_partition_is_the_sum_over_all_states(x64, num_hidden):
    params = machine(6, num_hidden)
    assert rbm.log_partition(params) == pytest.approx(log_z_by_visible(params), rel=1e-12)


def test_twenty_hidden_units_are_exact_and_more_are_refused():
    params = machine(3, 20)
    assert rbm.log_partition(params) == pytest.approx(log_z_by_visible(params), rel=1e-5)
    with pytest.raises(ValueError, match=r"`num_hidden` must be <= 20 .* got 21"):
        rbm.log_partition(machine(3, 21))


def test_likelihoods_of_all_states_sum_to_one(x64):
    params = machine(5, 4)
    log_p = rbm.log_likelihood(params, states(5), rbm.log_partition(params))
    assert np.exp(log_p).sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_annealed_importance_sampling_is_within_its_error_of_exact(seed):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), machine(12, 8, seed=seed))
    found = rbm.ais(params, jax.random.key(seed), num_chains=200, num_steps=300)
    exact = log_z_by_visible(params)
    assert found.low < exact < found.high
    assert found.high - found.low < 0.3
    assert 100 < found.effective <= 200


def test_few_temperatures_are_told_by_the_effective_number_of_chains():
    params = machine(12, 8, scale=2.0)
    poor = rbm.ais(params, KEY, num_chains=200, num_steps=2)
    assert poor.effective < 20
    assert poor.high - poor.low > 1


def test_annealing_between_independent_pixels_knows_z_without_error():
    params = machine(6, 3)._replace(weights=jnp.zeros((6, 3)), hidden=jnp.zeros(3))
    found = rbm.ais(params, KEY, num_chains=10, num_steps=5)
    assert found.low == pytest.approx(log_z_by_visible(params), rel=1e-6)
    assert found.high == pytest.approx(float(found.low), rel=1e-6)


def test_pseudo_likelihood_conditions_each_pixel_on_all_others(x64):
    params, v = machine(4, 3), states(4)
    log_p = rbm.log_likelihood(params, v, 0.0)
    index = {tuple(row): i for i, row in enumerate(v)}
    wanted = []
    for row, here in zip(v, log_p, strict=True):
        flips = [tuple(np.where(np.arange(4) == i, 1 - row, row)) for i in range(4)]
        wanted.append(sum(here - np.logaddexp(here, log_p[index[flip]]) for flip in flips))
    np.testing.assert_allclose(rbm.pseudo_likelihood(params, jnp.asarray(v)), wanted, rtol=1e-10)


def test_samples_have_the_moments_of_the_machine():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), machine(4, 3))
    v = states(4)
    p = np.exp(np.asarray(rbm.log_likelihood(params, v, rbm.log_partition(params)), np.float64))
    drawn = np.asarray(rbm.sample(params, KEY, num_samples=20_000, num_steps=40))
    np.testing.assert_allclose(drawn.mean(0), p @ v, atol=5 * 0.5 / 20_000**0.5)
    np.testing.assert_allclose(
        drawn.T @ drawn / len(drawn), (v.T * p) @ v, atol=5 * 0.5 / 20_000**0.5
    )


@pytest.mark.parametrize("persistent", [True, False])
def test_a_step_follows_the_difference_of_correlations(persistent):
    params, batch = machine(6, 4), binary(5, 6)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    learner = ContrastiveDivergence(SGD, 3, persistent)
    state = learner.init(params, KEY, num_chains=7)
    start = state.chains if persistent else batch.x
    u = rbm.gibbs(params, start, KEY, num_steps=3)
    new, info = jax.jit(learner.step)(state, batch, KEY)

    def correlations(v):
        h = 1 / (1 + np.exp(-(params.hidden + v @ params.weights)))
        return Boltzmann(v.T @ h / len(v), v.mean(0), h.mean(0))

    slope = jax.tree.map(jnp.subtract, correlations(batch.x), correlations(u))
    for moved, leaf, wanted in zip(new.params, params, slope, strict=True):
        np.testing.assert_allclose(moved - leaf, 0.1 * wanted, atol=1e-6)
    gap = rbm.free_energy(params, batch.x).mean() - rbm.free_energy(params, u).mean()
    assert info["loss"] == pytest.approx(float(gap), abs=1e-5)
    if persistent:
        np.testing.assert_array_equal(new.chains, u)
    else:
        assert new.chains is None


@pytest.mark.parametrize("optimizer", [SGD, optax.adam(1e-2)])
def test_a_connection_that_is_cut_stays_cut(optimizer):
    mask = rbm.random_mask(KEY, (6, 4), 0.5)
    learner = ContrastiveDivergence(optimizer, 1, mask=mask)
    start = rbm.init(KEY, num_visible=6, num_hidden=4)
    done = rbm.fit(learner, start, binary(12, 6), epochs=3, batch_size=4, key=KEY, num_chains=5)
    assert done.finite
    assert (np.asarray(done.params.weights)[np.asarray(mask) == 0] == 0).all()
    assert (done.params.weights != start.weights * mask).sum() == mask.sum()


@pytest.mark.parametrize("persistent", [True, False])
def test_training_raises_the_exact_likelihood(persistent):
    data = bars_and_stripes()
    params = rbm.init(KEY, num_visible=9, num_hidden=12, means=data.x.mean(0), scale=0.3)
    learner = ContrastiveDivergence(optax.sgd(1.0), 2, persistent)
    done = rbm.fit(learner, params, data, epochs=300, batch_size=16, key=KEY)
    before, after = (
        float(rbm.log_likelihood(each, data.x, rbm.log_partition(each)).mean())
        for each in (params, done.params)
    )
    best = -(12 * np.log(16) + 4 * np.log(8)) / 16  # of 16 rows, 2 come twice
    assert before < 9 * np.log(0.5)
    assert before + 2.5 < after < best


def test_a_grid_of_masks_and_seeds_is_one_program_and_equals_single_runs(x64):
    data = binary(12, 6)
    data = replace(data, x=data.x.astype(float))
    keys = jax.random.split(KEY, 3)
    starts = [rbm.init(key, num_visible=6, num_hidden=4) for key in keys]
    masks = [rbm.random_mask(key, (6, 4), d) for key, d in zip(keys, (0.0, 0.5, 0.9), strict=True)]
    how = {"epochs": 3, "batch_size": 5, "num_chains": 4}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    learner = ContrastiveDivergence(SGD, 2, mask=jnp.stack(masks))
    grid = rbm.fit(learner, stacked, data, key=keys, swept=True, **how)
    assert grid.log["loss"].shape == (3, 3)
    for i, member in enumerate(grid.members):
        learner = ContrastiveDivergence(SGD, 2, mask=masks[i])
        alone = rbm.fit(learner, starts[i], data, key=keys[i], **how)
        for leaf, same in zip(member, alone.params, strict=True):
            np.testing.assert_allclose(leaf, same, atol=1e-12)


def test_training_repeats_and_resumes_bit_for_bit():
    data, start = binary(12, 6), rbm.init(KEY, num_visible=6, num_hidden=4)
    learner = ContrastiveDivergence(SGD, 2)
    sizes = {"size": 12, "batch_size": 4, "key": KEY, "epochs": 3}

    def run(state, start=0):
        return [
            jax.device_get(s)
            for _, s, _ in loop.run_epochs(learner, state, data, start=start, **sizes)
        ]

    whole = run(learner.init(start, KEY, num_chains=5))
    rest = run(jax.tree.map(jnp.asarray, whole[0]), start=1)
    assert_same(rest[-1], whole[-1])


def test_masks_cut_the_share_that_they_say():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(10, 7)))
    for dilution in (0.0, 0.2, 0.5, 0.98, 1.0):
        for mask in (
            rbm.random_mask(KEY, weights.shape, dilution),
            rbm.magnitude_mask(weights, dilution),
            jax.jit(rbm.magnitude_mask)(weights, dilution),
        ):
            assert (mask == 0).sum() == round(dilution * 70)
    mask = rbm.magnitude_mask(weights, 0.5)
    assert abs(weights)[mask == 0].max() < abs(weights)[mask == 1].min()
    assert not np.array_equal(mask, rbm.random_mask(KEY, weights.shape, 0.5))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`dilution` must be in \[0, 1\]"):
            rbm.magnitude_mask(weights, wrong)


def pair_terms(params):
    """Fields and couplings of -F by the sum over all spins, in float64."""
    v = states(len(params.visible))
    spins, minus_f = 2 * v - 1, -np.asarray(rbm.free_energy(params, v))
    return spins.T @ minus_f / len(v), (spins.T * minus_f) @ spins / len(v)


@pytest.mark.parametrize(("scale", "tolerance"), [(0.1, 1e-4), (0.5, 0.02)])
def test_effective_couplings_are_those_of_the_sum_over_all_spins(x64, scale, tolerance):
    params = machine(9, 5, scale=scale)
    fields, couplings = pair_terms(params)
    np.fill_diagonal(couplings, 0)
    found = rbm.effective_couplings(params)
    assert np.linalg.norm(found.couplings - couplings) < tolerance * np.linalg.norm(couplings)
    assert np.linalg.norm(found.fields - fields) < tolerance * np.linalg.norm(fields)
    np.testing.assert_array_equal(found.couplings, found.couplings.T)


def test_weak_weights_couple_as_their_products(x64):
    params = machine(7, 3, scale=1e-3)
    p = 1 / (1 + np.exp(-np.asarray(params.hidden)))
    wanted = (params.weights * p * (1 - p)) @ params.weights.T / 4
    found = np.asarray(rbm.effective_couplings(params).couplings)
    off = ~np.eye(7, dtype=bool)
    np.testing.assert_allclose(found[off], np.asarray(wanted)[off], rtol=0.02, atol=1e-11)


def test_moment_errors_of_worked_numbers():
    data = jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
    assert rbm.moment_errors(data, data) == (0, 0)
    found = rbm.moment_errors(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), data)
    assert found == (0, pytest.approx(0.5))  # covariance -1/4 in place of 1/4
    assert rbm.moment_errors(jnp.ones((2, 2)), data).first == pytest.approx(0.5)


def test_adversarial_accuracy_of_worked_numbers():
    data = jnp.asarray([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], float)
    far = 1 - data
    assert rbm.adversarial_accuracy(far, data).score == 1
    copies = rbm.adversarial_accuracy(data, data)
    assert (copies.truth, copies.synthetic, copies.score) == (0, 0, 0)
    one = jnp.asarray([[0, 0, 0, 1, 0], [0, 0, 0, 1, 0]], float)
    mixed = rbm.adversarial_accuracy(one, data)
    assert (mixed.truth, mixed.synthetic) == (0.75, 1)  # distances 1 and 1 tie, 2 and 1 do not
    same = binary(400, 8, seed=1).x, binary(400, 8, seed=2).x
    assert rbm.adversarial_accuracy(*same).score == pytest.approx(0.5, abs=0.08)


def test_classifier_score_of_worked_numbers():
    sure = 50.0 * jnp.eye(4)
    assert rbm.classifier_score(sure) == pytest.approx((4, 1, 4), rel=1e-5)
    assert rbm.classifier_score(sure[:1]) == pytest.approx((1, 1, 1), rel=1e-5)
    assert rbm.classifier_score(jnp.zeros((5, 4))) == pytest.approx((1, 0.25, 4), rel=1e-5)


def test_binarise_makes_rows_of_zeros_and_ones():
    images = Batch(jnp.asarray([-1.0, -0.1, 0.1, 1.0]).reshape(1, 2, 2, 1), jnp.zeros(1, int))
    assert rbm.binarise(images).x.tolist() == [[0, 0, 1, 1]]
    assert rbm.binarise(images, threshold=0.9).x.tolist() == [[0, 0, 0, 1]]
    with pytest.raises(ValueError, match="`threshold` must be between 0 and 1"):
        rbm.binarise(images, threshold=1)


def test_fresh_machines_give_pixels_their_means():
    means = jnp.asarray([0.0, 0.3, 1.0])
    params = rbm.init(KEY, num_visible=3, num_hidden=2, means=means, scale=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(params.visible), [0.01, 0.3, 0.99], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": Batch(jnp.full((3, 6), 0.5), jnp.zeros(3, int))}, "`x` must be 0 or 1, .* 0.5"),
        ({"train": Batch(jnp.zeros((3, 2, 3, 1)), jnp.zeros(3, int))}, "`x` must have the shape"),
        ({"train": binary(3, 5)}, "must have the 6 visible units of `params`, got"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1"),
        ({"num_chains": 0}, "`num_chains` must be an integer >= 1"),
        ({"key": jax.random.PRNGKey(0)}, "`key` must come from jax.random.key"),
        ({"learner": ContrastiveDivergence(SGD, 0)}, "`num_steps` must be an integer >= 1"),
        ({"learner": ContrastiveDivergence(SGD, mask=jnp.ones((4, 6)))}, "`mask` must have the"),
    ],
)
def test_wrong_input_is_refused(change, words):
    given = {"learner": ContrastiveDivergence(SGD), "train": binary(3, 6), "epochs": 1}
    given |= {"key": KEY, "num_chains": 2} | change
    learner, train = given.pop("learner"), given.pop("train")
    start = rbm.init(jax.random.key(1), num_visible=6, num_hidden=4)
    with pytest.raises(ValueError, match=words):
        rbm.fit(learner, start, train, batch_size=2, **given)


def test_likelihood_agrees_with_scikit_learns_at_equal_settings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.datasets import load_digits
        from sklearn.neural_network import BernoulliRBM
    x = (load_digits().data[:400] > 7.5).astype(np.float32)
    data = Batch(jnp.asarray(x), jnp.zeros(len(x), int))

    def score(params):
        return float(rbm.log_likelihood(params, data.x, rbm.log_partition(params)).mean())

    found = {"ours": [], "theirs": []}
    for seed in range(3):
        key, train_key = jax.random.split(jax.random.key(seed))
        start = rbm.init(key, num_visible=64, num_hidden=8)
        learner = ContrastiveDivergence(optax.sgd(0.05))
        how = {"epochs": 20, "batch_size": 20, "num_chains": 20}
        done = rbm.fit(learner, start, data, key=train_key, **how)
        found["ours"].append(score(done.params))
        theirs = BernoulliRBM(
            n_components=8, learning_rate=0.05, batch_size=20, n_iter=20, random_state=seed
        ).fit(x)
        leaves = (theirs.components_.T, theirs.intercept_visible_, theirs.intercept_hidden_)
        found["theirs"].append(
            score(Boltzmann(*(jnp.asarray(each, jnp.float32) for each in leaves)))
        )
    ours, theirs = np.mean(found["ours"]), np.mean(found["theirs"])
    assert min(ours, theirs) > 64 * np.log(0.5) + 15
    assert ours == pytest.approx(theirs, abs=0.7)
