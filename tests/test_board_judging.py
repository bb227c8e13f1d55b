"""How the leaderboard judges: nulls, attacks, ranks and verdicts, of made-up numbers."""

import numpy as np
import pytest

from experiments.comparison import leaderboard_page
from experiments.comparison.board_measures import (
    SAMPLES,
    Case,
    Divergence,
    Judges,
    Outputs,
    shadowed,
)
from experiments.comparison.board_ranks import NOTHING, judged, ranked
from experiments.comparison.judging import as_columns
from famr_jax import attacks, metrics


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
