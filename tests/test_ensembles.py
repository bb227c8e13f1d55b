"""Ensembles whose members have their own sets: equal to single runs, compiled once, resumable."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, counting, drawn, random_batch, to_float64
from test_folder import write_folder

from famr_jax import loop, mesh, models, train, unlearn
from famr_jax.cli import ensembles
from famr_jax.cli.flags import BenchFlags
from famr_jax.cli.opening import open_bench
from famr_jax.data import load
from famr_jax.methods import descent_ascent, famr
from famr_jax.progress import Clock
from famr_jax.store import Store
from famr_jax.train import Recipe
from famr_jax.types import Batch

KEYS = jax.random.split(jax.random.key(0), 4)
TOY = Recipe(epochs=2, batch_size=4, lr=1e-2, weight_decay=0.0)
SIZES = (12, 8, 12, 12)
SGD = optax.sgd(1e-2)
SETTINGS = {"epochs": 2, "batch_size": 3}
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def drawn_masks(sizes, size=24, seed=0):
    generator = np.random.default_rng(seed)
    masks = np.zeros((len(sizes), size), bool)
    for mask, count in zip(masks, sizes, strict=True):
        mask[generator.permutation(size)[:count]] = True
    return masks


MASKS = drawn_masks(SIZES)
FORGET = np.stack([mask & (np.cumsum(mask) <= 4) for mask in MASKS])
RETAIN = MASKS & ~FORGET


@pytest.fixture(scope="module")
def data():
    return random_batch(24, seed=4)


def close(tree, other):
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, same, **CLOSE)


def test_a_member_alone_on_a_cpu_is_a_single_run_bit_for_bit(model, data, monkeypatch):
    monkeypatch.setattr(loop, "member_width", lambda: 1)
    done = train.run(model, data, TOY, key=KEYS, masks=MASKS)
    assert done.log["loss"].shape == (4, 2)
    assert done.finite
    method = descent_ascent(model.apply, optimizer=SGD)
    left = unlearn.run_each(method, done.params, data, FORGET, RETAIN, key=KEYS, **SETTINGS)
    for i in (0, 1):
        single = train.run(model, data[MASKS[i]], TOY, key=KEYS[i])
        assert_same(single.params, done.members[i])
        np.testing.assert_array_equal(single.log["loss"], done.log["loss"][i])
        alone = unlearn.run(
            method, single.params, data[FORGET[i]], data[RETAIN[i]], key=KEYS[i], **SETTINGS
        )
        assert_same(alone.params, loop.members(left.params)[i])
        np.testing.assert_array_equal(alone.log["objective"], left.log["objective"][i])


def test_members_side_by_side_are_single_runs_in_float64(model, data, monkeypatch, x64):
    data = to_float64(data)
    method = descent_ascent(model.apply, optimizer=SGD)
    each = [to_float64(drawn(model.init, seed=i)) for i in range(4)]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def both(width):
        monkeypatch.setattr(loop, "member_width", lambda: width)
        found = train.run(model, data, TOY, key=KEYS, masks=MASKS, start=each[0])
        left = unlearn.run_each(method, starts, data, FORGET, RETAIN, key=KEYS, **SETTINGS)
        return [found.params, left.params, found.log, left.log]

    one, two = both(1), both(2)
    close(one, two)
    assert jax.tree.leaves(one)[0].dtype == np.float64
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one[1], starts)
    assert max(map(float, jax.tree.leaves(moved))) > 1e-4


def test_a_members_bits_depend_on_neither_place_nor_company(model, data, monkeypatch):
    monkeypatch.setattr(loop, "member_width", lambda: 2)
    order = np.array([3, 0, 1, 2])
    found = train.run(model, data, TOY, key=KEYS, masks=MASKS)
    moved = train.run(model, data, TOY, key=KEYS[order], masks=MASKS[order])
    assert_same([found.members[i] for i in order], moved.members)
    few = train.run(model, data, TOY, key=KEYS[3:4], masks=MASKS[3:4])
    assert_same(few.members, [found.members[3]])
    method = famr(model.apply, lam=0.1, optimizer=SGD)
    left = unlearn.run_each(method, found.params, data, FORGET, key=KEYS, **SETTINGS)
    again = unlearn.run_each(method, moved.params, data, FORGET[order], key=KEYS[order], **SETTINGS)
    assert_same([loop.members(left.params)[i] for i in order], loop.members(again.params))


def test_a_member_never_sees_an_example_of_the_others(model, data, monkeypatch):
    """What it was not given is spoilt, and it does not notice."""
    monkeypatch.setattr(loop, "member_width", lambda: 2)
    masks = np.stack([MASKS[0]] * 2)
    x = jnp.where(MASKS[0][:, None, None, None], data.x, jnp.nan)
    found = train.run(model, Batch(x, data.labels), TOY, key=KEYS[:2], masks=masks)
    assert found.finite
    assert_same(found.members, train.run(model, data, TOY, key=KEYS[:2], masks=masks).members)


@pytest.mark.parametrize("width", [1, 2])
def test_a_program_of_each_size_is_traced_once(logistic, data, width, monkeypatch):
    monkeypatch.setattr(loop, "member_width", lambda: width)
    apply_fn, traces = counting(logistic.apply)

    class Counted:
        apply, init = staticmethod(apply_fn), staticmethod(logistic.init)

    many = jax.random.split(jax.random.key(1), 12)
    starts, seen = {}, []
    for name, count in (("few", 2), ("many", 12)):
        masks = drawn_masks([8] * count)
        traces.clear()
        starts[name] = train.run(Counted, data, TOY, key=many[:count], masks=masks)
        seen.append(len(traces))
    method = famr(apply_fn, lam=0.1, optimizer=optax.sgd(1e-2))
    for count in (2, 12):
        masks = drawn_masks([8] * count)
        params = jax.tree.map(lambda leaf, count=count: leaf[:count], starts["many"].params)
        traces.clear()
        unlearn.run_each(method, params, data, masks, epochs=1, batch_size=4, key=many[:count])
        seen.append(len(traces))
    assert seen[0] > 0 < seen[2]
    assert seen[1] == seen[3] == 0


@pytest.mark.slow
def test_ensembles_are_spread_over_devices_as_single_runs_are(model, data, monkeypatch, x64):
    data = to_float64(data)
    start = to_float64(drawn(model.init))
    method = descent_ascent(model.apply, optimizer=SGD)
    chosen, keys = np.array([0, 2]), KEYS[:2]
    monkeypatch.setattr(loop, "member_width", lambda: 2)

    def both():
        found = train.run(model, data, TOY, key=keys, masks=MASKS[chosen], start=start)
        sets = FORGET[chosen], RETAIN[chosen]
        left = unlearn.run_each(method, found.params, data, *sets, key=keys, **SETTINGS)
        return mesh.fetch((found.params, left.params))

    alone = both()
    with jax.set_mesh(mesh.parse("data=2")):
        close(both(), alone)


@pytest.mark.parametrize("width", [1, 2])
def test_the_store_keeps_each_member_and_makes_only_what_is_missing(
    model, data, width, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "member_width", lambda: width)
    wanted = train.run(model, data, TOY, key=KEYS, masks=MASKS).members
    init_keys, keys = jax.vmap(jax.random.split, out_axes=1)(KEYS)
    learners = {size: TOY.learner(model.apply, size) for size in set(SIZES)}
    chunks = []

    def begin(rows):
        size = SIZES[np.atleast_1d(rows)[0]]
        return train.begin(learners[size], model.init, init_keys[rows])

    def advance(rows, state, start):
        chunks.append(np.atleast_1d(rows).tolist())
        part = loop.subsets(data, MASKS, rows)
        size = len(part)
        return loop.run_epochs(
            learners[size],
            state,
            part,
            size=size,
            epochs=2,
            batch_size=4,
            key=keys[rows],
            start=start,
        )

    def fit(members):
        store = Store(tmp_path, resume=True, clock=Clock())
        found = store.fit_members(
            "shadows",
            [{"member": i} for i in members],
            lambda rows: begin(np.asarray(members)[rows]),
            lambda rows, *at: advance(np.asarray(members)[rows], *at),
            epochs=2,
            width=width,
            sizes=[SIZES[i] for i in members],
        )
        return [fitted.params for fitted in found]

    assert_same(fit([0, 1]), [wanted[0], wanted[1]])
    chunks.clear()
    assert_same(fit(list(range(4))), wanted)
    made = {i for chunk in chunks for i in chunk}
    assert made == {2, 3}
    assert all(len({SIZES[i] for i in chunk}) == 1 for chunk in chunks)


def test_masks_that_are_none_are_refused(model, data):
    method = famr(model.apply)
    params = jax.vmap(model.init)(KEYS[:2])
    empty = MASKS[:2] & False

    def each(forget, *retain, key=KEYS[:2]):
        return unlearn.run_each(
            method, params, data, forget, *retain, epochs=1, batch_size=4, key=key
        )

    def trained(masks, key=KEYS[:2]):
        return train.run(model, data, TOY, key=key, masks=masks)

    for call, message in (
        (
            lambda: trained(MASKS),
            r"`masks` must be boolean, \[2, 24\], got bool of shape \[4",
        ),
        (lambda: trained(MASKS[:2] * 1), "`masks` must be boolean, .*, got int64"),
        (lambda: trained(empty), "`masks` must hold an example each, got none for member 0"),
        (lambda: trained(MASKS[:1, :9], KEYS[0]), r"`masks` must be boolean, \[1, 24\]"),
        (lambda: each(empty), "`forget` must hold an example each, got none for member 0"),
        (lambda: each(FORGET[:2], RETAIN[:1]), r"`retain` must be boolean, \[2, 24\]"),
        (lambda: each(FORGET[:2], key=KEYS), "as many keys as members of `params`, 2, got"),
        (
            lambda: each(FORGET[:2], key=KEYS[0]),
            r"as many keys as members .*, 2, got \[\]",
        ),
        (lambda: loop.subsets(data, MASKS, np.array([0, 1])), r"equal sizes, got \[12, 8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_subsets_need_a_key_for_each_member(logistic, data):
    learner = TOY.learner(logistic.apply, 12)
    part = loop.subsets(data, MASKS, np.array([0, 2]))
    state = train.begin(learner, logistic.init, KEYS[:3])
    sizes = {"size": 12, "epochs": 1, "batch_size": 4}
    with pytest.raises(ValueError, match="`Subsets` must be of as many members as keys, got 3"):
        loop.run_epochs(learner, state, part, **sizes, key=KEYS[:3])


def test_one_key_may_have_one_mask(model, data):
    found = train.run(model, data, TOY, key=KEYS[0], masks=MASKS[:1])
    assert_same(found.params, train.run(model, data[MASKS[0]], TOY, key=KEYS[0]).params)


def test_parts_in_memory_go_with_a_set_on_disk(tmp_path):
    write_folder(tmp_path, classes=("a", "b", "c"), n=4)
    sets = [load(f"folder:{tmp_path}", stream=on).train for on in (False, True)]
    small = models.create("logistic", num_classes=3, image_shape=sets[1].image_shape)
    method = descent_ascent(small.apply, optimizer=SGD)
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(drawn(small.init, seed) for seed in (0, 1))
    )
    masks = drawn_masks([4, 4], size=12)
    forget, ends = loop.subsets(sets[0].batch(), masks, np.arange(2)), []
    for retain in (sets[0].batch(), sets[1]):
        state = unlearn.begin(method, params, forget, retain, key=KEYS[:2])
        epochs = unlearn.run_epochs(
            method, state, forget, retain, epochs=1, batch_size=4, key=KEYS[:2]
        )
        *_, (_, state, _) = epochs
        ends.append(state.params)
    for leaf, same in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="must be in memory where members with parts"):
        loop.subsets(sets[1], masks, np.arange(2))
    assert len(loop.subsets(sets[1], masks, 1)) == 4


@pytest.mark.parametrize("width", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bench_keeps_the_members_of_single_calls(width, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "member_width", lambda: width)
    bench = open_bench(BenchFlags(model="logistic", train_epochs=1, batch_size=512, cache=tmp_path))
    size = len(bench.train)
    masks = np.arange(size) % 3 != np.arange(3)[:, None]
    masks[2, np.flatnonzero(masks[2])[:9]] = False
    forget = masks & (np.cumsum(masks, axis=1) <= 40)
    method = descent_ascent(bench.model.apply, optimizer=SGD)
    first, second = jax.random.split(jax.random.key(5))

    def both():
        found = ensembles.trained(bench, "shadows", masks, key=first)
        params = [fitted.params for fitted in found]
        left = ensembles.unlearned(
            bench,
            "shadows unlearned",
            method,
            params,
            forget,
            masks & ~forget,
            config={"name": "descent_ascent"},
            sources=(descent_ascent.__module__,),
            epochs=1,
            key=second,
        )
        return params, [fitted.params for fitted in left]

    kept = both()
    again = both()
    assert_same(again, kept)
    wanted = train.run(
        bench.model, bench.train, bench.recipe, key=jax.random.split(first, 3), masks=masks
    )
    assert_same(kept[0], wanted.members)
    left = unlearn.run_each(
        method,
        wanted.params,
        bench.train,
        forget,
        masks & ~forget,
        epochs=1,
        batch_size=512,
        key=jax.random.split(second, 3),
    )
    assert_same(kept[1], loop.members(left.params))
    other = ensembles.trained(bench, "shadows", masks, key=second)
    assert not np.array_equal(other[0].params["head"]["kernel"], kept[0][0]["head"]["kernel"])
