"""The ascent experiment at its SMALL size, its verdicts on made-up numbers, and its prose."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.ascent import ascent_fails, random_set
from experiments.ascent.ascent_fails import EXPERIMENT, SMALL
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import report
from famr_jax.files import plain

RESULTS = {k: r for k, r in read_results().items() if k.startswith("ascent_fails")}
DATASET = {"name": "digits", "num_classes": 10}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run of the random part: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    bench = replace(SMALL.bench, out=root / "out", cache=root / "cache")
    chosen = replace(SMALL, parts=("random",), bench=bench)
    return chosen, run(EXPERIMENT, chosen)


def test_every_method_is_followed_from_the_original(done):
    chosen, content = done
    result = content["results"]["random"]
    paths = result["paths"]
    methods = ["gradient ascent", "descent-ascent", "rescaled descent-ascent", "fine-tuning"]
    assert [path["method"] for path in paths] == methods
    for path in paths:
        assert path["finite"] is True
        for name, value in result["original"].items():
            assert path[name][0] == pytest.approx(value, abs=1e-5)
            assert len(path[name]) == chosen.epochs + 1
    assert paths[2]["forget_weight"] == pytest.approx(
        result["num_forget"] / result["num_retain"], rel=1e-5
    )
    assert len(result["oracles"]) == chosen.bench.oracles
    phases = content["config"]["seconds"]["phases"]
    assert {"original", "oracles random-0.1", "gradient ascent 0.1"} <= set(phases)
    assert str(chosen.bench.out.parent) not in json.dumps(content)


def test_only_the_claim_that_was_tested_is_made_and_two_oracles_resolve_nothing(done):
    (made,) = done[1]["claims"]
    assert made["verdict"] == "not resolved"
    assert "2 oracles" in made["words"]
    assert "theory" not in done[1]["results"]


def test_the_report_is_self_contained(done):
    page = (done[0].bench.out / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 8
    assert "http" not in page.replace("http://www.w3.org", "")


def test_theory_alone_needs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(random_set, "measure", lambda *_, **__: pytest.fail("trained"))
    bench = replace(SMALL.bench, out=tmp_path / "out", cache=tmp_path / "cache")
    content = run(EXPERIMENT, replace(SMALL, parts=("theory",), bench=bench))
    assert [made["verdict"] for made in content["claims"]] == ["holds"] * 3
    assert ledger.ledger({"ascent_fails": content})
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": ()}, "`parts` must name"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1"),
        ({"ascent_epochs": 0}, "`ascent_epochs` must be an integer >= 1"),
        ({"ascent_lrs": (-1.0,)}, "`ascent_lrs` must be finite and > 0"),
        ({"descent_ascent_lrs": (0.0,)}, "`descent_ascent_lrs` must be finite and > 0"),
        ({"share": 1.5}, r"`share` must be in \(0, 1\)"),
        ({"share": 0.9999}, "must leave something on both sides"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, changes, words):
    bench = replace(SMALL.bench, out=tmp_path / "out", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=words):
        run(EXPERIMENT, replace(SMALL, bench=bench, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sizes", "eps"), [((72,), 0.160), ((143,), 0.114), ((1000,), 0.0429), ((1000, 1000), 0.0607)]
)
def test_hoeffdings_bound(sizes, eps):
    assert random_set.hoeffding(*sizes) == pytest.approx(eps, abs=5e-4)


def test_hoeffdings_bound_covers_what_it_promises():
    rng = np.random.default_rng(0)
    accuracies = [rng.binomial(n, 0.7, size=20_000) / n for n in (200, 300)]
    apart = np.abs(accuracies[0] - accuracies[1]) >= random_set.hoeffding(200, 300)
    assert apart.mean() < 0.05


def made_up(*, oracle=0.60, original=0.90, lowest=0.3, distance=0.5, count=8):
    """A result with oracles at test accuracy 0.6 and one path, do-nothing at distance 0.2."""
    numbers = {"ret_acc": 0.9, "test_acc": 0.6, "for_tv": 0.2, "test_tv": 0.2}
    path = {name: [value, value] for name, value in numbers.items()}
    path |= {"for_acc": [original, lowest], "for_tv": [0.2, distance], "test_tv": [0.2, 0.4]}
    result = {
        "bench": {"dataset": DATASET, "model": {"name": "a model"}},
        "num_forget": 1000,
        "num_retain": 4000,
        "num_test": 1000,
        "eps": {"forget": 0.043, "difference": 0.061},
        "original": numbers | {"for_acc": original},
        "oracles": [numbers | {"for_acc": oracle}] * count,
        "paths": [{"method": "gradient ascent", "lr": 0.1, "finite": True, **path}],
    }
    return result | {"summary": random_set.summarise(result)}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "holds"),
        ({"distance": 0.1}, "mixed"),
        ({"oracle": 0.7}, "fails"),
        ({"original": 0.62}, "not resolved"),
        ({"lowest": 0.58}, "not resolved"),
        ({"count": 7}, "not resolved"),
    ],
)
def test_verdicts_on_random_sets(changes, verdict):
    (made,) = ascent_fails.claims({"random": made_up(**changes)}, {})
    assert made["verdict"] == verdict


def test_the_control_counts_nowhere():
    result = made_up()
    result["paths"].append(result["paths"][0] | {"method": random_set.CONTROL})
    assert random_set.summarise(result) == result["summary"]


def test_a_path_ends_at_the_epoch_that_is_not_finite(done):
    chosen, content = done
    result = content["results"]["random"]
    path = result["paths"][0]
    cut = {k: v[:1] if isinstance(v, list) else v for k, v in path.items()} | {"finite": False}
    result = result | {"paths": [cut, *result["paths"][1:]]}
    result["summary"] = random_set.summarise(result)
    assert result["summary"]["points"] == 2 * chosen.epochs
    page = ascent_fails.page(content | {"results": {"random": result}})
    assert "†" in report.render(page.title, page.blocks)


@pytest.mark.parametrize("name", RESULTS)
def test_committed_claims_are_what_the_code_makes_of_the_committed_numbers(name):
    content = RESULTS[name]
    results = content["results"]
    assert ascent_fails.claims(results, content["config"]["flags"]) == content["claims"]
    if "random" in results:
        again = plain(random_set.summarise(results["random"]))
        for part in ("points", "too_low", "too_low_nearer"):
            assert again[part] == results["random"]["summary"][part]


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in ascent_fails.headline(RESULTS[name]):
        assert line in ascent_fails.__doc__
