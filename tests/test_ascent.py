"""Gradient ascent and descent-ascent: what one step is, and when the ascent stops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same

from famr_jax import methods
from famr_jax.losses import cross_entropy
from famr_jax.train import Supervised, TrainState
from famr_jax.types import Pair
from famr_jax.unlearn import run

KEY = jax.random.key(5)
LR = 0.1
SGD = optax.sgd(LR)


@pytest.fixture
def pair(forget, retain):
    return Pair(forget, retain)


@partial(jax.jit, static_argnums=0)
def slope(model, params, batch):
    def mean(params):
        return jnp.mean(cross_entropy(model.apply(params, batch.x), batch.labels))

    return jax.grad(mean)(params)


def close(tree, other):
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=0, atol=1e-6)


@jax.jit
def one_step(method, state, pair):
    return method.step(state, pair, KEY)


def step(method, params, pair):
    return one_step(method, method.init(params, pair.forget, pair.retain, KEY), pair)


def test_a_step_of_ascent_follows_the_gradient_of_the_forget_loss(model, params, pair):
    method = methods.gradient_ascent(model.apply, optimizer=SGD)
    state, info = step(method, params, pair)
    close(state.params, optax.tree.add_scale(params, LR, slope(model, params, pair.forget)))
    assert info["objective"] == -info["forget"]


def test_ascent_raises_the_forget_loss_and_needs_no_retained_set(model, params, forget):
    method = methods.gradient_ascent(model.apply, optimizer=SGD)
    done = run(method, params, forget, epochs=5, batch_size=10, key=KEY)
    assert np.all(np.diff(done.log["forget"]) > 0)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_step_of_descent_ascent_adds_up_both_gradients(model, params, pair, weight):
    method = methods.descent_ascent(model.apply, forget_weight=weight, optimizer=SGD)
    state, info = step(method, params, pair)
    both = optax.tree.add_scale(
        slope(model, params, pair.retain), -weight, slope(model, params, pair.forget)
    )
    close(state.params, optax.tree.add_scale(params, -LR, both))
    wanted = float(info["retain"]) - weight * float(info["forget"])
    assert float(info["objective"]) == pytest.approx(wanted, abs=1e-6)


def test_without_ascent_it_is_training_on_the_retained_set(model, params, pair):
    method = methods.descent_ascent(model.apply, forget_weight=0.0, optimizer=SGD)
    learner = Supervised(model.apply, SGD)
    mine, _ = step(method, params, pair)
    theirs, _ = jax.jit(learner.step)(TrainState(params, SGD.init(params)), pair.retain, KEY)
    close(mine.params, theirs.params)


def test_the_ascent_stops_after_its_steps(model, params, pair):
    make = partial(methods.descent_ascent, model.apply, optimizer=SGD)
    method, always, never = make(ascent_steps=2), make(), make(forget_weight=0.0)
    state = method.init(params, *(pair.forget, pair.retain), KEY)
    for other in (always, always, never, never):
        wanted, _ = one_step(other, state, pair)
        state, _ = one_step(method, state, pair)
        close(state.params, wanted.params)
    assert state.context.step == 4


def test_a_sweep_over_the_weight_is_a_vmap(model, params, pair):
    weights = jnp.array([0.0, 0.5, 1.0])
    method = methods.descent_ascent(model.apply, forget_weight=weights, optimizer=SGD)
    state = method.init(params, pair.forget, pair.retain, KEY)
    axes = jax.tree.map(lambda leaf: 0, method)
    swept, _ = jax.jit(jax.vmap(type(method).step, in_axes=(axes, None, None, None)))(
        method, state, pair, KEY
    )
    for i, weight in enumerate(weights.tolist()):
        one = methods.descent_ascent(model.apply, forget_weight=weight, optimizer=SGD)
        close(jax.tree.map(lambda leaf, i=i: leaf[i], swept.params), step(one, params, pair)[0][0])


def test_the_anchor_is_a_copy_of_the_weights(model, params, pair):
    state = methods.descent_ascent(model.apply, optimizer=SGD).init(
        params, pair.forget, pair.retain, KEY
    )
    assert_same(state.context.anchor, params)
    anchor = {id(leaf) for leaf in jax.tree.leaves(state.context.anchor)}
    assert not anchor & set(map(id, jax.tree.leaves(params)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"forget_weight": -1.0}, "`forget_weight` must be finite and >= 0, got -1.0"),
        ({"forget_weight": float("nan")}, "`forget_weight` must be finite"),
        ({"ascent_steps": 0}, "`ascent_steps` must be an integer >= 1, got 0"),
        ({"ascent_steps": 2.5}, "`ascent_steps` must be an integer"),
    ],
)
def test_bad_settings_are_refused(model, settings, words):
    with pytest.raises(ValueError, match=words):
        methods.descent_ascent(model.apply, optimizer=SGD, **settings)


def test_descent_ascent_needs_the_retained_set(model, params, forget):
    method = methods.descent_ascent(model.apply, optimizer=SGD)
    with pytest.raises(ValueError, match="`retain` must be given"):
        run(method, params, forget, epochs=1, batch_size=5, key=KEY)
