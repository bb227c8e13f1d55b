"""All methods side by side: budgets, the step as a number, choosing, resuming, page and tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import counting

from experiments.comparison import trials
from experiments.comparison.searches import SEARCHES
from experiments.comparison.trials import AtStep, Search, Sizes
from famr_jax import methods, models
from famr_jax.methods import BY_NAME
from famr_jax.types import Batch, Pair

SIZES = {
    "class": Sizes(146, 1291, 32, 50),
    "three": Sizes(430, 1007, 32, 50),
    "tenth": Sizes(144, 1293, 32, 50),
}
OVER = {"gauss_newton_removal", "win_u"}


def test_every_method_is_searched_by_eight_different_settings():
    assert {search.method for search in SEARCHES.values()} == set(BY_NAME)
    for search in SEARCHES.values():
        settings = search.settings
        assert len(settings) == len({str(each) for each in settings}) == trials.NUM_TRIALS
        assert ("lr" in settings[0]) == (search.optimizer is not None)


@pytest.mark.parametrize("name", SEARCHES)
def test_no_trial_costs_more_than_a_fifth_of_a_retraining(name):
    search = SEARCHES[name]
    for sizes in SIZES.values():
        spent = [trials.examples(search, each, sizes) for each in search.settings]
        within = max(spent) <= trials.BUDGET * sizes.retraining
        assert within or name in OVER
        if search.optimizer and name not in OVER:  # and the longest trial uses most of it
            assert max(spent) > 0.5 * trials.BUDGET * sizes.retraining
    assert bool(search.over) == (name in OVER)


def test_a_budget_is_counted_in_examples():
    sizes = Sizes(forget=10, retain=100, batch_size=20, epochs=10)
    assert sizes.retraining == 1000
    both = Search("descent_ascent", {"lr": (1.0,)}, "adam", forget=1, retain=2, once=(3, 0))
    setting = {"lr": 1.0}
    assert trials.epochs_of(both, setting, sizes) == 1  # at least, where 200 - 30 < 5 (10 + 40)
    long = sizes._replace(epochs=50)  # 1000 - 30 = 3.88 epochs of 250
    assert trials.epochs_of(both, setting, long) == 3
    assert trials.examples(both, setting, long) == 3 * 250 + 30
    assert trials.epochs_of(both, setting | {"part": 0.5}, long) == 1
    once = Search("ssd", {"alpha": (1.0,)}, once=(1, 1), extra=7)
    assert trials.examples(once, {"alpha": 1.0}, sizes) == 117


@pytest.fixture(scope="module")
def vit():
    return models.create("vit_mu/4", num_classes=10, image_shape=(8, 8, 1))


@pytest.mark.parametrize("name", SEARCHES)
def test_the_table_counts_all_that_a_step_puts_through_the_network(name, vit):
    search = SEARCHES[name]
    if search.optimizer is None:
        pytest.skip("no steps")
    apply_fn, traces = counting(vit.apply)
    batch = Batch(jnp.zeros((4, 8, 8, 1)), jnp.arange(4))
    key, params = jax.random.key(0), jax.eval_shape(vit.init, jax.random.key(0))
    method = trials.made(search, search.settings[0], apply_fn)
    retain = None if search.sees == "forget" else batch
    state = jax.eval_shape(method.init, params, batch, retain, key)
    traces.clear()
    jax.eval_shape(method.step, state, Pair(batch, retain), key)
    counted = sum(shape[0] for shape in traces)
    if name == "scrub":  # both branches are traced, one is run
        counted //= 2
    if name == "unsir":  # 32 images of noise, which a batch of 32 stands for
        counted -= 32 - 4
    assert 0 < counted <= 4 * (search.forget + search.retain)
