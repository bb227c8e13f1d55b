"""Unlearning: descents by hand, runs and their bits, and FAMR's laws on small exact problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, counting, random_batch, to_float64
from jax.flatten_util import ravel_pytree

from famr_jax.losses import l2_anchor
from famr_jax.methods import descent_ascent, famr, retrain
from famr_jax.minimise import InBatches, minimise
from famr_jax.train import Supervised
from famr_jax.types import Batch, Context, Pair, pytree, static
from famr_jax.unlearn import (
    DescentState,
    begin,
    descend,
    run,
    run_epochs,
)

KEY = jax.random.key(2)
SGD, ADAM = optax.sgd(0.1), optax.adam(1e-2)
SETTINGS = {"epochs": 3, "batch_size": 4, "key": KEY}


def l2_to_anchor(params, context, pair, key):
    """A plain function as an objective; it pulls a weight w to 3, and to the anchor."""
    del key
    forget = jnp.mean((params["w"] - 3 * pair.forget.x) ** 2) / 2
    return forget + 0.5 * l2_anchor(params, context.anchor), {"forget": forget}


def toy(x=1.0, w=2.0):
    forget = Batch(jnp.full((4,), x), jnp.zeros(4, int))
    return {"w": jnp.array(w)}, forget


def test_a_step_of_gradient_descent_by_hand():
    params, forget = toy()
    unlearner = descend(l2_to_anchor, SGD)
    state = unlearner.init(params, forget, None, KEY)
    state, info = unlearner.step(state, Pair(forget, None), KEY)
    np.testing.assert_allclose(info["objective"], 0.5)
    np.testing.assert_allclose(info["grad_norm"], 1)
    np.testing.assert_allclose(state.params["w"], 2.1)
    state, info = unlearner.step(state, Pair(forget, None), KEY)
    # Gradient -(3 - 2.1) + 0.5 (2.1 - 2).
    np.testing.assert_allclose(info["objective"], 0.9**2 / 2 + 0.25 * 0.1**2, rtol=1e-6)
    np.testing.assert_allclose(info["forget"], 0.9**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], 2.1 + 0.1 * (0.9 - 0.05), rtol=1e-6)
    np.testing.assert_allclose(state.context.anchor["w"], 2)
    assert state.context.step == 2


def test_a_plain_function_runs_to_its_minimum_by_run_and_by_minimise():
    params, forget = toy()
    pair = Pair(forget, None)
    done = run(descend(l2_to_anchor, SGD), params, forget, epochs=100, batch_size=4, key=KEY)
    minimum = (3 + 0.5 * 2) / 1.5
    np.testing.assert_allclose(done.params["w"], minimum, rtol=1e-4)
    for objective in (l2_to_anchor, descend(l2_to_anchor, SGD).objective):
        found = minimise(objective, params, Context(params), pair, key=KEY)
        np.testing.assert_allclose(found.params["w"], minimum, rtol=1e-4)
        assert found.converged


@pytest.mark.parametrize("batch_size", [3, 5, 10, 99])
def test_an_objective_in_batches_is_the_objective(model, params, forget, batch_size):
    whole = famr(model.apply, lam=0.3).objective
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    both = jax.jit(
        lambda objective: jax.value_and_grad(objective, has_aux=True)(
            moved, Context(params), Pair(forget, None), KEY
        )
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        both(InBatches(whole, batch_size)),
        both(whole),
    )


def test_the_log_has_one_entry_an_epoch_and_means_over_steps(model, params, forget):
    done = run(famr(model.apply, optimizer=ADAM), params, forget, **SETTINGS)
    assert set(done.log) == {"objective", "forget", "anchor", "grad_norm"}
    assert {value.shape for value in done.log.values()} == {(3,)}
    np.testing.assert_allclose(
        done.log["objective"], done.log["forget"] + 0.1 * done.log["anchor"], rtol=1e-5
    )
    assert done.finite is True


def test_resumed_at_any_epoch_is_the_uninterrupted_run(model, params, forget):
    unlearner = famr(model.apply, optimizer=ADAM)
    state = begin(unlearner, params, forget, key=KEY)
    whole = [jax.device_get(s) for s in run_epochs(unlearner, state, forget, **SETTINGS)]
    for epoch, state, _ in whole[:-1]:
        state = jax.tree.map(jnp.asarray, state)
        rest = run_epochs(unlearner, state, forget, **SETTINGS, start=epoch)
        assert_same([jax.device_get(s) for s in rest], whole[epoch:])
    assert_same(run(unlearner, params, forget, **SETTINGS).params, whole[-1][1].params)


def test_famr_never_touches_retained_data(model, params, forget, retain):
    unlearner = famr(model.apply, optimizer=ADAM)
    spoilt = Batch(jnp.full_like(retain.x, jnp.nan), jnp.zeros_like(retain.labels))
    without = run(unlearner, params, forget, **SETTINGS)
    assert_same(run(unlearner, params, forget, spoilt, **SETTINGS), without)


def test_params_are_not_consumed_unless_donated(model, params, forget):
    mine, kept = (jax.tree.map(jnp.copy, params) for _ in range(2))
    unlearner = famr(model.apply, optimizer=ADAM)
    done = run(unlearner, mine, forget, **SETTINGS)
    assert_same(mine, kept)
    again = run(unlearner, mine, forget, **SETTINGS, donate=True)
    assert_same(again.params, done.params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(mine))


def test_members_are_single_runs(model, params, forget):
    unlearner = famr(model.apply, optimizer=ADAM)
    keys = jax.random.split(KEY, 2)
    members = run(unlearner, params, forget, **{**SETTINGS, "key": keys})
    assert members.log["forget"].shape == (2, 3)
    for i, key in enumerate(keys):
        alone = run(unlearner, params, forget, **{**SETTINGS, "key": key})
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], members.params)
        logits = [model.apply(weights, forget.x) for weights in (mine, alone.params)]
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


def test_new_lam_weights_and_keys_do_not_retrace(model, params, forget):
    apply_fn, traces = counting(model.apply)
    for lam, scale in ((0.1, 1.0), (3.0, 2.0), (0.0, -1.0)):
        weights = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        key = jax.random.key(int(lam))
        unlearner = famr(apply_fn, lam=lam, optimizer=ADAM)
        run(unlearner, weights, forget, **{**SETTINGS, "key": key})
    # That of the epochs, one to check the model, and one for the number of its classes.
    assert len(traces) == 3


def test_a_sweep_over_lam_is_one_run_and_each_member_a_separate_one(model, params, forget):
    apply_fn, traces = counting(model.apply)
    lams, keys = jnp.array([0.0, 0.3, 3.0]), jnp.stack([KEY] * 3)
    sweep = jax.vmap(lambda lam: famr(apply_fn, lam=lam, optimizer=SGD))(lams)
    settings = {**SETTINGS, "key": keys, "swept": True}
    swept = run(sweep, params, forget, **settings)
    # That of the epochs, one to check the model, and one for the number of its classes.
    assert len(traces) == 3
    assert swept.log["objective"].shape == (3, 3)
    for i, lam in enumerate(lams):
        alone = run(famr(model.apply, lam=float(lam), optimizer=SGD), params, forget, **SETTINGS)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], swept.params)
        logits = [model.apply(weights, forget.x) for weights in (mine, alone.params)]
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)
        for name, values in alone.log.items():
            np.testing.assert_allclose(swept.log[name][i], values, rtol=1e-4, atol=1e-6)
    distances = swept.log["anchor"][:, -1]
    assert np.all(np.diff(distances) < 0)


def test_a_sweep_whose_init_reads_its_numbers_gives_each_member_its_own(params, forget):
    @pytree
    class Shifted:
        """A method whose init moves the weights by its number."""

        by: float
        epoch_over: str = static("forget")

        def init(self, params, forget, retain, key):
            return DescentState(jax.tree.map(lambda leaf: leaf + self.by, params), None, None)

        def step(self, state, pair, key):
            return state, {"by": self.by}

    by = jnp.array([0.0, 2.0])
    settings = {"epochs": 1, "batch_size": 5, "key": jnp.stack([KEY] * 2), "swept": True}
    done = run(jax.vmap(Shifted)(by), params, forget, **settings)
    np.testing.assert_array_equal(done.log["by"][:, 0], by)
    for mine, start in zip(*map(jax.tree.leaves, (done.params, params)), strict=True):
        np.testing.assert_array_equal(mine, [start, start + 2])


@pytest.mark.parametrize(
    ("key", "lams", "message"),
    [
        (KEY, 2, r"`swept` needs numbers with the member axis of `key`, \[\], got \[2\]"),
        (jax.random.split(KEY, 3), 2, r"of `key`, \[3\], got \[2\]"),
        (jax.random.split(KEY, 3), None, r"of `key`, \[3\], got \[\]"),
    ],
)
def test_a_sweep_of_another_size_than_its_keys_is_refused(
    model, params, forget, key, lams, message
):
    def one(lam):
        return famr(model.apply, lam=lam, optimizer=SGD)

    sweep = one(0.1) if lams is None else jax.vmap(one)(jnp.ones(lams))
    with pytest.raises(ValueError, match=message):
        run(sweep, params, forget, **{**SETTINGS, "key": key, "swept": True})
    with pytest.raises(ValueError, match=message):
        run_epochs(sweep, None, forget, **{**SETTINGS, "key": key, "swept": True})


def test_a_run_that_is_no_longer_finite_stops_and_says_so(model, params, forget):
    exploding = famr(model.apply, lam=1.0, optimizer=optax.sgd(1e30))
    done = run(exploding, params, forget, epochs=5, batch_size=10, key=KEY)
    assert done.finite is False
    assert len(done.log["objective"]) < 5


def test_the_sum_form_is_the_mean_form_with_other_lam_and_lr(model, params, forget, x64):
    params, forget = to_float64((params, forget))
    size, lam_sum, lr = len(forget), 2.0, 0.01
    total = famr(model.apply, lam=lam_sum, forget_weight=size, optimizer=optax.sgd(lr))
    mean = famr(model.apply, lam=lam_sum / size, optimizer=optax.sgd(lr * size))
    ends = [run(unlearner, params, forget, **SETTINGS) for unlearner in (total, mean)]
    flat = [ravel_pytree(end.params)[0] for end in ends]
    np.testing.assert_allclose(*flat, rtol=1e-10, atol=1e-12)
    values = [end.log["objective"] for end in ends]
    np.testing.assert_allclose(values[0], size * values[1], rtol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": -1.0}, "`lam` must be finite and >= 0, got -1.0"),
        ({"lam": float("nan")}, "`lam` must be finite and >= 0, got nan"),
        ({"lam": float("inf")}, "got inf"),
        ({"forget_weight": 0.0}, "`forget_weight` must be finite and > 0, got 0.0"),
    ],
)
def test_famr_refuses(model, changes, message):
    with pytest.raises(ValueError, match=message):
        famr(model.apply, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget": None}, "`forget` must be given, because the method uses it; got None"),
        ({"forget": (1, 2)}, "`forget` must be a Batch or a Source, got tuple"),
        ({"forget": random_batch(0, 0)}, "`forget` must hold at least one example, got 0"),
        ({"retain": random_batch(0, 0)}, "`retain` must hold at least one example, got 0"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
    ],
)
def test_run_refuses(model, params, forget, changes, message):
    settings = {"forget": forget, "retain": None, **SETTINGS, **changes}
    with pytest.raises(ValueError, match=message):
        run(famr(model.apply, optimizer=ADAM), params, settings.pop("forget"), **settings)


@pytest.mark.parametrize("label", [-1, -100, 3, 255])
@pytest.mark.parametrize("where", ["forget", "retain"])
def test_a_label_that_is_no_class_is_refused(model, params, forget, retain, label, where):
    sets = {"forget": forget, "retain": retain}
    sets[where] = Batch(sets[where].x, sets[where].labels.at[0].set(label))
    method = descent_ascent(model.apply, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="`labels` must be classes of 3, 0 to 2, got "):
        run(method, params, **sets, epochs=1, batch_size=4, key=KEY)


def test_run_refuses_no_retained_data_for_a_method_that_passes_over_it(model, params, forget):
    with pytest.raises(ValueError, match="`retain` must be given"):
        run(retrain(Supervised(model.apply, ADAM), model.init), params, forget, **SETTINGS)


def test_descend_and_minimise_refuse():
    with pytest.raises(ValueError, match="`epoch_over` must be 'forget' or 'retain', got 'both'"):
        descend(l2_to_anchor, SGD, epoch_over="both")
    params, forget = toy()
    with pytest.raises(ValueError, match="`tol` must be finite and > 0, got 0"):
        minimise(l2_to_anchor, params, Context(params), Pair(forget, None), key=KEY, tol=0)
