"""The KLoM experiment at its SMALL size, its verdicts on made-up numbers, and its prose."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.ascent import klom, klom_points
from experiments.ascent.klom import EXPERIMENT, SMALL
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import attacks

RESULTS = [result for name, result in read_results().items() if name.partition("-")[0] == "klom"]


def test_it_runs_and_goes_on_from_what_is_kept(tmp_path):
    bench = replace(SMALL.bench, out=tmp_path / "out", cache=tmp_path / "cache")
    content = run(EXPERIMENT, replace(SMALL, bench=bench))
    results = content["results"]
    assert [row["method"] for row in results["rows"]] == [
        "gradient ascent", "descent-ascent", "SCRUB", "fine-tuning",
    ]  # fmt: skip
    for row in results["rows"]:
        assert row["finite"]
        assert row["forget_low"] <= row["forget_high"]
        assert row["forget_klom"] > 0
    before = results["sets"][0]["nothing"]["forget"]["klom"]
    assert any(row["forget_klom"] != before for row in results["rows"])
    (claim,) = content["claims"]
    assert claim["verdict"] == "not resolved"  # three models of each kind
    assert "N = 3" in claim["words"]
    kept = sorted((tmp_path / "cache").iterdir())
    assert run(EXPERIMENT, replace(SMALL, bench=bench))["results"] == results
    assert sorted((tmp_path / "cache").iterdir()) == kept


def row(method, forget, retain=(-1, 1), test=(-1, 1), **more):
    ends = {"forget": forget, "retain": retain, "test": test}
    found = {"share": 0.1, "method": method, "finite": True, "forget_klom": 2.0} | more
    for part, (low, high) in ends.items():
        found |= {f"{part}_low": low, f"{part}_high": high}
    return found


@pytest.mark.parametrize(
    ("rows", "verdict", "near", "alone"),
    [
        ([row("SCRUB", (-1, 0.1)), row("gradient ascent", (0.5, 1))], "holds", 0, 0),
        ([row("SCRUB", (-1, -0.1))], "fails", 1, 1),
        ([row("SCRUB", (-1, -0.1), retain=(0.1, 1))], "holds", 0, 1),
        ([row("fine-tuning", (-1, -0.1))], "holds", 0, 0),
        ([{"share": 0.1, "method": "SCRUB", "finite": False}], "holds", 0, 0),
    ],
)
def test_the_claim_fails_only_where_a_setting_is_nearer_and_nowhere_farther(
    rows, verdict, near, alone
):
    sets = [{"share": 0.1, "null": 0.5, "null_most": 2.9, "nothing": {"forget": {"klom": 3.0}}}]
    results = {"rows": rows, "sets": sets, "model": {"name": "m"}}
    results["dataset"] = {"name": "d", "num_classes": 3}
    (claim,) = klom.claims(results, {"members": 100})
    assert claim["verdict"] == verdict
    assert klom.counts(results)[1:] == (near, alone)
    assert f"{near} are nearer" in claim["words"]
    assert klom.claims(results, {"members": 99})[0]["verdict"] == "not resolved"
    sets[0]["null_most"] = 3.1  # doing nothing is as good as retraining
    assert klom.claims(results, {"members": 100})[0]["verdict"] == "not resolved"


def test_the_null_is_of_these_models_and_does_not_see_which_are_oracles():
    generator = np.random.default_rng(1)
    before, oracles = generator.standard_t(2, size=(2, 40, 50))
    found = klom.nulls(before, oracles)
    assert found["null_gaussian"] == np.percentile(attacks.klom_null(40, 40), 95)
    assert abs(found["null"] - klom_points.kloms(before, oracles)["klom"]) < 0.5
    assert found["null"] < found["null_most"]
    apart = klom.nulls(before, oracles + 9)
    assert klom_points.kloms(before, oracles + 9)["klom"] > apart["null_most"]


def test_bootstrap_samples_are_paired():
    generator = np.random.default_rng(0)
    oracles = generator.normal(size=(60, 80))
    before = generator.normal(2, 1, size=(60, 80))
    drawn = [attacks.klom_resampled(before - shift, oracles) for shift in (0, 0, 1.8)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[2] < drawn[0]).all()
    assert len(set(drawn[0])) > 1
    found = klom_points.kloms(before, oracles)
    assert found["klom"] == np.percentile(attacks.klom(before, oracles), 95)
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("content", RESULTS)
def test_docstring_is_the_result(content):
    for line in klom.headline(content):
        assert line in klom.__doc__
