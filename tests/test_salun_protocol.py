"""SalUn's protocol: SMALL, its training by hand, verdicts on made-up gaps, refusals."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison import salun_page, salun_protocol, salun_training
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax.methods import BY_NAME
from famr_jax.types import Batch, Pair

RESULTS = {k: r for k, r in read_results().items() if k.startswith("salun_protocol")}


def test_small_runs_and_has_every_column(tmp_path):
    bench = replace(salun_protocol.SMALL.bench, out=tmp_path / "out", cache=tmp_path / "cache")
    content = run(salun_protocol.EXPERIMENT, replace(salun_protocol.SMALL, bench=bench))
    results = content["results"]
    (cell,) = results["cells"]
    assert salun_page.models(cell) == ["nothing", "GA", "SalUn"]
    assert (len(cell["oracles"]), len(cell["rows"]), len(cell["tried"])) == (2, 6, 4)
    mean = {name: np.mean([o[name] for o in cell["oracles"]]) for name in salun_page.COLUMNS}
    for row in cell["rows"]:
        gap = np.mean([abs(row[name] - mean[name]) for name in mean])
        np.testing.assert_allclose(row["average_gap"], gap, atol=1e-5)
    for name in ("GA", "SalUn"):
        tried = [row for row in cell["tried"] if row["model"] == name]
        best = min(tried, key=lambda row: row["gap"])["scale"]
        assert {r["scale"] for r in cell["rows"] if r["model"] == name} == {best}
    # A tenth of each class is held out, and neither forgotten nor retained.
    rest = results["dataset"]["num_train"]
    assert cell["num_forget"] + cell["num_retain"] == rest
    assert abs(results["num_held_out"] / (results["num_held_out"] + rest) - 0.1) < 0.01
    # A retrained model knows nothing of a class: all of it is missed.
    assert all(oracle["ua"] == 1 for oracle in cell["oracles"])
    assert ledger.ledger({"salun_protocol": content})
    assert "MIA" in (tmp_path / "out" / "report.html").read_text()
    assert len(salun_page.headline(content)) == 5
    assert str(tmp_path) not in json.dumps(content)


def test_training_is_sgd_with_momentum_decay_and_two_drops():
    lr, params = 0.1, jnp.array([1.0, -2.0])
    optimizer, velocity = salun_training.training(lr, 182), jnp.zeros(2)
    state, ours, by_hand = optimizer.init(params), params, params
    for step in range(140):
        gradient = jnp.sin(ours + step)
        updates, state = optimizer.update(gradient, state, ours)
        ours = ours + updates
        rate = lr if step < 91 else lr / 10 if step < 136 else lr / 100
        velocity = 0.9 * velocity + jnp.sin(by_hand + step) + 5e-4 * by_hand
        by_hand = by_hand - rate * velocity
    np.testing.assert_allclose(ours, by_hand, rtol=2e-5)


def test_every_setting_builds_its_method_and_a_step_moves_it():
    def apply_fn(params, x):
        return x.reshape(len(x), -1) @ params["head"]["kernel"] + params["head"]["bias"]

    kernel = jax.random.normal(jax.random.key(0), (4, 3))
    params = {"head": {"kernel": kernel, "bias": jnp.zeros(3)}}
    x = jax.random.uniform(jax.random.key(1), (6, 2, 2, 1), minval=-1)
    batch = Batch(x, jnp.array([0, 1, 2, 0, 1, 2]))
    for name, setting in salun_training.SETTINGS.items():
        method = salun_training.made(name, apply_fn, 0.1, weight=0.1, num_steps=5)
        assert setting.epochs in (5, 10)
        state = method.init(params, batch, batch, jax.random.key(2))
        moved, _ = method.step(state, Pair(batch, batch), jax.random.key(3))
        assert not np.allclose(moved.params["head"]["kernel"], kernel), name
    assert {"finetune", "random_labels", "gradient_ascent", "salun"} <= set(BY_NAME)


def judged(gaps, oracles=8, seeds=3):
    """The verdict where `gaps` are the average gaps of the methods, cell by cell."""
    cells = [
        {
            "forget": f"random:0.{i + 1}",
            "null": 0.01,
            "n": dict.fromkeys(salun_page.COLUMNS, 100),
            "oracles": [dict.fromkeys(salun_page.COLUMNS, 0.5)] * oracles,
            "rows": [
                {"model": name, "seed": seed, "average_gap": value + 0.01 * seed}
                for name, value in {"nothing": 0.5, **cell}.items()
                for seed in range(seeds)
            ],
        }
        for i, cell in enumerate(gaps)
    ]
    return salun_page.claims(judged_results(cells), {})[0]


def judged_results(cells):
    data = {"dataset": {"name": "cifar10", "num_classes": 10}, "model": {"name": "resnet18"}}
    return data | {"cells": cells}


def test_the_smallest_gap_must_be_so_on_every_original():
    best = {"FT": 0.3, "GA": 0.2, "SalUn": 0.1}
    worse = {"FT": 0.3, "GA": 0.05, "SalUn": 0.1}
    assert judged([best])["verdict"] == "holds"
    assert judged([worse])["verdict"] == "fails"
    assert "larger than 1 (GA)" in judged([worse])["words"]
    assert judged([best, worse])["verdict"] == "mixed"
    assert judged([{"FT": 0.3, "GA": 0.1, "SalUn": 0.1}])["verdict"] == "not resolved"
    assert judged([best], oracles=7)["verdict"] == "not resolved"
    assert judged([best], seeds=2)["verdict"] == "not resolved"


def test_what_was_reported_stands_beside_its_own_forget_set():
    cell = {"forget": "random:0.1", "num_forget": 9, "null": None, "retraining": 2.0}
    row = dict.fromkeys(salun_page.COLUMNS, 0.5)
    cell |= {"oracles": [row], "rows": [row | {"model": "nothing", "average_gap": 0.1}]}
    shown = (
        salun_page.page({"results": judged_results([cell]) | {"settings": {"GA": {"lr": 1e-4}}}})
        .blocks[0]
        .blocks[1]
        .rows
    )
    assert [each["model"] for each in shown][-1] == "SalUn on CIFAR-10, reported"
    assert shown[-1]["MIA"] == "16.36"
    assert shown[0]["seconds"] == 2.0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (replace(salun_protocol.SMALL, methods=("IU",)), "`methods` must be among FT"),
        (
            replace(salun_protocol.SMALL, bench=replace(salun_protocol.SMALL.bench, ema=0.9)),
            "`ema` must be left out, got 0.9",
        ),
    ],
)
def test_refusals(flags, words):
    with pytest.raises(ValueError, match=words):
        run(salun_protocol.EXPERIMENT, flags)


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in salun_page.headline(RESULTS[name]):
        assert line in salun_protocol.__doc__
