"""Federated unlearning at its SMALL size, its verdicts on made-up tables, and its prose."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import federated as benchmark
from experiments.federated import PAPERS, federated_unlearning, judging
from experiments.federated.federated_unlearning import EXPERIMENT, SMALL, Flags
from experiments.federated.federation import partition, subsample, triggered, yeom
from experiments.federated.recovery import METHODS, NATURAL
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import data
from famr_jax.evaluation import Part, View
from famr_jax.types import Batch

RESULTS = {k: r for k, r in read_results().items() if k.startswith("federated_unlearning")}
CASES = 30


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    places = {"out": root / "out", "cache": root / "cache", "data_dir": root / "tfds"}
    flags = replace(SMALL, bench=replace(SMALL.bench, **places))
    return flags, run(EXPERIMENT, flags)


def test_the_whole_run_is_recorded(done):
    flags, content = done
    iid, backdoor = content["results"]["splits"]
    for split in (iid, backdoor):
        models = {line["model"] for line in split["table"]}
        assert models == {"original", "oracle", "null", judging.AS_LONG, *METHODS}
        assert all(len(line["values"]) == 1 for line in split["table"])
        assert split["forgotten"] == [40]
        for way in split["paths"]:
            assert way["round"][0] == 0
            before = judging.column(split, "original", "", "for_acc")[0]
            assert way["for_acc"][0] == pytest.approx(before, abs=1e-3)
            after = judging.column(split, way["model"], "unlearned", "for_acc")[0]
            assert way["for_acc"][1] == pytest.approx(after, abs=1e-3)
            assert len(way["round"]) <= flags.most_rounds + 2
    assert judging.column(iid, "original", "", "backdoor") is None
    planted, oracle = (
        judging.column(backdoor, m, "", "backdoor")[0] for m in ("original", "oracle")
    )
    assert planted > 0.9 > oracle
    assert {claim["verdict"] for claim in content["claims"]} == {
        "not resolved",
        "not testable here",
    }
    assert str(flags.bench.out.parent) not in json.dumps(content)
    page = (flags.bench.out / "report.html").read_text()
    assert "PUF-Regular" in page


def test_natural_is_one_ordinary_round_of_the_others(done):
    (iid, _) = done[1]["results"]["splits"]
    gone = judging.column(iid, "PUF-Special", "unlearned", "for_acc")[0]
    kept = judging.column(iid, NATURAL, "unlearned", "for_acc")[0]
    assert gone < kept


def table(values):
    """A split of made-up columns: `{(model, stage, measure): value or values}`."""
    lines = [
        {
            "model": model,
            "stage": stage,
            "measure": measure,
            "values": list(np.broadcast_to(value, CASES) + np.linspace(-1e-3, 1e-3, CASES)),
        }
        for (model, stage, measure), value in values.items()
    ]
    return {"forgotten": [10] * CASES, "table": lines}


def made_up(split, *, after=0.1, back=0.6, kl=0.1, rounds=4.0, as_long=0.8, left=0.0):
    values = {
        ("original", "", "for_acc"): 0.9,
        ("original", "", "kl_forget"): 0.5,
        ("original", "", "backdoor"): 0.95,
        ("oracle", "", "for_acc"): 0.6,
        ("oracle", "", "test_acc"): 0.6,
        ("oracle", "", "backdoor"): 0.01,
        ("oracle", "retrained", "rounds"): 20.0,
        ("null", "", "for_acc"): 0.02,
    }
    for model in ("PUF-Special", "PUF-Regular", NATURAL):
        values |= {
            (model, "unlearned", "for_acc"): after,
            (model, "unlearned", "test_acc"): after,
            (model, "retrained", "for_acc"): back,
            (model, "retrained", "kl_forget"): kl,
            (model, "retrained", "rounds"): rounds,
            (model, "retrained", "backdoor"): left,
        }
    values |= {
        (judging.AS_LONG, "retrained", "for_acc"): as_long,
        (judging.AS_LONG, "retrained", "kl_forget"): 0.3,
        (judging.AS_LONG, "retrained", "backdoor"): 0.9,
    }
    return table(values) | {"split": split}


def verdicts(*splits):
    flags = {"most_rounds": 30, "rounds": 40, "clients": 10, "seeds": 3}
    dataset = {"name": "digits", "num_classes": 10, "num_train": 100}
    results = {"splits": list(splits), "dataset": dataset, "model": {"name": "mlp_8"}}
    found = judging.claims(results, flags)
    names = {sentence: name for paper in PAPERS for name, sentence in paper.claims.items()}
    return {names[claim["claim"]]: claim["verdict"] for claim in found}


@pytest.mark.parametrize(
    ("changes", "claim", "verdict"),
    [
        ({}, "one_round", "holds"),
        ({"rounds": 25.0}, "one_round", "fails"),
        ({"back": 0.9}, "one_round", "fails"),
        ({"kl": 0.9}, "one_round", "fails"),
        ({}, "over_forgets", "holds"),
        ({"after": 0.6}, "over_forgets", "fails"),
        ({}, "more_than_recovery", "holds"),
        ({"as_long": 0.6}, "more_than_recovery", "mixed"),
        ({"as_long": 0.6, "kl": 0.4}, "more_than_recovery", "fails"),
        ({}, "medical", "not testable here"),
    ],
)
def test_verdicts(changes, claim, verdict):
    assert verdicts(made_up("iid", **changes))[claim] == verdict


def test_a_split_that_differs_makes_it_mixed():
    assert verdicts(made_up("iid"), made_up("dirichlet:0.1", rounds=25.0))["one_round"] == "mixed"


@pytest.mark.parametrize(
    ("left", "verdict"), [(0.01, "holds"), (0.5, "mixed"), (0.95, "fails"), (0.0, "holds")]
)
def test_verdict_of_the_backdoor(left, verdict):
    found = verdicts(made_up("backdoor", left=left))
    assert found == {"medical": "not testable here", "backdoor": verdict}


def test_cases_that_do_not_recover_count_as_the_most_rounds():
    split = made_up("iid")
    line = next(
        each
        for each in split["table"]
        if (each["model"], each["measure"]) == ("PUF-Special", "rounds")
    )
    line["values"][:10] = [None] * 10
    found = judging.rounds(split, "PUF-Special", "retrained", 31)
    assert (found == 31).sum() == 10


def test_yeoms_attack_counts_losses_up_to_the_mean_of_what_is_retained():
    labels = np.zeros(4, np.int32)
    batch = Batch(np.zeros((4, 1)), labels)
    sets = {
        "forget": Part(batch, np.array([True, True, False, False])),
        "retain": Part(batch, np.array([False, False, True, True])),
    }
    view = View(None, None, sets)
    losses = np.array([0.1, 2.0, 0.5, 1.5])
    right = -np.log(np.expm1(losses))  # log(1 + exp(-z)) is the loss
    view._logits = {id(batch): np.stack([right, np.zeros(4)], axis=1)}
    assert yeom(view, []) == 0.5


def test_a_trigger_marks_and_relabels_only_its_rows():
    batch = Batch(jnp.zeros((4, 8, 8, 1)), jnp.full(4, 5, jnp.int32))
    marked = triggered(batch, np.array([1, 3]))
    assert marked.labels.tolist() == [5, 0, 5, 0]
    assert np.asarray(marked.x).sum(axis=(1, 2, 3)).tolist() == [0, 4, 0, 4]


def test_a_subsample_has_so_many_of_each_class():
    digits = data.load("digits")
    some = subsample(digits, 7, 0)
    assert np.bincount(some.train.labels).tolist() == [7] * 10
    assert subsample(digits, None, 0) is digits


def test_partitions_by_word():
    labels = np.arange(200) % 10
    same = zip(partition("iid", labels, 4, 1), partition("backdoor", labels, 4, 1), strict=True)
    assert all(np.array_equal(a, b) for a, b in same)
    skewed = partition("dirichlet:0.1", labels, 4, 1)
    assert len({len(rows) for rows in skewed}) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"splits": ()}, "`splits` must name"),
        ({"splits": ("iid", "iid")}, "`splits` must name"),
        ({"splits": ("dirichlet",)}, "`splits` must be iid"),
        ({"splits": ("dirichlet:0",)}, "`alpha`"),
        ({"clients": 1}, "`clients` must be >= 2"),
        ({"forgotten": 11}, "`forgotten` must be <= 10"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        federated_unlearning.check(replace(Flags(), **changes))


@pytest.mark.parametrize("name", RESULTS)
def test_docstring_is_the_result(name):
    for line in federated_unlearning.headline(RESULTS[name]):
        assert line in federated_unlearning.__doc__


def test_rounds_of_many_clients_are_timed(tmp_path):
    out = tmp_path / "federated.json"
    benchmark.run(replace(benchmark.SMALL, out=out))
    content = json.loads(out.read_text())
    for found in content["results"].values():
        assert found["difference"] < benchmark.TOLERANCE
        assert all(clocks["wall_ms"]["best"] > 0 for clocks in found["round"].values())
    recorded = read_results()["benchmark-federated"]
    for line in benchmark.headline(recorded):
        assert line in benchmark.__doc__
