"""The leaderboard: ranks, nulls, budgets, resuming, a row of one's own, verdicts and page."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import counting

from experiments.comparison import (
    board_cells,
    leaderboard,
    leaderboard_page,
    leaderboard_tables,
    trials,
)
from experiments.comparison.board_measures import (
    ATTACKS,
    KLOM,
    RANKED,
    SAMPLES,
    Case,
    Divergence,
    Judges,
    Outputs,
    shadowed,
)
from experiments.comparison.board_models import KNOWN, affordable, search_of
from experiments.comparison.board_ranks import AGAIN, NOTHING, judged, ranked
from experiments.comparison.judging import as_columns, as_rows
from experiments.comparison.leaderboard import EXPERIMENT, SMALL
from experiments.comparison.trials import Sizes
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import attacks, metrics
from famr_jax.cli.opening import open_bench

RESULTS = {k: r for k, r in read_results().items() if k.startswith("leaderboard")}
CLOCKED = ("seconds",)


def placed(root, out="out", **changes):
    bench = replace(SMALL.bench, out=root / out, cache=root / "cache")
    return replace(SMALL, bench=bench, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("leaderboard")


@pytest.fixture(scope="module")
def small(root):
    return run(EXPERIMENT, placed(root))


@pytest.fixture(scope="module")
def bench(root, small):
    return open_bench(placed(root, "bench").bench)


def without_seconds(results):
    cells = [
        cell | {"rows": {n: c for n, c in cell["rows"].items() if n not in CLOCKED}}
        for cell in results["cells"]
    ]
    return results | {"cells": cells}


def test_every_model_has_a_row_with_its_setting_and_numbers(small, root):
    for cell in small["results"]["cells"]:
        rows = leaderboard_page.rows_of(cell)
        assert list(rows) == [NOTHING, AGAIN, *SMALL.methods]
        lacks = "svc_mia" if cell["forget"] == "class:3" else "mia_nn"
        for model, row in rows.items():
            assert row["members"] == SMALL.members
            assert lacks not in row
            assert set(KLOM) < set(row)
            assert ("u_lira" in row) == (model != AGAIN)
            assert ("relearn" in row) == (cell["forget"] == "class:3")
            for name in ATTACKS:
                assert (f"{name}_verdict" in row) == (name in row)
        for model in SMALL.methods:
            assert "lr" in rows[model]["setting"]
            assert rows[model]["seconds"] > 0
        assert rows["finetune"]["sees"] == "retain"
    assert {claim["verdict"] for claim in small["claims"]} == {"not resolved"}  # three models
    text = (root / "out" / "report.html").read_text()
    assert all(word in text for word in (*SMALL.methods, NOTHING, AGAIN, "too few oracles"))
    assert ledger.ledger({"leaderboard": small})
    assert str(root) not in json.dumps(small)


def test_ranks_are_those_of_sorting_each_column(small):
    for cell in small["results"]["cells"]:
        rows, places = as_rows(cell["rows"]), {r["model"]: r for r in as_rows(cell["ranks"])}
        ends = {model: [] for model in places}
        for name in RANKED:
            mine = {row["model"]: row[name] for row in rows if name in row}
            if name in ("u_lira", "told_apart"):
                far = {model: abs(value - 0.5) for model, value in mine.items()}
            elif name in (*KLOM, "average_gap"):
                far = mine
            elif name == "tow":
                far = {model: -value for model, value in mine.items()}
            else:
                oracles = cell["oracles"]
                goal = oracles["mean"][oracles["measure"].index(name)] if mine else 0
                far = {model: abs(value - goal) for model, value in mine.items()}
            for model, value in far.items():
                below = sum(other < value for other in far.values())
                ties = sum(other == value for other in far.values())
                ends[model].append(below + (ties + 1) / 2)
                assert places[model][name] == ends[model][-1]
        for model, each in ends.items():
            line = places[model]
            assert line["rank"] == pytest.approx(np.mean(each), rel=1e-5)
            assert line["rank_low"] <= line["rank_high"]
        assert list(places) == sorted(places, key=lambda model: places[model]["place"])


def test_a_second_run_reads_everything_and_says_the_same(small, root, monkeypatch):
    def never(*_, **__):
        raise AssertionError("nothing is missing")

    for name in ("made", "measured"):
        monkeypatch.setattr(board_cells, name, never)
    again = run(EXPERIMENT, placed(root, "again"))
    assert again["results"] == small["results"]
    assert again["claims"] == small["claims"]


def test_killed_between_methods_it_goes_on_to_the_same_numbers(small, tmp_path, monkeypatch):
    calls, whole = [], board_cells.measured

    def killed(*args):
        calls.append(args[1].method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(board_cells, "measured", killed)
    flags = placed(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, flags)
    content = run(EXPERIMENT, flags)
    assert calls == ["delete", "finetune", "finetune", "delete", "finetune"]
    assert without_seconds(content["results"]) == without_seconds(small["results"])


MINE = """
from famr_jax.methods import {name}

def build(apply_fn, *, optimizer):
    return {name}(apply_fn, optimizer=optimizer)
"""


@pytest.mark.parametrize(("name", "forget", "retain"), [("finetune", 0, 1), ("delete", 2, 0)])
def test_what_a_method_of_a_file_spends_is_counted(name, forget, retain, bench, tmp_path):
    path = tmp_path / f"{name}_mine.py"
    path.write_text(MINE.format(name=name))
    search = search_of(f"{path}:build", bench, Sizes(146, 1291, 32, 50))
    known = KNOWN[name]
    assert (search.forget, search.retain) == (known.forget, known.retain) == (forget, retain)
    assert search.sees == known.sees
    assert search.extra == 0
    assert len(search.settings) == trials.NUM_TRIALS


def test_a_row_of_ones_own_joins_a_recorded_board(small, root, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE.format(name="famr"))
    beside = root / "out" / "metrics.json"
    flags = placed(root, "mine", methods=(f"{path}:build",), beside=beside, forget=("class:3",))
    content = run(EXPERIMENT, flags)
    (cell,), before = content["results"]["cells"], small["results"]["cells"][0]
    rows, old = leaderboard_page.rows_of(cell), leaderboard_page.rows_of(before)
    assert list(rows) == [NOTHING, AGAIN, "mine.build", *SMALL.methods]
    assert {model: rows[model] for model in old} == old
    assert rows["mine.build"]["klom_forget"] > 0
    assert {each["model"] for each in as_rows(cell["ranks"])} == set(rows)
    assert "mine.build" not in leaderboard_page.best_of(content, 9)
    other = replace(flags, members=4)
    with pytest.raises(ValueError, match=r"`beside` must be a board of .* N = 4, got .* N = 3"):
        run(EXPERIMENT, replace(other, bench=replace(other.bench, out=root / "other")))


SIZES = (Sizes(146, 1291, 32, 50, 0.1, 1.0), Sizes(144, 1293, 32, 50, 0.1, 1.0))


@pytest.mark.parametrize("name", [n for n, s in KNOWN.items() if s.sees != "store"])
def test_every_method_spends_at_most_a_tenth_of_a_retraining(name):
    for sizes in SIZES:
        spent = [trials.examples(KNOWN[name], s, sizes) for s in affordable(KNOWN[name], sizes)]
        assert spent
        assert 0 < max(spent) <= 0.1 * sizes.retraining
        epochs = trials.epochs_of(KNOWN[name], affordable(KNOWN[name], sizes)[0], sizes)
        assert epochs >= 1


def test_what_costs_more_than_the_budget_is_refused_or_left_out(bench, root):
    flags = placed(root, "dear", budget=0.05, methods=("finetune",))
    with pytest.raises(ValueError, match=r"at most 5% of a retraining, got finetune on class:3"):
        run(EXPERIMENT, flags)
    (gone,) = bench.forget_sets(("class:3",))
    flags = replace(flags, methods=())
    _, found, left = leaderboard._plan(flags, bench, gone, ("finetune", "gradient_ascent"))
    assert list(found) == ["gradient_ascent"]
    assert [each["model"] for each in left] == ["finetune"]
    assert left[0]["examples"] == pytest.approx(0.1, abs=0.01)  # one of ten epochs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("trew",)}, "`methods` must be among"),
        ({"methods": ("nowhere.py:build",)}, "must name a Python file"),
        ({"methods": ("famr", "famr")}, "`methods` must be different"),
        ({"members": 2}, "`members` must be at least 3, got 2"),
        ({"shadows": 7}, "`shadows` must be even, at least 6, got 7"),
        ({"best": 3}, "`best` must be 0 where `methods` are named, got 3"),
        ({"budget": 1.5}, "`budget` must be in"),
        ({"beside": leaderboard.RESULTS / "none.json"}, "`beside` needs the JSON"),
    ],
)
def test_bad_flags_are_refused_in_a_sentence(changes, words, root):
    with pytest.raises(ValueError, match=words):
        run(EXPERIMENT, placed(root, "refused", **changes))


def drawn(count, shift=0.0, seed=0, lost=True):
    """Outputs of models on thirty images of three classes, of which the last may be forgotten."""
    generator = np.random.default_rng(seed)
    labels = np.arange(30) % 3
    gone = labels == 2 if lost else np.arange(30) < 9
    case = Case(labels, gone, np.arange(60) % 3, (np.arange(60) % 3 == 2) & lost)
    train, test = (generator.normal(size=(count, n, 3)) for n in (30, 60))
    train[:, gone, labels[gone]] += shift
    return case, Outputs(train, test, np.full(count, 4.0) if lost else None)


@pytest.mark.parametrize("lost", [True, False])
def test_models_that_do_not_differ_lie_within_the_nulls_and_others_do_not(lost):
    case, oracles = drawn(16, seed=1, lost=lost)
    judges = Judges(case, oracles, drawn(16, seed=2, lost=lost)[1])
    verdicts = {}
    for shift in (0.0, 6.0):
        found = judges.row(drawn(16, shift, seed=3, lost=lost)[1])
        for name, each in found.items():
            assert len(each["samples"]) == SAMPLES, name
        row = {name: each["value"] for name, each in found.items()}
        errors = {f"{name}_error": each["error"] for name, each in found.items()}
        far = dict.fromkeys(row, 99.0)
        null, sizes = judges.null, {"for_acc": 10, "ret_acc": 20, "test_acc": 40}
        verdicts[shift] = judged(row | errors, far, judges.each, null, sizes, 16)
        assert judged(row | errors, row | errors, judges.each, null, sizes, 7)[
            "klom_forget_verdict"
        ] == "too few oracles"  # fmt: skip
    assert set(verdicts[0.0].values()) == {"inside band"}
    told = {name[:-8] for name, verdict in verdicts[6.0].items() if verdict == "outside band"}
    assert {"for_acc", "klom_forget", "told_apart", "kl_forget"} <= told
    assert not {"klom_retain", "klom_test", "ret_acc"} & told


def test_u_lira_of_shadows_is_a_half_unless_members_are_planted():
    generator = np.random.default_rng(0)
    members = attacks.halves(np.arange(40) < 20, shadows=16)[:, :20]
    margins = generator.normal(size=members.shape)
    found = shadowed(margins, members)
    assert abs(found["value"] - 0.5) < 2.5 * found["error"]
    assert shadowed(margins + 2.0 * members, members)["value"] > 0.8
    lost = shadowed(np.where(members, np.nan, margins), members)
    assert np.isnan(lost["value"])
    assert len(lost["samples"]) == SAMPLES


def test_divergences_are_the_means_over_oracles_one_by_one():
    generator = np.random.default_rng(0)
    oracles, models = generator.normal(size=(2, 4, 7, 3))
    found = Divergence(oracles, np.zeros(7, int))
    wanted = [np.mean([np.asarray(metrics.kl(o, m)).mean() for o in oracles]) for m in models]
    np.testing.assert_allclose(found(models), wanted, rtol=1e-5)
    alone = [
        np.mean([np.asarray(metrics.kl(o, m)).mean() for o in np.delete(oracles, i, axis=0)])
        for i, m in enumerate(oracles)
    ]
    np.testing.assert_allclose(found(oracles, leave=True), alone, rtol=1e-5)


def test_what_broke_is_last_and_what_was_not_measured_has_no_rank():
    rows = [
        {"model": "near", "klom_forget": 1.0, "tow": 0.9},
        {"model": "far", "klom_forget": 3.0, "tow": 0.5, "klom_forget_error": 0.0},
        {"model": "broke", "klom_forget_verdict": "not finite", "tow": 0.4},
        {"model": "half", "tow": 0.95},
    ]
    samples = {
        "near": {"klom_forget": np.full(SAMPLES, 1.0), "tow": np.full(SAMPLES, 0.1)},
        "broke": {"klom_forget": np.full(SAMPLES, np.nan), "tow": np.full(SAMPLES, 0.6)},
    }  # the others were recorded elsewhere
    lines = {line["model"]: line for line in ranked(rows, {}, samples)}
    assert [lines[m].get("klom_forget") for m in ("near", "far", "broke", "half")] == [
        1,
        2,
        3,
        None,
    ]
    assert {m: line["rank"] for m, line in lines.items()} == {
        "half": 1.0, "near": 1.5, "far": 2.5, "broke": 3.5
    }  # fmt: skip
    for line in lines.values():  # no error, no interval
        assert line["place_low"] == line["place_high"] == line["place"]
    rows[1] |= {"tow_error": 0.3}
    (far,) = [line for line in ranked(rows, {}, samples) if line["model"] == "far"]
    assert far["place_low"] < far["place_high"]


def made_up(models, nothing="outside band"):
    """A cell of methods whose verdicts by accuracy and by an attack are given."""
    rows = [{"model": NOTHING, "for_acc_verdict": nothing, "klom_forget_verdict": nothing}]
    for name, (by_accuracy, by_attack) in models.items():
        row = {"model": name, "sees": "forget", "for_acc_verdict": by_accuracy}
        rows.append(row | {"klom_forget_verdict": by_attack})
    order = [
        {"model": m, "rank": i + 1.0, "place": i + 1} for i, m in enumerate([*models, NOTHING])
    ]
    return {"forget": "class:3", "rows": as_columns(rows), "ranks": as_columns(order)}


def verdicts(*cells, members=100):
    results = {"dataset": {"name": "d", "num_classes": 3}, "model": {"name": "m"}}
    results |= {"members": members, "cells": list(cells)}
    found = leaderboard_page.claims(results, {})
    return [claim["verdict"] for claim in found], [claim["words"] for claim in found]


def test_verdicts_follow_from_the_rows():
    good = made_up({"a": ("inside band", "inside band"), "b": ("outside band", "outside band")})
    only = made_up({"a": ("inside band", "outside band"), "b": ("inside band", "not finite")})
    assert verdicts(good)[0] == ["holds", "holds", "holds"]
    assert verdicts(good, only)[0] == ["mixed", "mixed", "holds"]
    for rank, verdict in ((1.0, "holds"), (2.0, "holds"), (2.5, "fails")):  # a tie is not behind
        tied = made_up({"a": ("inside band", "inside band")})
        tied["ranks"]["rank"] = [rank, 2.0]
        assert verdicts(tied)[0][2] == verdict
    found, words = verdicts(only)
    assert found == ["fails", "fails", "holds"]
    assert "2 of 2 (a, b)" in words[1]
    wide = made_up({"a": ("not resolved", "not resolved")}, nothing="not resolved")
    assert verdicts(wide)[0][0] == "not resolved"
    behind = dict(good, ranks={"model": ["a", NOTHING, "b"], "rank": [1, 2, 3], "place": [1, 2, 3]})
    found, words = verdicts(behind)
    assert found[2] == "fails"
    assert "1 of 2 (b)" in words[2]
    assert verdicts(good, members=99)[0] == ["not resolved"] * 3
    assert leaderboard_page.best_of({"results": {"cells": [behind, good]}}, 1) == ("a",)


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in leaderboard_page.headline(RESULTS[name]):
        assert line in leaderboard.__doc__


def test_tables_have_a_row_for_each_model(small):
    full, brief = leaderboard_tables.full(small), leaderboard_tables.brief(small)
    for name in SMALL.methods:
        assert full.count(f"| `{name}` |") == 2
        assert brief.count(f"| `{name}` |") == 1
    for name in (NOTHING, AGAIN):
        assert full.count(f"| {name} |") == 2
    for text in (brief, *full.split("###")[1:]):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1
    cell = small["results"]["cells"][0]
    rows = leaderboard_page.rows_of(cell)
    rows["delete"] |= {"klom_forget": 1.234, "klom_forget_verdict": "outside band"}
    changed = cell | {"rows": as_columns(list(rows.values()))}
    results = small["results"] | {"cells": [changed]}
    assert "**1.23**" in leaderboard_tables.full(small | {"results": results})


def test_trials_and_members_of_a_method_share_one_program(bench):
    apply_fn, traces = counting(bench.model.apply)
    (gone,) = bench.forget_sets(("class:3",))
    params = bench.model.init(jax.random.key(0))
    before = []
    for setting, count in zip(KNOWN["finetune"].settings[::4], (1, 3), strict=True):
        masks = np.stack([gone.mask] * count)
        trials.unlearned_each(
            KNOWN["finetune"],
            setting,
            apply_fn,
            [params] * count,
            [],
            bench.train,
            masks,
            ~masks,
            epochs=1,
            batch_size=128,
            key=jax.random.key(1),
        )
        before.append(len(traces))
    assert before[0] == before[1] > 0


def test_a_method_with_a_store_has_a_band_and_no_rank(small, root):
    flags = placed(root, "store", methods=("gauss_newton_removal",), forget=("class:3",))
    content = run(EXPERIMENT, replace(flags, rank=4))
    (cell,) = content["results"]["cells"]
    row = leaderboard_page.rows_of(cell)["gauss_newton_removal"]
    assert row["sees"] == "store"
    assert row["for_acc_verdict"] == "too few oracles"
    assert not {*KLOM, "u_lira", "told_apart"} & set(row)
    assert {each["model"] for each in as_rows(cell["ranks"])} == {NOTHING, AGAIN}
    assert "| `gauss_newton_removal` | – |" in leaderboard_tables.full(content)
    nothing = [leaderboard_page.rows_of(c)[NOTHING] for c in (cell, small["results"]["cells"][0])]
    assert nothing[0] == nothing[1]
