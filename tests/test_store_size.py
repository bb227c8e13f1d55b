"""Stores of several sizes: SMALL, cuts against steps taken directly, the gap by hand, verdicts."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison import store_size, store_size_page, stores
from experiments.comparison.forget_data_only import mislabelled
from experiments.comparison.judging import as_columns, as_rows
from experiments.comparison.store_size import EXPERIMENT, SMALL
from experiments.harness import ledger
from experiments.harness.run import run
from famr_jax import methods, metrics
from famr_jax.cli import ensembles
from famr_jax.cli.opening import open_bench
from famr_jax.unlearn import begin


def placed(root, out="out", **changes):
    bench = replace(SMALL.bench, out=root / out, cache=root / "cache")
    return replace(SMALL, bench=bench, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store_size")


@pytest.fixture(scope="module")
def small(root):
    return run(EXPERIMENT, placed(root))


@pytest.fixture(scope="module")
def bench(root, small):
    return mislabelled(open_bench(placed(root, "bench").bench), SMALL.size, SMALL.wrong)


def test_small_has_a_row_for_each_cut_of_each_original(small, root):
    (cell,) = small["results"]["cells"]
    rows = as_rows(cell["rows"])
    assert [(r["original"], r["rank"]) for r in rows] == [
        (i, rank) for i in range(SMALL.originals) for rank in SMALL.ranks
    ]
    assert all(0 <= row["outside"] <= 1 and row["damping"] > 0 for row in rows)
    few, many = rows[:2]
    assert many["outside"] < few["outside"]
    assert cell["num_wrong"] > 0
    assert set(cell["before"]) == set(store_size_page.MEASURED)
    assert len(store_size_page.headline(small)) == len(SMALL.ranks)
    assert ledger.ledger({"store_size": small})
    assert "directions" in (root / "out" / "report.html").read_text()
    assert str(root) not in json.dumps(small)


def test_all_directions_give_the_step_of_the_method_itself(small, bench):
    bench, wrong = bench
    (gone,) = bench.forget_sets(SMALL.forget)
    everything = np.ones((SMALL.originals, len(bench.train)), bool)
    original = ensembles.trained(bench, "originals", everything, key=bench.keys.train)[0].params
    space = stores.stored(bench, "store 0", original, rank=SMALL.ranks[-1])
    method = methods.gauss_newton_removal(bench.model.apply, store=space)
    after = begin(method, original, bench.train[gone.mask], None, key=jax.random.key(0)).params
    (cell,) = small["results"]["cells"]
    row = as_rows(cell["rows"])[len(SMALL.ranks) - 1]
    for name, rows in (("ret_acc", ~gone.mask), ("mislabelled", gone.mask & wrong)):
        logits = metrics.predict(bench.model.apply, after, bench.train[rows].x)
        hits = np.argmax(logits, -1) == np.asarray(bench.train.labels)[rows]
        np.testing.assert_allclose(row[name], hits.mean(), rtol=1e-5)
    forgotten = bench.train[gone.mask].x
    mine = np.asarray(metrics.predict(bench.model.apply, after, forgotten), np.float64)
    kl = []
    for oracle in bench.oracles(gone):
        theirs = np.asarray(metrics.predict(bench.model.apply, oracle, forgotten), np.float64)
        log_p, log_q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (theirs, mine))
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    np.testing.assert_allclose(row["kl_forget"], np.mean(kl), rtol=1e-4)


def test_a_cut_keeps_the_leading_eigenvectors():
    values = np.array([3.0, 2.0, 1.0])
    rows = jnp.eye(5)[jnp.array([4, 0, 2])]
    space = store_size.Eigenspace(rows, jnp.diag(jnp.asarray(values)), 7, 9)
    cut = store_size.Stored(None, space, values, rows).cut(2)
    np.testing.assert_allclose(cut(jnp.arange(1.0, 6.0)), [2.0, 0, 0, 0, 15.0])
    assert (cut.size, cut.num_products) == (7, 9)


def content(*ends, oracles=8):
    """A result with one forget set, of originals that end at these KLs at 10 and 20 directions."""
    rows = [
        {"original": i, "rank": rank, "damping": 1.0, "above": 12, "outside": 0.5}
        | {"divergence": 0.02, "kl_forget": kl, "ret_acc": 1.0, "test_acc": 0.9}
        for i, pair in enumerate(ends)
        for rank, kl in zip((10, 20), pair, strict=True)
    ]
    found = {"values": [0.5] * oracles, "mean": 0.5, "band": [0.4, 0.6], "null": 0.0}
    cell = {"forget": "random:0.1", "num_forget": 10, "num_wrong": 0, "rows": as_columns(rows)}
    cell["oracles"] = dict.fromkeys(("kl_forget", "ret_acc", "test_acc"), found)
    cell["before"] = {"kl_forget": [1.5] * len(ends), "ret_acc": [1.0], "test_acc": [0.9]}
    dataset = {"name": "digits", "num_classes": 10}
    return {"dataset": dataset, "model": {"name": "mlp_4"}, "size": 100, "wrong": 0,
            "products": [20] * len(ends), "cells": [cell]}  # fmt: skip


def test_the_gap_is_closed_from_doing_nothing_to_another_oracle():
    (cell,) = content((1.0, 0.5), (1.25, 0.75))["cells"]
    assert store_size_page.closed(cell) == {10: [0.5, 0.25], 20: [1.0, 0.75]}
    assert store_size_page.grows(cell)["mean"] == 0.5
    cell["before"]["kl_forget"] = [1.5, 0.55]
    assert store_size_page.closed(cell) is None


def verdict(*ends, **changes):
    (claim,) = store_size_page.claims(content(*ends, **changes), {})
    return claim["verdict"]


def test_more_directions_must_close_more_by_more_than_the_originals_differ():
    assert verdict((1.2, 0.6), (1.1, 0.6), (1.2, 0.7)) == "holds"
    assert verdict((0.6, 1.2), (0.6, 1.1), (0.7, 1.2)) == "fails"
    assert verdict((1.0, 0.6), (0.6, 1.0), (1.0, 1.0)) == "not resolved"
    assert verdict((1.2, 0.6), (1.1, 0.6), (1.2, 0.7), oracles=7) == "not resolved"


def test_refuses_what_is_no_sample_of_images_and_cuts_that_are_all_the_same(root):
    with pytest.raises(ValueError, match="`forget` must be random samples"):
        run(EXPERIMENT, replace(SMALL, forget=("class:3",)))
    with pytest.raises(ValueError, match="`ranks` must be ascending"):
        run(EXPERIMENT, replace(SMALL, ranks=(5, 5)))
    with pytest.raises(ValueError, match="`ranks` must start below 650, the weights, got 650"):
        run(EXPERIMENT, placed(root, "refused", ranks=(650, 700)))
