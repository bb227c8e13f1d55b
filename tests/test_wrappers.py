"""Methods that hold another, and what they leave alone, on a network: SalUn, augmented."""

import jax
import numpy as np
import optax
import pytest
from conftest import assert_same, drawn, random_batch, to_float64
from laws import INIT, KEY, SGD, STEP, World, close

from famr_jax import methods
from famr_jax.types import Batch, Pair, pytree, static
from famr_jax.unlearn import OneShot


@pytest.fixture(scope="module")
def net(model, double):
    params = to_float64(drawn(model.init))
    pair = to_float64(Pair(random_batch(10, seed=1), random_batch(14, seed=2)))
    return World(model.apply, params, params, pair, None, None)


def test_salun_moves_the_salient_weights_as_the_method_does_and_no_other_at_all(net):
    decayed = optax.adamw(0.05, weight_decay=0.5)
    inner = methods.finetune(net.apply, optimizer=decayed)
    method = methods.salun(net.apply, method=inner, share=0.4)
    state = net.begun(method)
    moved, alone = net.stepped(method, 2)[0], net.begun(inner)
    ascent = methods.gradient_ascent(net.apply)
    slope = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(net.slope(ascent))])
    mask = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.mask)])
    cut = np.sort(slope)[::-1][mask.sum() - 1]
    np.testing.assert_array_equal(mask, slope >= cut)
    assert mask.sum() == slope.size - int(0.6 * slope.size)
    alone, _ = STEP(inner, alone, net.pair, KEY)
    first, _ = STEP(method, state, net.pair, KEY)
    for chosen, leaf, other, old, end in zip(
        *map(jax.tree.leaves, (state.mask, first.params, alone.params, net.anchor, moved)),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, np.where(chosen, other, old))
        np.testing.assert_array_equal(end[~chosen], old[~chosen])
        assert np.all(end[chosen] != old[chosen])


def test_salun_of_all_weights_is_the_method_itself(net):
    inner = methods.finetune(net.apply, optimizer=SGD)
    whole = methods.salun(net.apply, method=inner, share=1.0)
    close(net.stepped(whole, 2)[0], net.stepped(inner, 2)[0])


def noisy(key, x):
    return x + jax.random.normal(key, x.shape)


def test_augmented_steps_on_augmented_images_of_both_sets(net):
    inner = methods.neggradplus(net.apply, optimizer=SGD)
    moved, _ = STEP(methods.augmented(inner, noisy), net.begun(inner), net.pair, KEY)
    keys = jax.random.split(KEY, 3)
    halves = zip((net.pair.forget, net.pair.retain), keys[:2], strict=True)
    pair = Pair(*(Batch(noisy(key, half.x), half.labels) for half, key in halves))
    wanted, _ = STEP(inner, net.begun(inner), pair, keys[2])
    close(moved.params, wanted.params)
    plain, _ = STEP(inner, net.begun(inner), net.pair, keys[2])
    assert not np.allclose(plain.params["head"]["kernel"], wanted.params["head"]["kernel"])


def test_augmented_needs_no_retained_set_where_the_method_needs_none(net):
    method = methods.augmented(methods.delete(net.apply, optimizer=SGD), noisy)
    assert method.epoch_over == "forget"
    pair = Pair(net.pair.forget, None)
    state = INIT(method, net.anchor, net.pair.forget, None, KEY)
    assert np.isfinite(STEP(method, state, pair, KEY)[1]["forget"])


def test_random_labels_under_augmentation_are_those_of_the_raw_images(net):
    seen = []

    def brighter(key, x):
        return x + 3

    def apply(params, x):
        return net.apply(params, x - 3 if x.shape[0] == len(net.pair.forget) else x)

    forget, retain = net.pair.forget, net.pair.retain
    # The model takes back what the augmentation did: with the same labels the steps are the same.
    for method, model in ((methods.random_labels(net.apply, optimizer=SGD), None), (None, apply)):
        if model is not None:
            method = methods.augmented(methods.random_labels(model, optimizer=SGD), brighter)
            retain = Batch(retain.x - 3, retain.labels)
        state = INIT(method, net.anchor, forget, retain, KEY)
        seen.append(STEP(method, state, Pair(forget, retain), KEY)[0].params)
    for leaf, same in zip(*map(jax.tree.leaves, seen), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-10, atol=1e-12)


def test_augmented_twice_still_knows_the_raw_images_and_what_is_no_augmentation(net):
    seen = []

    @pytree
    class Watching:
        epoch_over: str = static(default="forget")

        def step(self, state, pair, key):
            seen.append(pair.forget.raw)
            return state, {}

    twice = methods.augmented(methods.augmented(Watching(), noisy), noisy)
    twice.step(None, net.pair, KEY)
    assert seen[0] is net.pair.forget.x
    with pytest.raises(ValueError, match="`augment` must keep the shape of a batch, got"):
        methods.augmented(Watching(), lambda key, x: x[:1]).step(None, net.pair, KEY)
    with pytest.raises(ValueError, match="`augment` must be a function"):
        methods.augmented(Watching(), "flip")
    with pytest.raises(ValueError, match="`method` must be an unlearner, got function"):
        methods.augmented(noisy, noisy)


def test_imu_moves_nothing_but_the_last_layer(net):
    moved, _ = net.stepped(methods.imu(net.apply))
    assert_same(moved["layer_0"], net.anchor["layer_0"])
    assert np.all(moved["head"]["kernel"] != net.anchor["head"]["kernel"])


def test_one_shot_methods_step_over_nothing(net):
    for method in (methods.ssd(net.apply), methods.fisher_noise(net.apply)):
        assert isinstance(method, OneShot)
        state = net.begun(method)
        assert_same(STEP(method, state, net.pair, KEY)[0], state)
