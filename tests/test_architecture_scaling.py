"""The comparison of architectures at its SMALL size, its verdicts on made-up numbers, its prose."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

from experiments import architecture_scaling, common, equal_accuracy, ledger, workbench
from experiments.architecture_scaling import LARGER, ROLES, SMALL, Flags, Study
from famr_jax import statistics, unlearn
from famr_jax.methods import famr

RESULTS = {k: r for k, r in ledger.read_results().items() if k.startswith("architecture_scaling")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    places = {"out": root / "out", "cache": root / "cache", "data_dir": root / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places))
    architecture_scaling.run(flags)
    return flags, json.loads((root / "out" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def study(done):
    """The study of that run, reading its models back."""
    flags = done[0]
    bench = workbench.open_workbench(replace(flags.bench, resume=True))
    (case,) = workbench.parse_cases([flags.forget], bench.dataset, seed=0)
    return Study(flags, bench, case)


def test_training_stops_each_member_at_its_first_accurate_epoch(study):
    """The weights kept are those of a run of that many epochs, at the accuracy on record."""
    bench = study.bench.on("mlp_16")
    reached = study.train(bench, "original")
    assert min(reached.epoch) > 0
    held = bench.train[np.flatnonzero(study.held_out)]
    for params, accuracy in zip(common.members(reached.params), reached.accuracy, strict=True):
        logits = np.asarray(bench.model.apply(params, held.x))
        assert np.mean(logits.argmax(1) == held.labels) == pytest.approx(accuracy, abs=1e-5)
        assert accuracy >= study.flags.target
    earlier = {**_settings(study, bench), "target": 0.01}
    first = equal_accuracy.fit(bench, "again", **earlier)
    assert first.epoch == [1, 1]


def _settings(study, bench):
    init_keys, keys = (jax.random.split(bench.key(use), 2) for use in ("init", "train"))
    rows = {"mask": ~study.held_out, "held_out": study.held_out}
    return {**rows, "init_keys": init_keys, "keys": keys, "target": study.flags.target}


def test_a_target_that_is_not_reached_leaves_the_last_epoch_and_says_so(study):
    bench = study.bench.on("mlp_4")
    reached = equal_accuracy.fit(
        bench, "out of reach", **{**_settings(study, bench), "target": 1.0}
    )
    assert reached.epoch == [0, 0]
    usual = study.train(bench, "original")
    never = [i for i, epoch in enumerate(usual.epoch) if epoch == 0]
    for i in never:
        assert reached.accuracy[i] == pytest.approx(usual.accuracy[i], abs=0.02)


def test_famr_starts_every_member_from_its_own_original(done, study):
    flags, content = done
    bench = study.bench.on("mlp_16")
    row = next(row for row in content["results"]["models"] if row["model"] == "mlp_16")
    originals = study.train(bench, "original").params
    key = jax.random.split(bench.key("unlearn"), flags.seeds)[1]
    optimizer = workbench.make_optimizer("adam", flags.lr)
    sizes = {"epochs": flags.epochs, "batch_size": flags.bench.batch_size}
    end = unlearn.run(
        famr(bench.model.apply, lam=flags.lam, optimizer=optimizer),
        common.members(originals)[1], study.forget, **sizes, key=key,
    ).params  # fmt: skip
    for params, epoch in ((common.members(originals)[1], 0), (end, -1)):
        logits = np.asarray(bench.model.apply(params, study.forget.x), np.float64)
        assert row["curves"]["for_acc"][epoch][1] == pytest.approx(
            np.mean(logits.argmax(1) == 3), abs=0.01
        )
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropy = -(p * np.log(p)).sum(1).mean()
        assert row["curves"]["entropy"][epoch][1] == pytest.approx(entropy, rel=1e-3)


def test_no_row_is_in_two_roles(study):
    used = ~study.held_out
    assert len(study.forget) == (used & study.case.mask).sum()
    assert set(np.asarray(study.forget.labels)) == {3}
    assert 3 not in np.asarray(study.sets["ret_acc"].labels)
    assert len(study.probed) == study.held_out.sum() + len(study.bench.test)
    assert study.forgotten.sum() == (np.asarray(study.probed.labels) == 3).sum()


def test_the_json_has_every_model_once_with_all_roles(done):
    flags, content = done
    results = content["results"]
    assert [row["model"] for row in results["models"]] == ["mlp_4", "mlp_16"]
    assert set(results["axes"]) == {"size", "width"}
    for row in results["models"]:
        assert set(row["ends"]) == set(row["probes"]) == set(ROLES)
        assert len(row["curves"]["for_acc"]) == flags.epochs + 1
        assert row["ends"]["famr"]["for_acc"]["values"] == row["curves"]["for_acc"][-1]
        assert row["ends"]["oracle"]["for_acc"]["mean"] == 0
        assert row["reached"] is all(min(found["epoch"]) > 0 for found in row["training"].values())
    assert content["claims"] == []
    assert str(flags.bench.out.parent) not in json.dumps(content)
    page = (flags.bench.out / "report.html").read_text()
    assert page.count("<svg") == 8
    assert "http" not in page.replace("http://www.w3.org", "")


def test_difference_of_samples_is_welchs():
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=5), 3 * rng.normal(size=5) + 1
    found = statistics.difference(small.tolist(), large.tolist())
    wanted = scipy.stats.ttest_ind(large, small, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found["interval"], [wanted.low, wanted.high])
    assert found["mean"] == pytest.approx(large.mean() - small.mean())
    assert statistics.difference([0.0] * 3, [0.0] * 3)["interval"] == [0, 0]
    assert statistics.difference([0.0], [1.0])["interval"] is None


def test_claims_are_judged(done):
    results = copy.deepcopy(done[1]["results"])
    flags = replace(done[0], lam=0.1, lr=1e-4, epochs=10)

    def verdicts(small, large, *, reached=True):
        for row in results["models"]:
            row["reached"] = reached
        for trend in results["trends"].values():
            trend["for_acc"] = statistics.difference(small, large)
        made = architecture_scaling.claims(results, flags, "data")
        assert ledger.ledger({"x": {"claims": made, "config": {"command": "c"}}})
        assert {each["claim"] for each in made} == {LARGER}
        return [each["verdict"] for each in made]

    low, high = [0.01, 0.02, 0.015], [0.2, 0.21, 0.19]
    assert verdicts(high, low) == ["holds"] * 2
    assert verdicts(low, high) == ["fails"] * 2
    assert verdicts(high, [0.0, 0.2, 0.4]) == ["not resolved"] * 2
    assert verdicts(high[:2], low[:2]) == ["not resolved"] * 2
    assert verdicts(high, low, reached=False) == ["not resolved"] * 2
    assert (
        "Not every model reached 60%"
        in (architecture_scaling.claims(results, flags, "data")[0]["words"])
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": ("mlp_4",)}, "`size` must name two different models or more"),
        ({"size": ("mlp_4", "mlp_4")}, "`size` must name two different"),
        ({"size": (), "width": ()}, "must name models, got none"),
        ({"size": ("mlp_4", "vit_64/2")}, "`model` must be vit_V/PATCH"),
        ({"target": 1.0}, "`target` must be between 0 and 1"),
        ({"held_out": 0.0}, "`held_out` must be between 0 and 1"),
        ({"seeds": 1}, "`seeds` must be >= 2"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1"),
        ({"forget": "random:0.05"}, "`forget` must be a class"),
        ({"lam": -1.0}, "`lam` must be"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, changes, words):
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", "data_dir": tmp_path / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places), **changes)
    with pytest.raises(ValueError, match=words):
        architecture_scaling.run(flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "mlp_4"}, "`model` must be left to the axes, got 'mlp_4'"),
        ({"weights": "a.npz"}, "`weights` must not be given, got 'a.npz'"),
        ({"original": Path("a")}, "`original` must not be given, got 'a'"),
    ],
)
def test_weights_of_one_model_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        architecture_scaling.run(Flags(bench=workbench.Flags(**changes)))


def test_another_model_sees_the_images_that_the_bench_asks_for(tmp_path):
    flags = workbench.Flags(image_size=12, data_dir=tmp_path / "tfds")
    other = workbench.open_workbench(flags).on("mlp_4")
    assert other.model.image_shape == (12, 12, 1)
    assert other.config(np.ones(3, bool))["model"] == "mlp_4"


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in architecture_scaling.headline(RESULTS[name]):
        assert line in architecture_scaling.__doc__
