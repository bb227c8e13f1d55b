"""FAMR's end point against its linearisation, and its way there by eigenvalue."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from experiments.famr import FAMR, anchor_limits, eigen_directions
from experiments.famr.anchor_limits import EXPERIMENT, SMALL
from experiments.famr.eigen_directions import Dynamics
from experiments.harness import run as harness
from experiments.harness.results import read_results

VALUES = np.array([-3.0, -0.01, 0.2, 5.0, 40.0])


def quadratic(seed=0):
    """Eigenvectors as rows, and a gradient."""
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(5, 5)))[0], rng.normal(size=5)


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_dynamics_are_those_of_descent_on_a_quadratic(weight):
    vectors, slope = quadratic()
    matrix = vectors.T @ np.diag(VALUES) @ vectors
    dynamics, step = Dynamics(lr=1e-3, weight=weight, lam=0.1, num_steps=30), np.zeros(5)
    for _ in range(30):
        step -= 1e-3 * (weight * (matrix @ step + slope) + 0.1 * step)
    along = dynamics.share(VALUES) * dynamics.target(VALUES, vectors @ slope)
    np.testing.assert_allclose(vectors @ step, along, rtol=1e-10)
    found = eigen_directions.groups(VALUES, vectors, slope, step, 2 * step, dynamics, step)
    np.testing.assert_allclose([row["covered"] for row in found[:-1]], 0.5)
    np.testing.assert_allclose([row["over"] for row in found[:-1]], 1.0)
    for row in found[:-1]:
        # -0.01 + lam is positive in the mean form, but its group has -3 too.
        assert ("predicted" in row) == (row["kind"] == "positive")
        if "predicted" in row:
            np.testing.assert_allclose(row["of_linearised"], row["predicted"])
    assert [row["count"] for row in found] == [1, 1, 1, 2, 0]


def test_order_is_the_slope_above_rounding():
    rows = [
        {"lam": lam, "converged": True, "identity": 1e-14, "error": max(lam**-2.0, 1e-13)}
        for lam in (1e1, 1e3, 1e5, 1e7)
    ]
    assert anchor_limits.order(rows, "error") == pytest.approx(-2)
    assert anchor_limits.order(rows[:1], "error") is None


def test_headline_of_laws_without_an_order():
    """Few or small lams leave none to fit."""
    row = {"identity": 1e-12}
    law = {"model": "m", "forget": "f", "orders": {"linearised": None}, "rows": [row]}
    assert "orders: none" in anchor_limits.headline({"results": {"laws": [law], "cases": []}})[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its folder and its JSON."""
    root = tmp_path_factory.mktemp("limits")
    places = {name: root / name for name in ("out", "cache", "data_dir")}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places))
    return root, harness.run(EXPERIMENT, flags)


def test_small_run_obeys_the_laws(done):
    (law,) = done[1]["results"]["laws"]
    assert all(row["converged"] and row["identity"] < 1e-10 for row in law["rows"])
    assert law["orders"]["linearised"] == pytest.approx(-2, abs=0.1)
    assert law["orders"]["gradient"] == pytest.approx(-1, abs=0.1)


def test_small_run_splits_every_step_completely(done):
    results = done[1]["results"]
    (case,) = results["cases"]
    for run in case["runs"].values():
        assert sum(row["count"] for row in run["groups"]) == results["model"]["num_params"]
        for share in ("of_gradient", "of_way"):
            assert sum(row[share] for row in run["groups"]) == pytest.approx(1, abs=1e-3)
        # The whole is the mean of its parts, weighted by the way.
        parts = [row["covered"] * row["of_way"] for row in run["groups"]]
        assert sum(parts) == pytest.approx(run["covered"], abs=1e-3)
        assert run["stationary_converged"]
    for row in case["runs"]["sgd, mean"]["groups"]:
        assert row["over"] == pytest.approx(1, abs=0.2)


def test_small_run_is_judged_and_reported(done):
    root, content = done
    said = [FAMR.claims[name] for name in ("stationary", "convex")]
    assert [entry["claim"] for entry in content["claims"]] == said
    assert [entry["verdict"] for entry in content["claims"]] == ["fails", "fails"]
    assert str(root) not in json.dumps(content)
    page = (root / "out" / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 6


def judged(left, least):
    run = {"grad_at_end": left, "grad_at_anchor": 1.0, "covered": 0.5}
    case = {"forget": "class:3", "num_forget": 10, "lambda_min": least, "lambda_max": 9.0}
    case |= {"gradient_below": 0.5, "converged": True, "runs": {"sgd, mean": run}}
    results = {"model": {"name": "m"}, "dataset": {"name": "d"}, "cases": [case]}
    flags = {"lam": 0.1, "lr": 1e-4, "epochs": 10, "eigenvectors": 3}
    return [entry["verdict"] for entry in anchor_limits.claims(results, flags)]


def test_claims_are_judged_by_the_gradient_left_and_the_lowest_eigenvalue():
    assert judged(0.001, 0.0) == ["holds", "holds"]
    assert judged(0.5, -0.05) == ["fails", "mixed"]
    assert judged(0.5, -3.0) == ["fails", "fails"]


BAD = [
    ({"lams": (1.0,)}, "lams"),
    ({"lams": (10.0, 1.0)}, "lams"),
    ({"lams": (0.0, 1.0)}, "lams"),
    ({"lam": -0.1}, "lam"),
    ({"epochs": 0}, "epochs"),
    ({"eigenvectors": 0}, "eigenvectors"),
    ({"lr": 0.0}, "lr"),
]


@pytest.mark.parametrize(("changes", "names"), BAD)
def test_bad_input_is_refused_before_anything_runs(changes, names, monkeypatch):
    monkeypatch.setattr(harness, "open_bench", partial(pytest.fail, "ran"))
    with pytest.raises(ValueError, match=names):
        harness.run(EXPERIMENT, replace(SMALL, **changes))


def test_prose_and_claims_are_what_the_result_says():
    result = read_results()["anchor_limits"]
    assert all(line in anchor_limits.__doc__ for line in anchor_limits.headline(result))
    assert anchor_limits.claims(result["results"], result["config"]["flags"]) == result["claims"]
