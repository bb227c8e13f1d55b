"""What is written in prose is what the committed results say."""

from importlib import import_module

import pytest

from experiments import class_forgetting
from experiments.famr import main_job
from experiments.harness import ledger
from experiments.harness.results import read_results
from famr_jax.cli.diagnosis import diagnose
from famr_jax.files import plain

RESULTS = read_results()
FORGETTING = {name: r for name, r in RESULTS.items() if name.startswith("class_forgetting")}


def test_ledger_is_not_stale():
    assert ledger.LEDGER.read_text() == ledger.ledger(RESULTS)


def test_ledger_refuses_unknown_claims_and_verdicts():
    entry = {"claim": "no paper says so", "source": "nowhere", "verdict": "holds", "words": ""}
    config = {"experiment": "class_forgetting", "command": "python -m experiments.x"}
    result = {"claims": [entry], "config": config}
    with pytest.raises(ValueError, match="must be in the ledger"):
        ledger.ledger({"x": result})
    paper = ledger.papers()[0]
    sentence = next(iter(paper.claims.values()))
    entry |= {"claim": sentence, "source": paper.source, "verdict": "perhaps"}
    with pytest.raises(ValueError, match="verdict"):
        ledger.ledger({"x": result})


@pytest.mark.parametrize("name", [name for name in RESULTS if RESULTS[name].get("claims")])
def test_recorded_claims_are_what_todays_experiments_say_of_the_recorded_numbers(name):
    claims, config, results = (RESULTS[name][part] for part in ("claims", "config", "results"))
    if name in FORGETTING:
        assert claims == main_job.claims(results)
    else:
        module = import_module(ledger.module_of(config["experiment"]))
        assert claims == module.EXPERIMENT.claims(results, config["flags"])


@pytest.mark.parametrize("name", FORGETTING)
def test_recorded_diagnoses_are_what_todays_code_says_of_the_recorded_numbers(name):
    for case in FORGETTING[name]["results"]["cases"]:
        for method in case["methods"]:
            assert plain(diagnose(case, method["name"])) == method["diagnosis"]


@pytest.mark.parametrize("name", RESULTS)
def test_results_have_the_common_top_level(name):
    result = RESULTS[name]
    assert {"config", "results"} <= set(result) <= {"claims", "config", "results"}
    assert {"flags", "environment", "seconds"} <= set(result["config"])
    assert {"run", "compile"} <= set(result["config"]["seconds"])


@pytest.mark.parametrize("name", FORGETTING)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in class_forgetting.headline(RESULTS[name]):
        assert line in class_forgetting.__doc__
