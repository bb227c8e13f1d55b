"""All methods side by side: budgets, the step as a number, choosing, resuming, page and tables."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import counting

from experiments.comparison import comparison_page, comparison_tables, ranking, trials
from experiments.comparison import method_comparison as compared
from experiments.comparison.judging import UNITS, as_columns, as_rows, judged
from experiments.comparison.searches import SEARCHES
from experiments.comparison.trials import Search, Sizes
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import methods, models, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.opening import open_bench
from famr_jax.methods import BY_NAME
from famr_jax.types import Batch, Pair

RESULTS = {k: r for k, r in read_results().items() if k.startswith("method_comparison")}
DOCS = Path(__file__).parent.parent / "docs"

SIZES = {
    "class": Sizes(146, 1291, 32, 50),
    "three": Sizes(430, 1007, 32, 50),
    "tenth": Sizes(144, 1293, 32, 50),
}
OVER = {"gauss_newton_ascent", "gauss_newton_removal", "win_u"}


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
        if search.optimizer:  # whole epochs may leave much of it
            assert max(spent) > 0.3 * trials.BUDGET * sizes.retraining
    assert bool(search.over) == (name in OVER)


def test_a_budget_is_counted_in_examples():
    sizes = Sizes(forget=10, retain=100, batch_size=20, epochs=10)
    assert sizes.retraining == 1000
    both = Search("descent_ascent", {"lr": (1.0,)}, "adam", forget=1, retain=2, once=(3, 0))
    setting = {"lr": 1.0, "part": 1.0}
    assert trials.epochs_of(both, setting, sizes) == 1  # at least, where 200 - 30 < 5 (10 + 40)
    long = sizes._replace(epochs=50)  # 1000 - 30 = 3.88 epochs of 250
    assert trials.epochs_of(both, setting, long) == 3
    assert trials.examples(both, setting, long) == 3 * 250 + 30
    assert trials.epochs_of(both, setting | {"part": 0.6}, long) == 2
    assert trials.epochs_of(both, {"lr": 1.0}, long) == 2  # the part of all but lengths
    once = Search("ssd", {"alpha": (1.0,)}, once=(1, 1), extra=7)
    assert trials.examples(once, {"alpha": 1.0}, sizes) == 117


@pytest.fixture(scope="module")
def vit():
    return models.create("vit_mu/4", num_classes=10, image_shape=(8, 8, 1))


@pytest.mark.parametrize("name", [name for name, each in SEARCHES.items() if each.optimizer])
def test_the_table_counts_all_that_a_step_puts_through_the_network(name, vit):
    search = SEARCHES[name]
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


def test_the_step_is_a_number_that_does_not_retrace(model, params, forget, retain):
    apply_fn, traces = counting(model.apply)
    key, ends, seen = jax.random.key(0), {}, []
    search = Search("finetune", {"lr": (0.01, 0.1)}, "training", retain=1)
    for setting in search.settings:
        method = trials.made(search, setting, apply_fn)
        done = unlearn.run(method, params, forget, retain, epochs=2, batch_size=5, key=key)
        ends[setting["lr"]] = done.params
        seen.append(len(traces))
    assert seen[0] == seen[1] > 0
    for lr, found in ends.items():
        plain = methods.finetune(model.apply, optimizer=optax.adam(lr, b2=0.99))
        done = unlearn.run(plain, params, forget, retain, epochs=2, batch_size=5, key=key)
        for leaf, same in zip(*map(jax.tree.leaves, (found, done.params)), strict=True):
            np.testing.assert_allclose(leaf, same, rtol=1e-4, atol=1e-6)


def test_a_one_shot_trial_is_the_methods_own_edit(model, params, forget, retain):
    key = jax.random.key(0)
    own = methods.ssd(model.apply, alpha=1.5, dampening=0.3).init(params, forget, retain, key)
    trial = trials.made(SEARCHES["ssd"], {"alpha": 1.5, "dampening": 0.3}, model.apply)
    assert trial.init(params, forget, retain, key).info == {}
    for a, b in zip(
        *map(jax.tree.leaves, (own.params, trial.init(params, forget, retain, key).params)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_scores():
    row = {"for_acc": 0.5, "ret_acc": 0.9, "test_acc": 0.8}
    oracle = {"for_acc": 0.0, "ret_acc": 1.0, "test_acc": 0.8}
    assert trials.tug_of_war(row, oracle) == pytest.approx(0.5 * 0.9)
    assert trials.alone(row, 10) == pytest.approx(0.9 - 0.4)
    assert trials.alone(row | {"for_acc": 0.05}, 10) == pytest.approx(0.9)
    assert trials.alone(row, None) == pytest.approx(0.9 - 0.3)
    assert trials.best([math.nan, 0.2, 0.3, 0.3]) == 2
    assert trials.best([math.nan, math.nan]) == 0


def test_a_third_of_each_class_is_for_choosing():
    labels = np.repeat(np.arange(4), 30)[np.random.default_rng(1).permutation(120)]
    chosen = compared.validation_of(labels, 0)
    assert np.bincount(labels[chosen]).tolist() == [10] * 4
    assert (compared.validation_of(labels, 1) != chosen).any()


def placed(root, out="out", **changes):
    bench = replace(compared.SMALL.bench, out=root / out, cache=root / "cache")
    return replace(compared.SMALL, bench=bench, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def small(root):
    return run(compared.EXPERIMENT, placed(root))


def without_seconds(results):
    """The results but for what a clock said."""
    cells = [
        cell | {name: {n: c for n, c in cell[name].items() if n not in CLOCKED} for name in TIMED}
        for cell in results["cells"]
    ]
    return {"cells": cells, "original": results["original"]}


CLOCKED, TIMED = ("seconds", "tuning", "training"), ("rows", "trials")


def test_every_method_is_tried_and_measured_on_every_original(small, root):
    flags = compared.SMALL
    for cell in small["results"]["cells"]:
        tried, rows = as_rows(cell["trials"]), as_rows(cell["rows"])
        assert len(tried) == len(flags.methods) * 8 * flags.originals
        assert len(rows) == flags.originals * (1 + 2 * len(flags.methods))
        assert len(cell["oracles"]["tow"]) == flags.bench.oracles
        for row in rows[flags.originals :]:
            mine = [
                t for t in tried if (t["model"], t["original"]) == (row["model"], row["original"])
            ]
            assert mine[row["trial"]][row["by"]] == max(t[row["by"]] for t in mine)
            assert sum(t["seconds"] for t in mine) == pytest.approx(row["tuning"], rel=1e-3)
            lacks = ["svc_attack"] if cell["forget"] == "class:3" else ["for_acc_test"]
            assert [name for name in UNITS if name not in row] == lacks
    text = (root / "out" / "report.html").read_text()
    assert all(name in text for name in flags.methods)
    assert ledger.ledger({"method_comparison": small})
    assert str(root) not in json.dumps(small)


def test_killed_within_a_method_it_goes_on_to_the_same_results(small, root, tmp_path, monkeypatch):
    calls, whole = [], trials.unlearned

    def killed(*args, **settings):
        calls.append(args)
        if len(calls) == 12:  # in the second method
            raise KeyboardInterrupt
        return whole(*args, **settings)

    monkeypatch.setattr(trials, "unlearned", killed)
    flags = placed(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(compared.EXPERIMENT, flags)
    content = run(compared.EXPERIMENT, flags)
    of_first = 1 + trials.NUM_TRIALS  # one more warms up
    assert calls[of_first][0].method != calls[0][0].method
    assert sum(args[0] == calls[0][0] for args in calls) == 2 * of_first  # of two forget sets
    assert without_seconds(content["results"]) == without_seconds(small["results"])


def test_choosing_sees_neither_test_images_nor_the_oracles_that_judge(small, root, monkeypatch):
    flags = placed(root, "broken", methods=("delete", "ssd"))
    bench = open_bench(flags.bench)
    labels = np.asarray(bench.test.labels)
    kept = compared.validation_of(labels, bench.flags.seed)
    x = jnp.where(kept[:, None, None, None], bench.test.x, 0)
    retrained = Bench.oracles

    def broken(self, gone):
        judge, *oracles = retrained(self, gone)
        return [judge, *(jax.tree.map(lambda leaf: -4 * leaf, each) for each in oracles)]

    monkeypatch.setattr(Bench, "oracles", broken)
    found = compared.measure(flags, replace(bench, test=Batch(x, bench.test.labels)))
    for cell, before in zip(found["cells"], small["results"]["cells"], strict=True):
        for name in ("by_oracle", "alone", "test_acc"):
            whole = as_rows(before["trials"])
            wanted = [row[name] for row in whole if row["model"] in flags.methods]
            np.testing.assert_allclose(cell["trials"][name], wanted, rtol=1e-5)
        for name in ("kl_forget", "test_acc"):  # what is reported does see them
            ends = (np.array(each["rows"][name][:2]) for each in (cell, before))
            assert np.abs(np.subtract(*ends)).min() > 0.01


def test_what_grows_too_fast_is_left_out(root, monkeypatch, small):
    monkeypatch.setitem(SEARCHES, "ssd", SEARCHES["ssd"]._replace(most=145))
    content = run(compared.EXPERIMENT, placed(root, "two", methods=("ssd", "delete")))
    class_3, tenth = content["results"]["cells"]
    assert (class_3["left_out"], tenth["left_out"]) == (["ssd"], [])
    assert ranking.names_of(class_3) == ["delete"]


def test_another_method_is_refused(root):
    with pytest.raises(ValueError, match="`methods` must be among"):
        run(compared.EXPERIMENT, placed(root, "none", methods=("famr", "trew")))


def made_up(near, far, *, sees=("retain", "forget"), alone=0.0, nothing=0.9):
    """A cell of two methods, at these distances from oracles at half, that rank as they do."""
    names = [name for name in UNITS if name != "svc_attack"]
    oracles = [dict.fromkeys(names, 0.5 + 0.001 * i) | {"n": {}} for i in range(-4, 4)]
    before = [
        dict.fromkeys(names, nothing) | {"model": "original", "original": i} for i in range(3)
    ]
    rows = [
        dict.fromkeys(names, 0.5 + distance + 1e-4 * i + (alone if by == "alone" else 0))
        | {"model": model, "original": i, "by": by, "trial": 0}
        for model, distance in (("near", near), ("far", far))
        for by in ranking.BY
        for i in range(3)
    ]
    told = [
        {"model": m, "sees": s, "share": [0.1]} for m, s in zip(("near", "far"), sees, strict=True)
    ]
    return {
        "forget": "class:3",
        "methods": told,
        "measures": dict.fromkeys(names, 10**6),
        "oracles": as_columns(judged(oracles, oracles)),
        "rows": as_columns(judged([*before, *rows], oracles)),
    }


def verdicts(*cells, oracles=8):
    dataset = {"name": "digits", "num_classes": 10}
    results = {"dataset": dataset, "model": {"name": "vit"}, "cells": cells}
    made = comparison_page.claims(results, {"oracles": oracles, "originals": 3})
    return [claim["verdict"] for claim in made]


def test_verdicts_follow_from_the_rows():
    good = made_up(0.001, 0.2)
    assert verdicts(good) == ["holds", "holds", "holds", "holds"]
    assert verdicts(good, made_up(0.1, 0.2)) == ["mixed", "holds", "holds", "holds"]
    assert verdicts(made_up(0.1, 0.2, alone=0.1))[::2] == ["fails", "fails"]
    assert verdicts(made_up(0.001, 0.2, sees=("forget", "retain")))[3] == "fails"
    wide = made_up(0.1, 0.2, nothing=0.5)  # doing nothing is in the band
    assert verdicts(good, wide)[::3] == ["holds", "holds"]
    assert verdicts(wide)[::3] == ["not resolved", "not resolved"]
    assert verdicts(good, oracles=7) == ["not resolved"] * 4
    broken = made_up(math.nan, math.nan)  # what is not finite is None in a JSON
    broken["rows"] = {k: [None if v != v else v for v in c] for k, c in broken["rows"].items()}
    assert verdicts(broken)[2] == "not resolved"
    assert verdicts(good, broken)[2] == "holds"
    assert ranking.always_inside(good) == ["near"]
    assert ranking.ranks(good, "tow") == {"near": [1, 1, 1], "far": [2, 2, 2]}
    assert [point["front"] for point in ranking.front(good, "for_acc", "ret_acc")] == [True, False]


def test_tables_have_a_row_for_each_method_or_for_the_best_of_each_kind(small):
    full, brief = comparison_tables.full(small), comparison_tables.brief(small)
    for name in compared.SMALL.methods:
        assert full.count(f"| `{name}` |") == 2
    shown = [name for name in compared.SMALL.methods if f"| `{name}` |" in brief]
    assert shown in (["delete", "finetune"], ["delete", "ssd"])
    assert [line.split(" | ")[0] for line in brief.splitlines()[2::3]] == [
        "| doing nothing", "| another oracle"
    ]  # fmt: skip
    assert len({line.count("|") for line in brief.splitlines()}) == 1


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in comparison_page.headline(RESULTS[name]):
        assert line in compared.__doc__


def test_pages_hold_the_table_of_the_results():
    sys.path.insert(0, str(DOCS))
    try:
        import comparison
    finally:
        sys.path.remove(str(DOCS))
    places = []
    for page in comparison.PAGES:
        text = page.read_text()
        assert comparison.written(text, read_results()) == text
        for name in comparison.TABLES:
            places += [(page.name, name)] * len(comparison.place(name).findall(text))
    assert ("which_method.md", "comparison") in places
    assert ("leaderboard.md", "leaderboard") in places
    assert ("README.md", "leaders") in places
