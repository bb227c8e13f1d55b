"""The dual experiments at their SMALL size, their verdicts, and the numbers of their docstrings."""

import copy
import html
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from experiments.harness.results import blocks, read_results
from experiments.harness.run import run
from experiments.influence import (
    KERNEL,
    dual_control,
    dual_influence,
    dual_timing,
    networks,
)
from famr_jax import report
from famr_jax.influence import dual, kernels
from famr_jax.types import Batch

MODULES = dual_influence, dual_control, dual_timing
EXPERIMENTS = {module.EXPERIMENT.name: module for module in MODULES}
RESULTS = {name: result for name, result in read_results().items() if name in EXPERIMENTS}


@pytest.fixture(
    scope="module",
    params=[
        dual_influence,
        pytest.param(dual_control, marks=pytest.mark.slow),
        pytest.param(dual_timing, marks=pytest.mark.slow),
    ],
)
def ran(request, tmp_path_factory):
    module, out = request.param, tmp_path_factory.mktemp("out")
    content = run(module.EXPERIMENT, replace(module.SMALL, out=out))
    return module, content, (out / "report.html").read_text()


def test_small_run_writes_its_result_and_its_report(ran):
    module, content, document = ran
    assert set(content) == {"claims", "config", "results"}
    for entry in content["claims"]:
        assert entry["source"] == KERNEL.source
        assert entry["words"] in html.unescape(document)
    assert module.headline(content)


def test_small_run_finds_the_laws(ran):
    module, content, _ = ran
    results = content["results"]
    if module is dual_influence:
        for row in results["linearised"]:
            assert row["from_primal"] < dual_influence.AGREES
            assert row["gradient"] < 1e-11
            assert row["loss"] != "squared" or row["error"]["dual"] < dual_influence.EXACT
        assert results["infinite"][0]["outputs"]["error"] < 1e-9
        assert results["infinite"][1]["gradient"] < 1e-11
    elif module is dual_control:
        for row in results["rows"]:
            assert row["linearised_error"] < 1e-5
            assert row["linearised_gradient"] < 1e-11
    else:
        for row in results["rows"]:
            assert max(row["error"].values()) < 1e-5
            assert all(each["converged"] for each in row["status"].values())


@pytest.mark.parametrize(
    ("ratios", "wanted"),
    [
        ([0.1, 0.5, 2.0], 10**1.5),
        ([2.0, 0.5, 0.1], None),
        ([2.0, 2.0, 2.0], 1.0),
        ([2.0, 0.5, 2.0], 10**1.5),
    ],
)
def test_crossover_is_where_the_ratio_stays_above_one(ratios, wanted):
    found = dual_timing.crossover([1, 10, 100], ratios)
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("name", RESULTS)
def test_prose_verdicts_and_report_follow_from_the_result(name):
    module, content = EXPERIMENTS[name], RESULTS[name]
    for line in module.headline(content):
        assert line in module.__doc__
    assert module.claims(content["results"], {}) == content["claims"]
    if module is dual_influence:
        assert all(row["gradient"] < module.TRAINED for row in content["results"]["linearised"])
    page = module.page(content)
    document = report.render(page.title, blocks(content, page), lead=page.lead)
    for entry in content["claims"]:
        assert entry["words"] in html.unescape(document)
    assert "href=" not in document.replace('href="#', "")


@pytest.mark.parametrize("gradient", [0.5, float("nan"), None])
def test_a_verdict_needs_trained_oracles(gradient):
    results = copy.deepcopy(RESULTS["dual_influence"]["results"])
    results["linearised"][-1]["gradient"] = gradient
    assert dual_influence.claims(results, {})[1]["verdict"] == "not resolved"


def test_a_verdict_needs_solved_systems():
    results = copy.deepcopy(RESULTS["dual_influence"]["results"])
    results["linearised"][-1]["status"]["dual"]["converged"] = False
    verdicts = [entry["verdict"] for entry in dual_influence.claims(results, {})]
    assert verdicts == ["not resolved"] * 2


@pytest.mark.parametrize(
    ("num_params", "converged", "wanted"),
    [(200, True, "holds"), (90, True, "not resolved"), (200, False, "not resolved")],
)
def test_speed_is_judged_where_parameters_outnumber_outputs(num_params, converged, wanted):
    status = {"primal": {"converged": converged}}
    row = {"retained_outputs": 100, "status": status}
    cross = {"num_params": [num_params], "routes": {"dense": {"ratios": [2.0], "crossover": 1.0}}}
    made = dual_timing.claims({"rows": [row], "crossings": cross}, {})
    assert made[0]["verdict"] == wanted


@pytest.mark.parametrize(
    ("change", "wanted"),
    [({}, "holds"), ({"negative_curvature": True}, "holds"), ({}, "not resolved")],
)
def test_failure_of_a_form_is_not_that_of_a_solver(change, wanted):
    status = {"converged": wanted == "holds" and not change, "negative_curvature": False} | change
    names = dual_control.HESSIAN, dual_control.AT_START
    row = {
        "l2": 1e-4,
        "num_forget": 3,
        "trained": {name: {"converged": True} for name in dual_control.TRAINED},
        "error": dict.fromkeys(names, 2.0),
        "test_output_error": dict.fromkeys(names, 2.0),
        "status": dict.fromkeys(names, status),
    }
    (made,) = dual_control.claims({"rows": [row], "num_train": 9}, {})
    assert made["verdict"] == wanted
    assert made["words"].endswith(f"no step: {'1 at l2 0.0001' if change else 'none'}.")


@pytest.mark.parametrize("seed", range(3))
def test_linearised_training_ends_at_a_minimum(seed):
    """Cross-entropy from a start that is far off, where Newton's first steps are halved."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed))
        batch = Batch(10 * jax.random.normal(keys[0], (12, 2, 2, 1)), jnp.arange(12) % 3)
        centre = networks.init(keys[1], 4, 5, 3)
        model = kernels.linearize_model(networks.network, centre)
        ridge = networks.Ridge(dual.CROSS_ENTROPY, model, 1e-4)
        assert networks.train_linearised(ridge, centre, batch)[1] < 1e-11
