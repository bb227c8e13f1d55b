"""Diagnosis of an unlearning run: every sign, by its number and in its words."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from made_up_job import LOG_C, every_leaf, fake_metrics

from famr_jax.cli.diagnosis import LAM_GIVES_BACK, SIGNS, diagnose, diverged
from famr_jax.cli.measured import measured

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


@pytest.fixture
def case():
    return fake_metrics()["results"]["cases"][0]


@pytest.fixture
def sample():
    return fake_metrics()["results"]["cases"][1]


def answer(case, sign):
    return next(entry for entry in diagnose(case) if entry["sign"] == sign)


def found(case):
    return [entry["sign"] for entry in diagnose(case) if entry["found"]]


def set_ends(case, *, for_acc, ret_acc=(0.99, 0.98), entropy=(0.1, 1.5), oracle=0.0, band=None):
    """Before and after of three measures as rows and as curves, and the oracles' For-Acc."""
    ends = {"for_acc": for_acc, "ret_acc": ret_acc, "entropy": entropy}
    known = {"for_acc": {"oracle": oracle, "band": band}, "ret_acc": {"oracle": 0.98}}
    case["rows"] = [
        {"measure": name, "model": "famr", "original": a, "value": b} | known.get(name, {})
        for name, (a, b) in ends.items()
    ]
    method = case["methods"][0]
    method["curves"] = {
        name: [a + (b - a) * i / 10 for i in range(11)] for name, (a, b) in ends.items()
    }
    return method


def test_a_class_counts_as_forgotten_up_to_chance_whatever_the_entropy_is(case):
    set_ends(case, for_acc=(0.99, 0.12), entropy=(0.1, 0.5))
    assert found(case)[0] == "Forgotten"
    assert (
        "12.0 %, of retrained models 0.0 %; up to 15.0 % counts"
        in (answer(case, "Forgotten")["words"])
    )
    set_ends(case, for_acc=(0.99, 1.0), entropy=(0.1, LOG_C))
    entry = answer(case, "Not forgotten")  # beside oracles at 0 %, with uniform predictions
    assert entry["found"] is True
    assert "predictions are uniform" in entry["words"]
    assert answer(case, "Forgotten")["found"] is False


def test_samples_are_measured_by_retrained_models(sample):
    set_ends(sample, for_acc=(0.99, 0.91), oracle=0.92)
    assert "Forgotten" in found(sample)
    set_ends(sample, for_acc=(0.99, 0.97), oracle=0.92)
    assert "Not forgotten" in found(sample)
    set_ends(sample, for_acc=(0.99, 0.83), oracle=0.94, band=[0.9, 0.98])
    assert "More forgotten than by retraining" in found(sample)
    assert answer(sample, "Not forgotten")["found"] is False


def test_doing_nothing_within_the_band_resolves_nothing(sample):
    set_ends(sample, for_acc=(0.95, 0.94), oracle=0.94, band=[0.9, 0.98])
    entry = answer(sample, "Forgotten")
    assert entry["found"] is None
    assert entry["words"].startswith("Not resolved: For-Acc is 94.0 %")
    assert "The original's 95.0 % counts as well." in entry["words"]
    set_ends(sample, for_acc=(0.95, 0.8), ret_acc=(0.99, 0.8), oracle=0.94, band=[0.9, 0.98])
    assert answer(sample, "Ret-Acc fell")["advice"] == ""  # no epoch is better than none


def test_an_original_at_chance_is_all_that_is_said(case):
    set_ends(case, for_acc=(0.12, 0.1), ret_acc=(0.13, 0.05), entropy=(LOG_C, LOG_C))
    assert found(case) == ["Nothing to forget"]
    assert "--train-epochs" in answer(case, "Nothing to forget")["advice"]
    assert answer(case, "Forgotten")["words"] == "Not asked: nothing to forget."
    assert [entry["sign"] for entry in diagnose(case) if entry["advice"]] == ["Nothing to forget"]


def test_a_run_that_went_up_diverged_and_gets_no_other_advice(case):
    method = set_ends(case, for_acc=(0.99, 0.99), ret_acc=(0.99, 0.1))
    method["terms"] = {"objective": [2.0, 9.0, 4e9], "grad_norm": [5.0, 1e4, 1.8e7]}
    case["stationarity"] = {"at_anchor": 5.0, "end": 1.8e7, "distance": 9.0}
    assert found(case) == ["Diverged"]
    (entry,) = [entry for entry in diagnose(case) if entry["advice"]]
    assert entry["advice"].startswith("Lower --method-lr (now 0.0001)")
    assert "the objective went from 2 in the first epoch to 4·10⁹ in the last".lower() in (
        entry["words"].lower()
    )
    assert diverged(diagnose(case))
    method["terms"]["objective"][-1] = -4e9  # unbounded below, as in gradient ascent
    assert not diverged(diagnose(case))


def test_a_run_that_was_not_finite_diverged(case):
    case["methods"][0] |= {"finite": False, "epoch": 3}
    assert found(case) == ["Diverged"]
    assert answer(case, "Diverged")["words"] == "Not finite in epoch 3."


def test_a_loss_of_retained_accuracy_names_the_epoch_that_had_both(case):
    method = set_ends(case, for_acc=(0.99, 0.02), ret_acc=(0.99, 0.6))
    method["curves"]["for_acc"] = [0.99, 0.5, 0.11, 0.05, 0.02]
    method["curves"]["ret_acc"] = [0.99, 0.97, 0.96, 0.8, 0.6]
    entry = answer(case, "Ret-Acc fell")
    assert "39.0 points down, where 5.0 points are a loss." in entry["words"]
    assert entry["advice"] == (
        "Stop after epoch 2 (--epochs 2): there For-Acc was 11.0 % and Ret-Acc 96.0 %."
    )
    method["curves"]["ret_acc"] = [0.99, 0.97, 0.7, 0.65, 0.6]
    entry = answer(case, "Ret-Acc fell")
    assert entry["advice"] == ""
    assert "no epoch of this run has both" in entry["words"]
    assert "0.1 to 4.5 points in our sweeps" in entry["words"]
    case["methods"][0]["name"] = "other"
    for row in case["rows"]:
        row["model"] = "other"
    assert "our sweeps" not in answer(case, "Ret-Acc fell")["words"]
    set_ends(case, for_acc=(0.99, 0.02), ret_acc=(0.99, 0.95))
    assert answer(case, "Ret-Acc fell")["found"] is False


def test_what_the_diagnosis_says_of_lam_is_what_the_sweeps_found():
    gains = []
    for path in RESULTS.glob("lambda_sweep*.json"):
        for claim in json.loads(path.read_text())["claims"]:
            gains += re.findall(
                r"from lam 0\.01 to 1 at epoch 10, Ret-Acc \+([\d.]+)", claim["words"]
            )
    low, high = min(map(float, gains)), max(map(float, gains))
    assert [100 * each for each in LAM_GIVES_BACK] == pytest.approx([low, high], abs=0.01)


def test_more_epochs_are_advised_where_accuracy_still_falls_and_what_is_retained_is_kept(case):
    case["stationarity"] = {}
    set_ends(case, for_acc=(0.99, 0.4))
    assert answer(case, "Not forgotten")["advice"].startswith("Run more epochs (now 10): For-Acc")
    set_ends(case, for_acc=(0.99, 0.4), ret_acc=(0.99, 0.7))
    assert answer(case, "Not forgotten")["advice"] == ""


def test_a_lower_lam_is_advised_where_the_anchor_holds_a_run_that_stands_still(case):
    method = set_ends(case, for_acc=(0.99, 0.4))
    method["curves"]["for_acc"] = [0.99] + [0.4] * 10
    method["curves"]["entropy"] = [0.1] + [1.5] * 10
    method["lam"] = 10.0
    case["stationarity"] = {"at_anchor": 5.0, "end": 0.01, "distance": 0.3}
    for sign in ("Not forgotten", "Entropy plateau"):
        assert answer(case, sign)["advice"].startswith("Lower lam (now 10): the run stands still")
    case["stationarity"]["end"] = 2.0
    assert answer(case, "Not forgotten")["advice"] == ""


def test_no_case_is_told_to_go_both_ways(case, sample):
    """Whatever is measured: never both of a longer and a shorter run, or of lam."""
    grid = itertools.product((0.0, 0.12, 0.5, 0.95), (0.3, 0.9, 0.98), (0.0, 0.9), (1e-3, 3, 1e9))
    for (gone, kept, oracle, end), each in itertools.product(grid, (case, sample)):
        set_ends(each, for_acc=(0.99, gone), ret_acc=(0.99, kept), oracle=oracle)
        converged = {"for_acc": 0.1, "ret_acc": kept, "converged": True}
        each["stationarity"] = {"at_anchor": 5.0, "end": end, "distance": 1.0}
        each["stationarity"]["converged"] = converged
        advice = " ".join(entry["advice"] for entry in diagnose(each))
        assert not ("Run more" in advice and "Stop after" in advice), advice
        assert not ("Lower lam" in advice and "aise lam" in advice), advice
        assert not ("Lower --method-lr" in advice and "Run more" in advice), advice
        kinds = {"Not forgotten", "Forgotten", "More forgotten than by retraining"}
        assert len(kinds & set(found(each))) <= 1


def test_running_on_is_advised_only_where_the_converged_point_is_worth_it(case):
    sign = "Far from the stationary point"
    set_ends(case, for_acc=(0.99, 0.4))
    case["stationarity"]["converged"] |= {"for_acc": 0.1, "ret_acc": 0.43}
    entry = answer(case, sign)
    assert entry["found"] is True
    assert "There For-Acc is 10.0 % and Ret-Acc 43.0 %." in entry["words"]
    assert entry["advice"] == ""
    case["stationarity"]["converged"]["ret_acc"] = 0.97
    assert answer(case, sign)["advice"].startswith("Run more epochs")
    case["stationarity"]["end"] = 0.01
    assert answer(case, sign)["found"] is False
    case["stationarity"]["converged"]["from_end"] = 0.9
    assert answer(case, sign)["found"] is True


def test_diagnosis_seeds(case):
    case["seeds"] = {"for_acc": [0.1, 0.2, 0.3], "ret_acc": [0.9, 0.9, 0.9]}
    entry = answer(case, "Seeds disagree")
    assert entry["found"] is True
    assert "over 3 batch orders is 10.0 points in For-Acc" in entry["words"]
    case["seeds"]["for_acc"] = [0.1, 0.11, 0.12]
    assert answer(case, "Seeds disagree")["found"] is False
    case["studied"] = "another"
    assert answer(case, "Seeds disagree")["found"] is None


def test_diagnosis_entropy_plateau(case, sample):
    curves = case["methods"][0]["curves"]
    curves["entropy"] = [0.1, 1.5, 1.61, 1.61, 1.612, 1.613]
    assert answer(case, "Entropy plateau")["found"] is True
    for values in ([0.1, 1.2, 1.4, 1.6, 1.8], [0.1, 2.29, 2.29, 2.29, 2.29]):
        curves["entropy"] = values
        assert answer(case, "Entropy plateau")["found"] is False
    sample["methods"][0]["curves"]["entropy"] = [0.1, 0.3, 0.3, 0.3, 0.3]
    row = next(row for row in sample["rows"] if row["measure"] == "entropy")
    row["oracle"] = 0.29
    assert answer(sample, "Entropy plateau")["found"] is False


def test_the_row_counts_before_the_end_of_the_curve(case):
    method = set_ends(case, for_acc=(0.98, 0.97))
    method["curves"]["for_acc"] = [0.99, 0.62]
    assert measured(case).for_acc == (0.98, 0.97)
    case["rows"] = []
    assert measured(case).for_acc == (0.99, 0.62)


def test_few_images_of_two_classes_need_the_oracles(case):
    set_ends(case, for_acc=(1.0, 1.0), oracle=0.0)
    case |= {"num_forget": 1, "targets": {"chance": 0.5, "max_entropy": math.log(2)}}
    assert answer(case, "Not forgotten")["found"] is True
    case["rows"] = []
    assert answer(case, "Not forgotten")["found"] is None


@pytest.mark.parametrize("trial", [{}, {"kind": "sample", "methods": None, "seeds": None}])
def test_what_was_not_measured_is_said(trial):
    entries = diagnose(trial)
    assert len(entries) == len([sign for sign in SIGNS if not sign.of])
    assert all(entry["words"].startswith("Not measured: ") for entry in entries)
    assert all(entry["found"] is None and entry["advice"] == "" for entry in entries)


def test_diagnosis_survives_numbers_of_any_kind_and_json(case):
    for bad in (math.nan, math.inf, None, "x", 0.0):
        trial = every_leaf(case, lambda v, bad=bad: bad if isinstance(v, float) else v)
        json.dumps(diagnose(trial), allow_nan=False)


def test_a_removal_that_trusted_no_step_says_so(case):
    sign = "No step was taken"
    assert sign not in [entry["sign"] for entry in diagnose(case)]
    terms = {"damping": [0.25], "divergence": [1.5], "trusted": [0.0]}
    case["methods"][0]["terms"] = terms
    entry = answer(case, sign)
    assert entry["found"] is True
    assert entry["words"] == (
        "Not trusted: the step at damping 0.25 is 1.500 nats from its linearisation."
    )
    case["methods"][0]["terms"] = terms | {"trusted": [1.0], "divergence": [0.02]}
    assert answer(case, sign)["found"] is False
    assert answer(case, sign)["words"].startswith("Trusted: the step at damping 0.25 is 0.020")
