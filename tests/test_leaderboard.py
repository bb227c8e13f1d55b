"""The leaderboard: rows, ranks, budgets, resuming, a row of one's own, and its page."""

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
)
from experiments.comparison.board_models import KNOWN, affordable, search_of
from experiments.comparison.board_ranks import AGAIN, NOTHING
from experiments.comparison.judging import as_columns, as_rows
from experiments.comparison.leaderboard import EXPERIMENT, SMALL
from experiments.comparison.trials import Sizes
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
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
