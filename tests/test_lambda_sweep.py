"""The sweep over lam at its SMALL size, its front and verdicts on made-up numbers, its prose."""

import copy
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.famr import FAMR, OURS, lambda_sweep
from experiments.famr.lambda_sweep import EXPERIMENT, NAMES, SMALL, Flags
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import metrics, report, statistics, unlearn
from famr_jax.cli.flags import make_optimizer
from famr_jax.cli.opening import open_bench
from famr_jax.methods import famr

RESULTS = {k: r for k, r in read_results().items() if k.startswith("lambda_sweep")}
LIMIT, TRADE = FAMR.claims["limit"], OURS.claims["lam_trades"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    places = {"out": root / "out", "cache": root / "cache", "data_dir": root / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places))
    return flags, run(EXPERIMENT, flags)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_front_is_that_of_brute_force(points):
    def beaten(p):
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    assert statistics.front(points) == [i for i, p in enumerate(points) if not beaten(p)]


def test_interval_of_a_mean_is_students():
    found = statistics.spread([1.0, 2.0, 3.0])
    assert (found["mean"], found["sd"], found["n"]) == (2.0, 1.0, 3)
    half = 4.30265273 / 3**0.5
    np.testing.assert_allclose(found["interval"], [2 - half, 2 + half])
    assert statistics.sign(found) == 0
    assert statistics.sign(statistics.spread([1.0, 1.1, 1.2])) == 1
    assert statistics.sign(statistics.spread([-1.0, -1.1, -1.2])) == -1
    assert statistics.sign(statistics.spread([1.0, 1.0])) == 0
    assert statistics.spread([1.0])["interval"] is None


def test_a_member_of_the_sweep_is_a_run_of_its_own_lam(done):
    flags, content = done
    bench = open_bench(replace(flags.bench, resume=True))
    (gone,) = bench.forget_sets(flags.forget)
    original, (result,) = bench.original().params, content["results"]["cases"]
    forget = bench.train[gone.mask]
    optimizer = make_optimizer("adam", flags.lr)
    (row,) = (r for r in result["rows"] if (r["lam"], r["epoch"]) == (1.0, 3))
    end = unlearn.run(
        famr(bench.model.apply, lam=1.0, optimizer=optimizer),
        original,
        forget,
        epochs=flags.looks[-1],
        batch_size=flags.bench.batch_size,
        key=jax.random.split(bench.keys.unlearn_again, flags.orders)[1],
    ).params
    logits = np.asarray(bench.model.apply(end, forget.x), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(1).mean()
    assert row["entropy"]["values"][1] == pytest.approx(entropy, rel=1e-3)
    squares = [
        np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (end, original)), strict=True)
    ]
    assert row["distance"]["values"][1] == pytest.approx(np.sqrt(sum(squares)), rel=1e-3)
    oracles = [np.asarray(bench.model.apply(p, forget.x)) for p in bench.oracles(gone)]
    kl = np.mean([metrics.kl(oracle, logits.astype(np.float32)) for oracle in oracles])
    assert row["kl_forget"]["values"][1] == pytest.approx(kl, rel=1e-2, abs=1e-4)
    assert row["for_acc"]["values"][1] == pytest.approx((logits.argmax(1) == 3).mean(), abs=1e-5)


def test_the_json_has_a_row_a_lam_and_epoch_and_every_reference(done):
    flags, content = done
    results = content["results"]
    (case,) = results["cases"]
    wanted = [(lam, epoch) for epoch in flags.looks for lam in flags.lams]
    assert [(row["lam"], row["epoch"]) for row in case["rows"]] == wanted
    assert {row["for_acc"]["n"] for row in case["rows"]} == {flags.orders}
    assert set(case["oracles"]) == set(NAMES) - {"distance"}
    assert case["oracles"]["ret_acc"]["n"] == flags.bench.oracles
    far = [row["distance"]["mean"] for row in case["rows"] if row["epoch"] == flags.looks[-1]]
    assert far == sorted(far, reverse=True)
    assert [row["lam"] for row in case["stationary"]] == list(flags.lams)
    assert results["judged_at"] == flags.looks[-1]
    assert str(flags.bench.out.parent) not in json.dumps(content)
    assert {"original", "oracles class-3", "sweep class-3"} <= set(
        content["config"]["seconds"]["phases"]
    )


def test_the_trade_is_not_judged_away_from_the_papers_settings(done):
    assert [made["claim"] for made in done[1]["claims"]] == [LIMIT]
    assert ledger.ledger({"lambda_sweep": done[1]})


def test_the_report_is_self_contained_and_does_without_parts(done):
    page = (done[0].bench.out / "report.html").read_text()
    assert page.count("<svg") == 8
    assert "http" not in page.replace("http://www.w3.org", "")
    content = copy.deepcopy(done[1])
    (case,) = content["results"]["cases"]
    case |= {"stationary": [], "front": [], "original_on_front": True}
    for found in case["oracles"].values():
        found |= {"band": None, "null": None}
    page = report.render("Parts", lambda_sweep.page(content).blocks)
    assert "ringed below): the original." in page
    assert page.count("<svg") == 6


def test_claims_are_judged(done):
    results = copy.deepcopy(done[1]["results"]) | {"judged_at": 10}
    (case,), flags = results["cases"], done[1]["config"]["flags"] | {"lr": 1e-4}
    for row in case["rows"]:
        row["epoch"] = {1: 3, 3: 10}[row["epoch"]]

    def verdicts():
        made = lambda_sweep.claims(results, flags)
        assert [each["claim"] for each in made] == [TRADE, LIMIT]
        return [each["verdict"] for each in made]

    def sweep(kept, forgot, divergences, *, n=8, converged=True):
        for name, values in (("ret_acc", kept), ("for_acc", forgot)):
            case["effect"][name] = statistics.spread(values)
        for row, value in zip(case["stationary"], divergences, strict=True):
            row |= {"kl_forget": value, "kl_test": 0.1, "converged": converged}
        for name in ("kl_forget", "kl_test"):
            case["original"][name] = 1.0
            case["oracles"][name] |= {"n": n, "band": [0.05, 0.2], "mean": 0.1}

    up, down, none = [0.02, 0.021, 0.022], [-0.02, -0.021, -0.022], [-0.01, 0.0, 0.01]
    sweep(up, up, [0.1, 0.5, 0.9])
    assert verdicts() == ["holds", "holds"]
    sweep(up, none, [0.3, 0.5, 0.9])
    assert verdicts() == ["mixed", "mixed"]
    sweep(none, none, [0.1, 0.5, 0.9], n=3)
    assert verdicts() == ["not resolved", "not resolved"]
    sweep(down, up, [1.1, 0.5, 0.9])
    assert verdicts() == ["fails", "fails"]
    sweep(up[:2], up[:2], [0.9, 0.5, 0.3])
    assert verdicts() == ["not resolved", "fails"]
    sweep(up, up, [0.19, 0.1, 0.1])
    assert verdicts() == ["holds", "mixed"]
    case["stationary"][0]["kl_test"] = 1.5
    assert verdicts() == ["holds", "fails"]
    # Accuracies of 2000 images that coincide are not known to more than one of them.
    case |= {"ret_acc_n": 2000, "num_forget": 100}
    sweep([0.0455] * 3, up, [0.1, 0.5, 0.9])
    words = lambda_sweep.claims(results, flags)[0]["words"]
    assert "Ret-Acc +4.55 points (+4.50 to +4.60, N=2000) and For-Acc +2.10 points" in words
    sweep([0.0004] * 3, up, [0.1, 0.5, 0.9])
    assert verdicts() == ["mixed", "holds"]
    sweep(up, up, [0.1, 0.5, 0.9], converged=False)
    assert verdicts() == ["holds", "not resolved"]
    assert "not all points were reached" in lambda_sweep.claims(results, flags)[1]["words"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lams": (0.1,)}, "`lams` must be ascending, at least 2"),
        ({"lams": (1.0, 0.1)}, "`lams` must be ascending"),
        ({"lams": (0.0, 0.1)}, "`lams` must be finite and > 0"),
        ({"looks": ()}, "`looks` must be ascending, at least 1"),
        ({"looks": (0, 2)}, "`looks` must be an integer >= 1"),
        ({"orders": 0}, "`orders` must be an integer >= 1"),
        ({"stationary_steps": -1}, "`stationary_steps` must be finite and >= 0"),
        ({"optimizer": "lion"}, "`optimizer` must be one of"),
        ({"forget": ("class:99",)}, "class"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, changes, words):
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", "data_dir": tmp_path / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places), **changes)
    with pytest.raises(ValueError, match=words):
        run(EXPERIMENT, flags)
    assert not (tmp_path / "out").exists()


def test_the_papers_epochs_are_judged_where_they_are_looked_at():
    assert lambda_sweep.judged_at(Flags(looks=(1, 10, 20))) == 10
    assert lambda_sweep.judged_at(Flags(looks=(1, 20))) == 20


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in lambda_sweep.headline(RESULTS[name]):
        assert line in lambda_sweep.__doc__
