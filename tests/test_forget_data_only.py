"""Removal with the forget data alone: wrong labels, stores of shadows, goals, verdicts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.comparison import board_cells, forget_data_only, forget_data_page
from experiments.comparison.board_measures import ATTACKS
from experiments.comparison.board_ranks import AGAIN, NOTHING
from experiments.comparison.forget_data_only import EXPERIMENT, SMALL, mislabelled, searches
from experiments.comparison.judging import as_columns, as_rows
from experiments.comparison.leaderboard_page import rows_of
from experiments.comparison.searches import SEARCHES
from experiments.comparison.trials import Sizes
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import metrics
from famr_jax.cli.opening import open_bench

RESULTS = {k: r for k, r in read_results().items() if k.startswith("forget_data_only")}
STEP = forget_data_page.STEP


def placed(root, out="out", **changes):
    bench = replace(SMALL.bench, out=root / out, cache=root / "cache")
    return replace(SMALL, bench=bench, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("forget_data_only")


@pytest.fixture(scope="module")
def small(root):
    return run(EXPERIMENT, placed(root))


@pytest.fixture(scope="module")
def bench(root, small):
    return open_bench(placed(root, "bench").bench)


def test_every_method_is_under_every_attack_with_its_wrong_labels(small, root):
    results = small["results"]
    (cell,) = results["cells"]
    rows = rows_of(cell)
    assert list(rows) == [NOTHING, AGAIN, *SMALL.methods]
    assert (results["size"], results["wrong"]) == (60, 12)
    assert {each["model"] for each in as_rows(cell["ranks"])} == set(rows)
    for model, row in rows.items():
        taken = {name for name in ATTACKS if name in row}
        assert taken >= {"klom_forget", "told_apart", "svc_mia", "kl_forget"}
        assert ("u_lira" in taken) == (model != AGAIN)
        assert 0 <= row["mislabelled"] <= 1
    assert rows[STEP]["setting"] == "damping –"
    store = results["store"]
    assert store["directions"] == SMALL.rank
    assert store["trainings"] == 2 * store["products"] / SMALL.bench.train_epochs
    text = (root / "out" / "report.html").read_text()
    assert all(word in text for word in (*SMALL.methods, "wrong label kept"))
    assert ledger.ledger({"forget_data_only": small})
    assert str(root) not in json.dumps(small)


def test_kept_wrong_labels_are_those_that_the_originals_still_predict(small, bench):
    noisy, wrong = mislabelled(bench, SMALL.size, SMALL.wrong)
    (gone,) = noisy.forget_sets(SMALL.forget)
    (cell,) = small["results"]["cells"]
    rows = gone.mask & wrong
    assert cell["mislabelled"] == rows.sum() > 0
    hits = [
        np.asarray(metrics.predict(noisy.model.apply, params, noisy.train[rows].x)).argmax(1)
        == np.asarray(noisy.train.labels)[rows]
        for params in board_cells.originals(SMALL, noisy)
    ]
    np.testing.assert_allclose(rows_of(cell)[NOTHING]["mislabelled"], np.mean(hits), rtol=1e-5)


def test_labels_are_changed_where_it_says_so_and_to_other_classes(bench):
    noisy, wrong = mislabelled(bench, 100, 0.3)
    again, same = mislabelled(bench, 100, 0.3)
    np.testing.assert_array_equal(wrong, same)
    np.testing.assert_array_equal(noisy.train.labels, again.train.labels)
    assert noisy.dataset.fingerprint != bench.dataset.fingerprint
    assert (len(noisy.train), wrong.sum()) == (100, 30)
    clean, none = mislabelled(bench, 100, 0.3 / 1000)
    assert not none.any()
    np.testing.assert_array_equal(clean.dataset.train.x, noisy.dataset.train.x)
    changed = np.asarray(clean.train.labels) != np.asarray(noisy.train.labels)
    np.testing.assert_array_equal(changed, wrong)
    everything, _ = mislabelled(bench, 0, 0.1)
    assert len(everything.train) == len(bench.train)
    with pytest.raises(ValueError, match=r"`size` must be at most 1437, .* got 2000"):
        mislabelled(bench, 2000, 0.1)


def cell(step, other, *, kl=(2.0, 1.0), band=(0.8, 1.2)):
    """A cell of three models whose oracles have the mean KL of 1."""
    rows = [
        {"model": NOTHING, "ret_acc": 1.0, "test_acc": 0.9, "kl_forget": kl[0], "mislabelled": 1.0},
        {"model": AGAIN, "ret_acc": 1.0, "test_acc": 0.9, "kl_forget": kl[1], "mislabelled": 0.1},
        {"model": STEP, "sees": "store", "kl_forget": 1.2, "mislabelled": 0.3} | step,
        {"model": "delete", "sees": "forget", "kl_forget": 1.5} | other,
        {"model": "finetune", "sees": "retain", "klom_forget": 9.0, "u_lira": 0.9, "svc_mia": 0.9},
    ]
    far = {"klom_forget": 2.0, "u_lira": 0.6, "svc_mia": 0.5}
    rows = [far | {"klom_forget": 3.0} | row for row in rows]
    oracle = {"measure": "kl_forget", "mean": kl[1], "low": band[0], "high": band[1], "n": 8}
    return {
        "forget": "random:0.1",
        "rows": as_columns(rows),
        "oracles": as_columns([oracle]),
        "goals": {"svc_mia": 0.4, "u_lira": 0.5},
    }


GOOD = {"ret_acc": 0.995, "test_acc": 0.895, "klom_forget": 2.5}


def verdicts(*cells, members=8):
    results = {
        "cells": list(cells),
        "members": members,
        "size": 1000,
        "wrong": 100,
        "dataset": {"name": "digits", "num_classes": 10},
        "model": {"name": "mlp"},
    }
    found = EXPERIMENT.claims(results, {"methods": [STEP, "delete"]})
    return [claim["verdict"] for claim in found]


def test_goals_and_verdicts_follow_their_rules():
    good = cell(GOOD, {})
    np.testing.assert_allclose(forget_data_page.gap_closed(good, rows_of(good)[STEP]), 0.8)
    assert all(forget_data_page.goals_of(good, rows_of(good)[STEP]).values())
    assert verdicts(good) == ["holds", "holds", "holds"]
    for spoilt in (
        {"ret_acc": 0.98}, {"test_acc": 0.88}, {"kl_forget": 1.3}, {"mislabelled": 0.4}
    ):  # fmt: skip
        assert verdicts(cell(GOOD | spoilt, {})) == ["fails", "holds", "holds"]
        assert verdicts(cell(GOOD | spoilt, {}), good)[0] == "mixed"
    for nearer in ({"u_lira": 0.45}, {"svc_mia": 0.42}):
        assert verdicts(cell(GOOD, nearer)) == ["holds", "fails", "holds"]
        unsure = {f"{name}_error": 0.05 for name in nearer}
        assert verdicts(cell(GOOD | unsure, nearer | unsure)) == ["holds"] * 3
    klom = cell(GOOD, {"klom_forget": 2.4})
    assert verdicts(klom) == ["holds"] * 3
    assert verdicts(klom, members=100) == ["holds", "fails", "holds"]
    assert verdicts(good, members=7) == ["not resolved"] * 3


def test_what_is_not_finite_is_far_and_reaches_nothing():
    broken = cell({"ret_acc": 1.0, "test_acc": 0.9, "klom_forget": 2.5}, {})
    for name in ("kl_forget", "svc_mia"):
        broken["rows"][name] = [v if m != STEP else None for v, m in zip(
            broken["rows"][name], broken["rows"]["model"], strict=True)]  # fmt: skip
    assert verdicts(broken) == ["fails", "fails", "fails"]
    assert forget_data_page.gap_closed(broken, rows_of(broken)[STEP]) == -np.inf


def test_without_a_gap_none_is_closed():
    none = cell(GOOD, {}, kl=(1.1, 1.0))
    row = rows_of(none)[STEP]
    assert forget_data_page.gap_closed(none, row) is None
    assert forget_data_page.goals_of(none, row) is None
    assert verdicts(none)[0] == "not resolved"
    assert verdicts(none, cell(GOOD, {}))[0] == "holds"


def test_what_costs_too_much_is_told_and_a_store_costs_by_its_directions():
    sizes = Sizes(forget=20, retain=80, batch_size=10, epochs=4, budget=0.2)
    found, left = searches(("finetune", "win_u", STEP, "delete"), sizes, 100)
    assert set(found) == {"win_u", STEP, "delete"}
    (each,) = left
    assert each["model"] == "finetune"
    assert each["examples"] > 0.2
    assert found[STEP].once[0] - SEARCHES[STEP].once[0] == 2 * 50
    assert found["win_u"].once == SEARCHES["win_u"].once
    _, left = searches(("win_u",), sizes._replace(forget=201), 100)
    assert [each["model"] for each in left] == ["win_u"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forget": ("class:3",)}, "`forget` must be random samples"),
        ({"members": 2}, "`members` must be at least"),
        ({"shadows": 7}, "`shadows` must be even"),
        ({"methods": ("no",)}, "methods"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(root, changes, words):
    with pytest.raises(ValueError, match=words):
        run(EXPERIMENT, placed(root, "none", **changes))
    assert not (root / "none").exists()


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in forget_data_page.headline(RESULTS[name]):
        assert line in forget_data_only.__doc__
