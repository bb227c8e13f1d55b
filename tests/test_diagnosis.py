"""Diagnosis of an unlearning run: every sign, by its number and in its words."""

import json
import math

import pytest
from test_page_of_forgetting import LOG_C, every_leaf, fake_metrics

from famr_jax.cli.diagnosis import CHECKS, diagnose


@pytest.fixture
def case():
    return fake_metrics()["results"]["cases"][0]


@pytest.fixture
def sample():
    return fake_metrics()["results"]["cases"][1]


def answer(case, sign):
    return next(entry for entry in diagnose(case) if entry["sign"] == sign)


def set_oracle(case, measure, **columns):
    """Leaves the row of one measure only, with nothing but what retrained models say of it."""
    case["rows"] = [{"measure": measure, "model": "famr", **columns}]


def set_end(case, for_acc, entropy):
    case["rows"] = [{k: v for k, v in row.items() if k != "value"} for row in case["rows"]]
    case["epochs"]["for_acc"][-1] = for_acc
    case["epochs"]["entropy"][-1] = entropy


def test_diagnosis_retained_accuracy(case):
    case["rows"] = []
    case["epochs"]["ret_acc"] = [0.99, 0.9, 0.62]
    found = answer(case, "Ret-Acc fell")
    assert found["found"] is True
    assert "37.0 points down" in found["words"]
    assert "lam (0.1) is too small" in found["advice"]
    case["epochs"]["ret_acc"] = [0.99, 0.95]
    assert answer(case, "Ret-Acc fell") | {"words": ""} == {
        "sign": "Ret-Acc fell", "found": False, "words": "", "advice": ""
    }  # fmt: skip


def test_diagnosis_trusts_the_row_over_the_end_of_the_curve(case):
    set_oracle(case, "ret_acc", original=0.98, value=0.97)
    case["epochs"]["ret_acc"] = [0.99, 0.62]
    assert "98.0 % to 97.0 %" in answer(case, "Ret-Acc fell")["words"]


def test_diagnosis_still_above_chance(case):
    set_end(case, 0.4, 1.2)
    found = answer(case, "Still above chance")
    assert found["found"] is True
    assert "40.0 %" in found["words"]
    assert "1.200 nats" in found["words"]
    assert found["advice"].startswith("Run more epochs or a larger step: the anchor pulls with")
    case["stationarity"]["end"] = 0.1
    assert answer(case, "Still above chance")["advice"] == "Lower lam (now 0.1)."
    set_end(case, 0.4, LOG_C)
    assert answer(case, "Still above chance")["found"] is False
    set_end(case, 0.14, 1.2)
    assert answer(case, "Still above chance")["found"] is False


def test_diagnosis_of_samples_aims_at_the_oracle_not_at_chance(sample):
    set_oracle(sample, "for_acc", oracle=0.9)
    set_end(sample, 0.99, 0.2)
    assert answer(sample, "Still above chance")["found"] is True
    set_end(sample, 0.89, 0.4)
    there = answer(sample, "Still above chance")
    assert there["found"] is False
    assert "already there" in there["words"]
    set_end(sample, 0.6, 0.4)
    assert "is below it" in answer(sample, "Still above chance")["words"]
    set_oracle(sample, "for_acc", oracle=0.9, band=[0.5, 1.0])
    assert "already there" in answer(sample, "Still above chance")["words"]


def test_diagnosis_target_reached(case, sample):
    set_end(case, 0.11, 2.29)
    reached = answer(case, "Target reached")
    assert reached["found"] is True
    assert "chance is not a failure" in reached["words"]
    assert reached["advice"] == ""
    set_end(case, 0.11, 1.5)
    assert answer(case, "Target reached")["found"] is False
    set_end(sample, 0.11, 2.29)
    over = answer(sample, "Target reached")
    assert over["found"] is True
    assert "a retrained model gets" in over["words"]
    assert over["advice"].startswith("Raise lam")


def test_diagnosis_seeds(case):
    case["seeds"] = {"for_acc": [0.1, 0.2, 0.3], "ret_acc": [0.9, 0.9, 0.9]}
    found = answer(case, "Seeds disagree")
    assert found["found"] is True
    assert "over 3 batch orders is 10.0 points in For-Acc" in found["words"]
    assert "Lower the step (lr now 0.0001)." in found["advice"]
    case["seeds"]["for_acc"] = [0.1, 0.11, 0.12]
    assert answer(case, "Seeds disagree")["found"] is False


def test_diagnosis_entropy_plateau(case, sample):
    case["epochs"]["entropy"] = [0.1, 1.5, 1.61, 1.61, 1.612, 1.613]
    case["epochs"]["grad_norm"] = [2.0, 0.25]
    found = answer(case, "Entropy plateau")
    assert found["found"] is True
    assert "norm 0.25" in found["advice"]
    case["epochs"]["entropy"] = [0.1, 1.2, 1.4, 1.6, 1.8]
    assert answer(case, "Entropy plateau")["found"] is False
    case["epochs"]["entropy"] = [0.1, 2.29, 2.29, 2.29, 2.29]
    assert answer(case, "Entropy plateau")["found"] is False
    sample["epochs"]["entropy"] = [0.1, 0.3, 0.3, 0.3, 0.3]
    set_oracle(sample, "entropy", oracle=0.29)
    assert answer(sample, "Entropy plateau")["found"] is False


def test_diagnosis_stationary_point(case):
    sign = "Far from the stationary point"
    found = answer(case, sign)
    assert found["found"] is True
    assert "6.7 % of the 12.4" in found["words"]
    assert "do not apply yet" in found["advice"]
    case["stationarity"]["end"] = 0.01
    assert answer(case, sign)["found"] is False
    case["stationarity"]["converged"]["from_end"] = 0.9
    assert answer(case, sign)["found"] is True
    case["stationarity"]["converged"]["from_end"] = 0.01
    assert answer(case, sign)["found"] is False


@pytest.mark.parametrize("trial", [{}, {"kind": "sample", "epochs": None, "seeds": None}])
def test_what_was_not_measured_is_said(trial):
    entries = diagnose(trial)
    assert len(entries) == len(CHECKS)
    assert all(entry["words"].startswith("Not measured: ") for entry in entries)
    assert all(entry["found"] is None and entry["advice"] == "" for entry in entries)


def test_diagnosis_survives_numbers_of_any_kind_and_json(case):
    for bad in (math.nan, math.inf, None, "x", 0.0):
        trial = every_leaf(case, lambda v, bad=bad: bad if isinstance(v, float) else v)
        json.dumps(diagnose(trial), allow_nan=False)
