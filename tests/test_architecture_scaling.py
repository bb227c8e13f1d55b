"""The comparison of architectures at its SMALL size, its verdicts on made-up numbers, its prose."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

from experiments.famr import FAMR, architecture_scaling, train_to_accuracy
from experiments.famr.architecture_scaling import EXPERIMENT, ROLES, SMALL, Flags
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import loop, statistics, unlearn
from famr_jax.cli.flags import BenchFlags, make_optimizer
from famr_jax.cli.opening import open_bench
from famr_jax.methods import famr

RESULTS = {k: r for k, r in read_results().items() if k.startswith("architecture_scaling")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    places = {"out": root / "out", "cache": root / "cache", "data_dir": root / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places))
    return flags, run(EXPERIMENT, flags)


@pytest.fixture(scope="module")
def bench(done):
    """The bench of that run, reading its models back."""
    return open_bench(replace(done[0].bench, resume=True))


@pytest.fixture(scope="module")
def division(bench):
    """The images of that run."""
    (gone,) = bench.forget_sets([SMALL.forget])
    return train_to_accuracy.divide(bench, gone, SMALL.held_out)


def originals(bench, division, target=SMALL.target):
    return train_to_accuracy.fit(bench, division, "original", target=target, members=2)


def test_training_stops_each_member_at_its_first_accurate_epoch(bench, division):
    """The weights kept are those of a run of that many epochs, at the accuracy on record."""
    bench = bench.on("mlp_16")
    reached = originals(bench, division)
    assert min(reached.epoch) > 0
    held = bench.train[division.held_out]
    for params, accuracy in zip(loop.members(reached.params), reached.accuracy, strict=True):
        logits = np.asarray(bench.model.apply(params, held.x))
        assert np.mean(logits.argmax(1) == held.labels) == pytest.approx(accuracy, abs=1e-5)
        assert accuracy >= SMALL.target
    assert originals(bench, division, target=0.01).epoch == [1, 1]


def test_a_target_that_is_not_reached_leaves_the_last_epoch_and_says_so(bench, division):
    bench = bench.on("mlp_4")
    reached, usual = originals(bench, division, target=1.0), originals(bench, division)
    assert reached.epoch == [0, 0]
    for i, epoch in enumerate(usual.epoch):
        if epoch == 0:
            assert reached.accuracy[i] == pytest.approx(usual.accuracy[i], abs=0.02)


def test_famr_starts_every_member_from_its_own_original(done, bench, division):
    flags, content = done
    bench = bench.on("mlp_16")
    row = next(row for row in content["results"]["models"] if row["model"] == "mlp_16")
    original = loop.members(originals(bench, division).params)[1]
    forget = division.sets["forget"].images
    end = unlearn.run(
        famr(bench.model.apply, lam=flags.lam, optimizer=make_optimizer("adam", flags.lr)),
        original,
        forget,
        epochs=flags.epochs,
        batch_size=flags.bench.batch_size,
        key=jax.random.split(bench.keys.unlearn, flags.seeds)[1],
    ).params
    for params, epoch in ((original, 0), (end, -1)):
        logits = np.asarray(bench.model.apply(params, forget.x), np.float64)
        assert row["curves"]["for_acc"][epoch][1] == pytest.approx(
            np.mean(logits.argmax(1) == 3), abs=0.01
        )
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropy = -(p * np.log(p)).sum(1).mean()
        assert row["curves"]["entropy"][epoch][1] == pytest.approx(entropy, rel=1e-3)


def test_no_row_is_in_two_roles(bench, division):
    labels = {name: np.asarray(part.images.labels) for name, part in division.sets.items()}
    assert len(labels["forget"]) == (~division.held_out & division.gone.mask).sum()
    assert set(labels["forget"]) == set(labels["test_forgotten"]) == {3}
    assert 3 not in labels["retain"]
    assert 3 not in labels["test"]
    assert len(labels["probed"]) == division.held_out.sum() + len(bench.test)


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
    flags = done[1]["config"]["flags"] | {"lam": 0.1, "lr": 1e-4, "epochs": 10}

    def verdicts(small, large, *, reached=True):
        for row in results["models"]:
            row["reached"] = reached
        for trend in results["trends"].values():
            trend["for_acc"] = statistics.difference(small, large)
        made = architecture_scaling.claims(results, flags)
        assert ledger.ledger({"x": {"claims": made, "config": done[1]["config"]}})
        assert {each["claim"] for each in made} == {FAMR.claims["size"]}
        return [each["verdict"] for each in made]

    low, high = [0.01, 0.02, 0.015], [0.2, 0.21, 0.19]
    assert verdicts(high, low) == ["holds"] * 2
    assert verdicts(low, high) == ["fails"] * 2
    assert verdicts(high, [0.0, 0.2, 0.4]) == ["not resolved"] * 2
    assert verdicts(high[:2], low[:2]) == ["not resolved"] * 2
    assert verdicts(high, low, reached=False) == ["not resolved"] * 2
    assert (
        "Not every model reached 60%" in (architecture_scaling.claims(results, flags)[0]["words"])
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": ("mlp_4",)}, "`size` must name two different models or more"),
        ({"size": ("mlp_4", "mlp_4")}, "`size` must name two different"),
        ({"size": (), "width": ()}, "must name models, got none"),
        ({"size": ("mlp_4", "vit_64/2")}, "`model` must be vit_V/PATCH"),
        ({"target": 1.0}, r"`target` must be in \(0, 1\)"),
        ({"held_out": 0.0}, r"`held_out` must be in \(0, 1\)"),
        ({"seeds": 1}, "`seeds` must be finite and >= 2"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1"),
        ({"forget": "random:0.05"}, "`forget` must be a class"),
        ({"lam": -1.0}, "`lam` must be"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, changes, words):
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", "data_dir": tmp_path / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places), **changes)
    with pytest.raises(ValueError, match=words):
        run(EXPERIMENT, flags)
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
        run(EXPERIMENT, Flags(bench=replace(BenchFlags(), **changes)))


def test_another_model_sees_the_images_that_the_bench_asks_for(tmp_path):
    flags = BenchFlags(image_size=12, data_dir=tmp_path / "tfds")
    other = open_bench(flags).on("mlp_4")
    assert other.model.image_shape == (12, 12, 1)
    assert other.config(np.ones(3, bool))["model"] == "mlp_4"


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in architecture_scaling.headline(RESULTS[name]):
        assert line in architecture_scaling.__doc__
