"""The experiments on Boltzmann machines at their SMALL sizes, verdicts on made-up rows, prose."""

import json
import re
from dataclasses import replace
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks import rbm as benchmark
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from experiments.rbm import diluted_rbm, diluted_verdicts, forgetting, machines, pruned_unlearning
from experiments.rbm.sparse import density, keep_zeros, prune
from famr_jax.data import Dataset, Split

NAMES = ("diluted_rbm", "forgetting", "pruned_unlearning")
RESULTS = {k: r for k, r in read_results().items() if k.partition("-")[0] in NAMES}


def small(module, root, **changes):
    bench = replace(module.SMALL.bench, out=root / "out", cache=root / "cache")
    return run(module.EXPERIMENT, replace(module.SMALL, bench=bench, **changes))


@pytest.fixture(scope="module")
def diluted(tmp_path_factory):
    """One SMALL run: where it went, and its JSON."""
    root = tmp_path_factory.mktemp("diluted")
    return root, small(diluted_rbm, root)


def test_every_kind_of_machine_is_measured_at_every_dilution(diluted):
    results = diluted[1]["results"]
    kinds = list(dict.fromkeys(row["kind"] for row in results["rows"]))
    assert kinds == [
        "sparse",
        "sparse, twice",
        "cut, random",
        "retrained, random",
        "cut, magnitude",
        "retrained, magnitude",
    ]
    assert len(results["rows"]) == 2 * 6 * 2
    assert all(len(row["score"]) == 2 for row in results["rows"])
    for row in results["rows"]:
        if row["dilution"] == 0:
            assert row["coupling_kept"] == pytest.approx([1, 1])
        if row["dilution"] == 0 and row["kind"].startswith("cut"):
            dense = diluted_verdicts.row_of(results, row["size"], "sparse", 0.0)
            assert row["log_likelihood"] == dense["log_likelihood"]
    assert set(results["references"]) == {"independent", "images"}


def test_its_page_shows_samples_and_its_claims_are_in_the_ledger(diluted):
    root, content = diluted
    page = (root / "out" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("ten samples at dilution") == 6 * 2 * 10
    assert [made["verdict"] for made in content["claims"][1:]] == ["not resolved"] * 3
    assert ledger.ledger({"diluted_rbm": content})
    assert str(root) not in json.dumps(content)


def test_binary_images_are_black_or_white_and_as_many_as_asked():
    x = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    split = Split(x, np.arange(4, dtype=np.int32) % 2)
    data = Dataset("x", split, split, ("a", "b"), False)
    made = machines.binary(replace(diluted_rbm.SMALL, examples=3), data)
    assert (len(made.train), len(made.test)) == (3, 4)
    np.testing.assert_array_equal(made.test.x, np.where(x > 127, 255, 0))


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (diluted_rbm, {"dilutions": (0.2, 0.5)}, "`dilutions` must begin with 0"),
        (diluted_rbm, {"dilutions": (0.0, 1.0)}, r"`dilutions` must be in \[0, 1\)"),
        (diluted_rbm, {"sizes": (3, 2)}, "`sizes` must be ascending"),
        (diluted_rbm, {"lr": 0.0}, "`lr` must be finite and > 0"),
        (forgetting, {"forget": ("random:0.1",)}, "`forget` must be classes"),
        (forgetting, {"hidden": 21}, r"`hidden` must be in \[1, 21\)"),
        (pruned_unlearning, {"sparsities": (0.5, 0.8)}, "`sparsities` must begin with 0"),
        (pruned_unlearning, {"lrs": ()}, "`lrs` must be ascending"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, module, changes, words):
    with pytest.raises(ValueError, match=words):
        small(module, tmp_path, **changes)
    assert not (tmp_path / "out").exists()


SCORES = {0.0: 9.0, 0.5: 9.0, 0.8: 8.9, 0.9: 1.0}
"""A classifier score that falls in one step between 0.8 and 0.9; independent pixels have 1."""


def made_up(*, seeds=3, slow=False, sparse=0.0, repaired=0.0, sizes=(8, 64)):
    """Rows of machines; `sparse` and `repaired` are nats that they gain on independent pixels."""
    rng = np.random.default_rng(0)
    rows = []
    for size in sizes:
        for kind in ("sparse", "sparse, twice", *(f"{a}, {b}" for a in ("cut", "retrained")
                                                  for b in diluted_verdicts.CUTS)):  # fmt: skip
            for dilution, score in SCORES.items():
                if slow:
                    score = 9.0 - 8.0 * dilution / 0.9
                nats = -20.0
                if kind.startswith("cut") and dilution:
                    nats = -24.0
                if kind.startswith("sparse") and dilution:
                    nats += sparse
                if kind.startswith("retrained") and dilution:
                    nats += repaired
                wobble = 0.01 * rng.normal(size=seeds)
                width = 1.0 if size == 64 else 0.5
                row = {"size": size, "kind": kind, "dilution": dilution}
                row["score"] = list(1 + (score - 1) * width ** (dilution > 0.7) + wobble)
                row["log_likelihood"] = list(nats + wobble * np.arange(seeds))
                row["covariance"] = row["aats"] = [0.01] * seeds
                rows.append(row)
    floor = {"score": 1.0, "covariance": 0.05, "aats": 0.9, "log_likelihood": -25.0}
    return {
        "dataset": {"name": "digits", "num_classes": 10},
        "model": {"name": "mlp"},
        "num_visible": 64,
        "updates": 900,
        "references": {"independent": floor, "images": floor},
        "rows": rows,
    }


def verdicts(results):
    return [made["verdict"] for made in diluted_rbm.diluted_verdicts.claims(results, {})]


def test_verdicts_follow_from_the_rows():
    assert verdicts(made_up(sizes=(64,), repaired=-1.0)) == ["holds", "holds", "holds", "holds"]
    assert verdicts(made_up(repaired=-1.0))[2:] == ["holds", "holds"]
    assert verdicts(made_up(sizes=(64,), sparse=-4.0))[0] == "mixed"
    assert verdicts(made_up(sizes=(64,), repaired=1.0))[1] == "fails"
    assert verdicts(made_up(sizes=(64,), repaired=1.0))[3] == "fails"
    assert verdicts(made_up(sizes=(64,), slow=True))[2] == "fails"
    assert verdicts(made_up(seeds=2))[1:] == ["not resolved"] * 3


def test_a_curve_crosses_a_level_where_it_falls_through_it():
    assert diluted_verdicts.crossing([0.0, 0.5, 1.0], [1.0, 1.0, 0.0], 0.5) == 0.75
    assert diluted_verdicts.crossing([0.0, 1.0], [1.0, 0.6], 0.5) is None


def test_a_digit_is_forgotten_beside_oracles_of_which_one_only_chooses(tmp_path):
    content = small(forgetting, tmp_path)
    (case,) = content["results"]["cases"]
    assert [row["model"] for row in case["references"]] == ["original", "oracle", "oracle"]
    assert [row["model"] for row in case["chosen"]] == [*forgetting.METHODS, forgetting.TUNED]
    for row in case["chosen"]:
        same = [each for each in case["grid"] if each["model"] == row["model"]]
        assert row["chosen_by"] == min(each["chosen_by"] for each in same)
    assert len(case["grid"]) == 2 * 2 + 1
    kl = next(line for line in case["verdicts"] if line["measure"] == "kl")
    assert {"original", "oracle", "band", "null", "n", "verdict"} <= set(kl)
    assert [made["verdict"] for made in content["claims"]] == ["not resolved"] * 2
    assert ledger.ledger({"forgetting": content})
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_pruned_networks_stay_pruned_and_are_judged_by_oracles_as_sparse(tmp_path):
    content = small(pruned_unlearning, tmp_path)
    cells = content["results"]["cells"]
    assert [cell["sparsity"] for cell in cells] == [0.0, 0.5]
    assert cells[0]["density"] == 1
    assert cells[1]["density"] == pytest.approx(0.5, abs=0.01)
    for cell in cells:
        assert len(cell["oracles"]) == 2
        models = [row["model"] for row in cell["rows"]]
        names = ("original", "famr", "gradient ascent", "fine-tuning")
        assert models == [name for name in names for _ in range(2)]
        assert all(row["average_gap"] >= 0 for row in cell["rows"])
        one, other = ([row[n] for n in pruned_unlearning.GAP_OF] for row in cell["oracles"])
        apart = np.mean(np.abs(np.subtract(one, other)))
        np.testing.assert_allclose(cell["average_gap_null"], apart, atol=1e-5)
    assert [made["verdict"] for made in content["claims"]] == ["not resolved"]
    assert ledger.ledger({"pruned_unlearning": content})
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 5 + 2


def test_pruning_cuts_the_smallest_entries_of_matrices_alone(params):
    cut = prune(params, 0.3)
    before, after = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree) if leaf.ndim > 1])
        for tree in (params, cut)
    )
    assert (after == 0).sum() == round(0.3 * before.size)
    assert abs(before[after == 0]).max() < abs(before[after != 0]).min()
    for leaf, same in zip(jax.tree.leaves(params), jax.tree.leaves(cut), strict=True):
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, same)
    assert density(prune(params, 0.0)) == 1


def test_an_optimizer_that_keeps_zeros_is_the_same_on_all_other_entries():
    params = {"kernel": jnp.asarray([[0.0, 1.0], [2.0, 0.0]]), "bias": jnp.zeros(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    for optimizer in (optax.sgd(0.1), optax.adam(0.1)):
        held = keep_zeros(optimizer)
        steps, _ = held.update(grads, held.init(params), params)
        wanted, _ = optimizer.update(grads, optimizer.init(params), params)
        kept = params["kernel"] != 0
        np.testing.assert_array_equal(steps["kernel"], wanted["kernel"] * kept)
        np.testing.assert_array_equal(steps["bias"], wanted["bias"])


def test_benchmark_compares_and_times_both(tmp_path):
    out = tmp_path / "rbm.json"
    benchmark.run(replace(benchmark.SMALL, out=out, data_dir=tmp_path))
    results = json.loads(out.read_text())["results"]
    found = results["likelihood"]["50"]
    assert results["num_train"] == 1400
    assert found["ours"]["mean"] == pytest.approx(found["scikit-learn"]["mean"], abs=1.0)
    assert all(ratio > 0 for row in results["times"] for ratio in row["ratio"].values())


@pytest.mark.parametrize("name", RESULTS)
def test_committed_claims_and_prose_are_what_the_code_makes_of_the_numbers(name):
    content = RESULTS[name]
    module = import_module(f"experiments.rbm.{name.partition('-')[0]}")
    made = module.EXPERIMENT.claims(content["results"], content["config"]["flags"])
    assert made == content["claims"]
    if "-" not in name:
        for line in module.EXPERIMENT.headline(content):
            assert line in module.__doc__


def test_docstring_of_the_benchmark_is_its_result():
    results = read_results()["benchmark-rbm"]["results"]
    for line in benchmark.headline(results):
        assert line in benchmark.__doc__
    found = results["likelihood"].values()
    assert all(np.prod(each["difference"]["interval"]) < 0 for each in found)
    assert not re.search("HEADLINE|MINUTES|SETTING", benchmark.__doc__)
