"""The epoch loop: what is drawn, what resumes, what retraces, when it stops."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, counting, random_batch
from hypothesis import given
from hypothesis import strategies as st

from famr_jax import loop
from famr_jax.train import Supervised
from famr_jax.types import Batch, pytree

ADAM = optax.adam(1e-2)
KEY = jax.random.key(3)
DRAW = jax.jit(loop.draw, static_argnums=(1, 2, 3))


class Seen(NamedTuple):
    """A state that writes down what it is shown."""

    params: jax.Array
    num_steps: jax.Array


@pytree
class Writer:
    """Counts how often each label is shown, per set; `rate` is a number that may change."""

    rate: float = 1.0

    def step(self, state, sets, key):
        counts = [state.params.at[i, s.labels].add(self.rate) for i, s in enumerate(sets)]
        params = state.params + sum(count - state.params for count in counts)
        return Seen(params, state.num_steps + 1), {"key": jax.random.uniform(key)}


def numbered(size):
    return Batch(jnp.zeros((size, 1)), jnp.arange(size))


def blank(rows=2, size=12):
    return Seen(jnp.zeros((rows, size)), jnp.zeros((), int))


def run(learner, state, sets, *, size, epochs, batch_size, key=KEY, start=0):
    """All that a run yields, copied before the next epoch consumes it."""
    sizes = {"size": size, "epochs": epochs, "batch_size": batch_size}
    steps = loop.run_epochs(learner, state, sets, **sizes, key=key, start=start)
    return [jax.device_get(step) for step in steps]


@given(st.sampled_from([(7, 2, 3), (4, 3, 4)]), st.integers(0, 2**30))
def test_draw_shows_every_row_once_before_any_twice(sizes, seed):
    size, num_steps, batch_size = sizes
    rows = np.asarray(DRAW(jax.random.key(seed), *sizes))
    assert rows.shape == (num_steps, batch_size)
    flat = rows.ravel()
    for first in range(0, flat.size, size):
        piece = flat[first : first + size]
        assert len(set(piece)) == len(piece)
        assert set(piece) <= set(range(size))


def test_draw_gives_fresh_permutations():
    rows = np.asarray(DRAW(KEY, 12, 3, 12))
    assert len({tuple(row) for row in rows}) == 3
    assert not np.array_equal(DRAW(jax.random.key(4), 12, 3, 12), rows)


def test_an_epoch_passes_once_over_its_set_and_reshuffles_the_others():
    sets = (numbered(12), numbered(5), numbered(3))
    [(epoch, state, info)] = run(Writer(), blank(3), sets, size=12, epochs=1, batch_size=4)
    assert epoch == 1
    assert state.num_steps == 3
    assert state.params[0].tolist() == [1] * 12
    # Twelve draws from a set of five: twice each, and two of them a third time.
    assert sorted(state.params[1, :5].tolist()) == [2, 2, 2, 3, 3]
    # A set smaller than the batch is used whole at every step.
    assert state.params[2, :3].tolist() == [3, 3, 3]
    assert bool(info["finite"])


def test_a_ragged_epoch_shows_every_example_and_shuffles_each_set_its_own_way():
    sets = (numbered(12), numbered(12))
    [(_, state, _)] = run(Writer(), blank(), sets, size=12, epochs=1, batch_size=5)
    assert state.num_steps == 3
    for counts in state.params.tolist():
        assert sorted(counts) == [1] * 9 + [2] * 3
    assert state.params[0].tolist() != state.params[1].tolist()


def test_every_step_of_every_epoch_has_its_own_key():
    sets = (numbered(4),)
    twice = [run(Writer(), blank(1), sets, size=4, epochs=3, batch_size=4) for _ in range(2)]
    keys = [float(info["key"]) for _, _, info in twice[0]]
    assert len(set(keys)) == 3
    assert keys == [float(info["key"]) for _, _, info in twice[1]]
    last = run(Writer(), blank(1), sets, size=4, epochs=3, batch_size=4, start=2)
    assert [float(info["key"]) for _, _, info in last] == keys[2:]


@pytest.fixture(scope="module")
def learner(model):
    return Supervised(model.apply, ADAM)


@pytest.fixture(scope="module")
def train():
    return random_batch(10, seed=4)


def begin(learner, params):
    return learner.init(jax.tree.map(jnp.copy, params))


def test_training_resumed_at_any_epoch_is_the_uninterrupted_run(learner, params, train):
    settings = {"size": 10, "epochs": 4, "batch_size": 4}
    whole = run(learner, begin(learner, params), train, **settings)
    assert [epoch for epoch, _, _ in whole] == [1, 2, 3, 4]
    for epoch, state, _ in whole[:-1]:
        resumed = run(learner, jax.tree.map(jnp.asarray, state), train, **settings, start=epoch)
        assert_same(resumed, whole[epoch:])


def test_a_state_that_was_yielded_can_be_kept(learner, params, train):
    """It was consumed by the next epoch: `Array has been deleted`."""
    settings = {"size": 10, "epochs": 3, "batch_size": 4, "key": KEY}
    start = begin(learner, params)
    seen = list(loop.run_epochs(learner, start, train, **settings))
    for mine, wanted in zip(seen, run(learner, start, train, **settings), strict=True):
        assert_same(jax.device_get(mine), wanted)
    *_, (_, consumed, _) = loop.run_epochs(learner, start, train, **settings, donate=True)
    assert_same(consumed, seen[-1][1])
    assert start.params["head"]["kernel"].is_deleted()


def test_members_are_single_runs(learner, model, params, train):
    settings = {"size": 10, "epochs": 3, "batch_size": 4}
    keys = jax.random.split(KEY, 3)
    together = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), begin(learner, params))
    [*_, (_, members, info)] = run(learner, together, train, **settings, key=keys)
    assert info["loss"].shape == (3,)
    for i, key in enumerate(keys):
        [*_, (_, alone, _)] = run(learner, begin(learner, params), train, **settings, key=key)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], members.params)
        logits = [model.apply(weights, train.x) for weights in (mine, alone.params)]
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


def test_new_numbers_weights_and_keys_do_not_retrace(model, params, train):
    apply_fn, traces = counting(model.apply)
    settings = {"size": 10, "epochs": 3, "batch_size": 4}
    for smoothing, scale, seed in ((0.0, 1.0, 0), (0.1, 2.0, 1)):
        learner = Supervised(apply_fn, ADAM, label_smoothing=smoothing)
        weights = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        run(learner, begin(learner, weights), train, **settings, key=jax.random.key(seed))
    assert len(traces) == 1


def test_stops_after_the_first_epoch_that_is_not_finite():
    growing = Writer(2e38)  # the second showing overflows float32
    log = run(growing, blank(1), (numbered(4),), size=4, epochs=5, batch_size=4)
    assert [epoch for epoch, _, _ in log] == [1, 2]
    assert [bool(info["finite"]) for _, _, info in log] == [True, False]


def test_one_member_that_is_not_finite_stops_all_and_is_named(learner, params, train):
    def spoil(leaf):
        return jnp.stack([leaf, leaf * jnp.nan, leaf])

    spoilt = jax.tree.map(spoil, begin(learner, params))
    keys = jax.random.split(KEY, 3)
    log = run(learner, spoilt, train, size=10, epochs=3, batch_size=4, key=keys)
    assert [info["finite"].tolist() for _, _, info in log] == [[True, False, True]]


@pytest.mark.parametrize("count", [0, -1, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_counts_below_one_are_refused(name, count):
    counts = {"epochs": 1, "batch_size": 1} | {name: count}
    with pytest.raises(ValueError, match=name):
        loop.run_epochs(Writer(), blank(1), (numbered(4),), size=4, **counts, key=KEY)
