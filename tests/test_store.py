"""The store: one model a key, the same bits whoever made it, however often it was interrupted."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same
from members import EPOCHS, Members, begin, bits

from famr_jax import checkpoint, mesh, store
from famr_jax.provenance import TRAINING
from famr_jax.store import Clock, Store


@pytest.fixture
def every_epoch_saved(monkeypatch):
    monkeypatch.setattr(store, "SECONDS_BETWEEN_SAVES", 0)


@pytest.mark.parametrize("width", [1, 4])
def test_a_members_bits_depend_on_neither_slot_neighbours_nor_a_warm_store(tmp_path, width):
    seeds = [3, 1, 4, 15, 9, 2]  # 6: a chunk of 4 and one of 2
    cold = Members(seeds, width).fit(tmp_path / "cold")
    few = Members(seeds[:2], width)
    few.fit(tmp_path / "warm")
    more = Members(seeds, width)
    warm = more.fit(tmp_path / "warm")
    assert_same(bits(warm), bits(cold))
    chunks = [[2], [3], [4], [5]] if width == 1 else [[2, 3, 4, 5]]
    assert more.ran == [(chunk, 0) for chunk in chunks]
    turned = Members(seeds[::-1], width).fit(tmp_path / "turned")
    assert_same(bits(turned)[::-1], bits(cold))
    again = Members(seeds[::-1], width)
    assert_same(bits(again.fit(tmp_path / "cold"))[::-1], bits(cold))
    assert not again.ran
    (alone,) = Members([9], width).fit(tmp_path / "alone")
    assert_same(alone.params, cold[4].params)
    assert alone.log == cold[4].log
    assert [set(entry) for entry in alone.log] == [{"loss"}] * EPOCHS
    assert isinstance(alone.log[0]["loss"], float)


def test_members_agree_with_single_runs(tmp_path):
    many, single = (Members([3, 1], width).fit(tmp_path) for width in (4, 1))
    assert len([path for path in tmp_path.iterdir() if path.name != ".locks"]) == 4
    for one, other in zip(jax.tree.leaves(bits(many)), jax.tree.leaves(bits(single)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.usefixtures("every_epoch_saved")
@pytest.mark.parametrize("width", [1, 4])
def test_an_interrupted_chunk_goes_on_to_the_same_bits(tmp_path, width):
    whole = Members([3, 1, 4], width).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Members([3, 1, 4], width, stop=3).fit(tmp_path / "run[1]")
    later = Members([3, 1, 4], width)
    assert_same(bits(later.fit(tmp_path / "run[1]")), bits(whole))
    assert later.ran[0] == ([0] if width == 1 else [0, 1, 2, 2], 2)
    kept = [path for path in (tmp_path / "run[1]").iterdir() if path.name != ".locks"]
    assert [[part.name for part in path.iterdir()] for path in kept] == [["weights"]] * 3


@pytest.mark.usefixtures("every_epoch_saved")
def test_a_member_finished_elsewhere_meanwhile_is_fine(tmp_path):
    whole = Members([3, 1, 4], 4).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Members([3, 1, 4], 4, stop=3).fit(tmp_path / "run")
    Members([1], 4).fit(tmp_path / "run")
    later = Members([3, 1, 4], 4)
    assert_same(bits(later.fit(tmp_path / "run")), bits(whole))
    assert later.ran == [([0, 2, 2, 2], 0)]


@pytest.mark.usefixtures("every_epoch_saved")
@pytest.mark.parametrize("width", [1, 4])
def test_without_resume_all_is_made_anew(tmp_path, width):
    first = Members([3, 1], width).fit(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Members([3, 1], width, stop=2).fit(tmp_path, resume=False)
    again = Members([3, 1], width)
    assert_same(bits(again.fit(tmp_path, resume=False)), bits(first))
    assert [start for _, start in again.ran] == [0] * len(again.ran)
    assert sorted(row for rows, _ in again.ran for row in set(rows)) == [0, 1]


def fit(root, *, watch=None, sources=TRAINING, config=None, epochs=EPOCHS):
    one = Members([3], 1)
    keep = Store(root, resume=True, clock=Clock())
    return keep.fit(
        "original",
        {"seed": 3} if config is None else config,
        lambda: one.begin(0),
        lambda state, start: one.advance(0, state, start),
        epochs=epochs,
        sources=sources,
        watch=watch,
    ), one.ran


def test_one_phase_keeps_what_was_watched_and_is_read_back(tmp_path):
    def watch(params):
        return {"size": jnp.sum(params["b"])}

    first, ran = fit(tmp_path, watch=watch)
    assert ran == [([0], 0)]
    assert set(first.log[-1]) == {"loss", "size"}
    again, ran = fit(tmp_path, watch=watch)
    assert not ran
    assert_same(again.params, first.params)
    assert again[1:] == first[1:]


@pytest.mark.usefixtures("every_epoch_saved")
@pytest.mark.parametrize("spoilt", ["finite", "watched"])
def test_an_epoch_that_is_not_finite_is_not_saved(tmp_path, spoilt):
    calls = []

    def watch(params):
        calls.append(params)
        return {"size": np.nan if len(calls) == 3 and spoilt == "watched" else 1.0}

    def advance(state, start):
        for epoch in range(start + 1, EPOCHS + 1):
            yield epoch, state, {"finite": epoch != 3 or spoilt == "watched"}

    keep = Store(tmp_path, resume=True, clock=Clock())
    with pytest.raises(store.NonFiniteError, match=r"phase: not finite in epoch 3; ") as failed:
        keep.fit("phase", {}, lambda: begin(0), advance, epochs=EPOCHS, watch=watch)
    assert (failed.value.phase, failed.value.epoch) == ("phase", 3)
    home = keep.directory("phase", {}, epochs=EPOCHS)
    assert checkpoint.latest_epoch(home / "progress") == 2
    assert checkpoint.latest_epoch(home / "weights") is None


def test_programs_are_forgotten_where_a_process_could_hold_no_more(tmp_path, monkeypatch):
    if not Path("/proc/self/maps").exists():
        pytest.skip("counts mappings on Linux alone")
    traces, kept = [], Store(tmp_path, resume=True, clock=Clock())

    @jax.jit
    def function(x):
        traces.append(None)
        return x + 1

    for name, most, count in (("few", 10**6, 1), ("many", 0, 2)):
        monkeypatch.setattr(store, "MOST_MAPPINGS", most)
        function(1.0)
        assert kept.remember(name, {}, lambda: 1.0, sources=(Path(__file__),)) == 1.0
        function(1.0)
        assert len(traces) == count


def test_weights_of_a_mesh_are_those_of_the_mesh_and_load_in_it(tmp_path):
    with jax.set_mesh(mesh.parse("data=2")):
        first, _ = fit(tmp_path)
        again, ran = fit(tmp_path)
    assert not ran
    assert_same(again.params, first.params)
    assert len(again.params["w"].devices()) == 2
    _, ran = fit(tmp_path)
    assert ran
