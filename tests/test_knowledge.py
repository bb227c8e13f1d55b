"""Shallow forgetting at its SMALL size, what stays frozen, verdicts on made-up rows, prose."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from experiments.knowledge import shallow_forgetting as shallow
from experiments.knowledge import shallow_page
from famr_jax.cli.measured import at_chance
from famr_jax.types import Batch

RESULTS = {k: r for k, r in read_results().items() if k.startswith("shallow_forgetting")}
TREE = {
    "embed": {"kernel": jnp.ones(2)},
    "block_2": {"kernel": jnp.ones(3)},
    "block_10": {"kernel": jnp.ones(3), "bias": jnp.ones(1)},
    "head": {"kernel": jnp.ones(4)},
}


def small(root, **changes):
    bench = replace(shallow.SMALL.bench, out=root / "out", cache=root / "cache")
    return run(shallow.EXPERIMENT, replace(shallow.SMALL, bench=bench, **changes))


def test_parts_are_the_last_layer_the_last_block_and_all():
    assert shallow.changed(TREE, "last layer", "head") == {"head"}
    assert shallow.changed(TREE, "last block", "head") == {"head", "block_10"}
    assert shallow.changed(TREE, "all", "head") == set(TREE)


def test_an_optimizer_of_some_parameters_leaves_the_others_alone():
    for optimizer in (optax.sgd(0.1), optax.adam(0.1)):
        held = shallow.only(optimizer, {"head", "block_10"})
        grads = jax.tree.map(lambda leaf: 0.3 * leaf, TREE)
        steps, _ = held.update(grads, held.init(TREE), TREE)
        wanted, _ = optimizer.update(grads, optimizer.init(TREE), TREE)
        for name in TREE:
            for leaf, same in zip(*map(jax.tree.leaves, (steps[name], wanted[name])), strict=True):
                kept = name in ("head", "block_10")
                np.testing.assert_allclose(leaf, same if kept else 0 * same, rtol=1e-6)


def test_every_part_is_measured_by_outputs_and_by_probes_of_every_block(tmp_path):
    content = small(tmp_path)
    (results,) = content["results"]["cases"]
    assert [row["model"] for row in results["models"]] == [
        "original", "oracle", "oracle", *shallow.PARTS
    ]  # fmt: skip
    original, head = results["models"][0], results["models"][3]
    probes = [name for name in original if name.startswith("probe_")]
    assert probes[-1] == "probe_pre_logits"
    assert len(probes) >= 3
    for name in probes:  # features of a model whose last layer alone has changed are the original's
        assert head[name] == original[name]
    assert any(results["models"][5][name] != original[name] for name in (*probes, "ret_acc"))
    assert {row["model"] for row in results["tried"]} == set(shallow.PARTS)
    assert ledger.ledger({"shallow_forgetting": content})
    assert "Probe of block_0" in (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in json.dumps(content)


def test_probes_come_in_the_order_of_the_model():
    """Of eleven blocks, where block_10 is sorted before block_2."""
    names = [f"block_{i}" for i in range(11)]
    seen = []

    def features(params, x):
        return dict.fromkeys(names, x[:, 0, 0])

    def evaluator(*args, measures, **more):
        seen.extend(measure.name for measure in measures)
        raise KeyboardInterrupt

    model = SimpleNamespace(features=features)
    test = Batch(jnp.zeros((2, 1, 1, 1)), jnp.zeros(2, int))
    bench = SimpleNamespace(model=model, test=test, evaluator=evaluator, oracles=lambda gone: [])
    bench.dataset = SimpleNamespace(image_shape=(1, 1, 1))
    with pytest.raises(KeyboardInterrupt):
        shallow._case(shallow.SMALL, bench, SimpleNamespace(classes=(3,)), {})
    assert [name for name in seen if name.startswith("probe_")] == [f"probe_{n}" for n in names]


def test_chance_is_what_guessing_gives():
    assert at_chance(0.1, 100) == pytest.approx(0.1 + 2 * 0.03)
    assert at_chance(0.1, 10**6) == pytest.approx(0.12)


def test_bad_flags_are_refused(tmp_path):
    for changes, words in (
        ({"forget": ("random:0.1",)}, "`forget` must be classes"),
        ({"lrs": ()}, "`lrs` must be ascending"),
        ({"method": "none"}, "`method` must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            small(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def made_up(head, every, *, reached=True, oracles=8):
    """Results in which these measures lie outside the band."""
    titles = ("For-Acc", "Entropy", "Probe of block_0")
    names = {"last layer": head, "last block": every, "all": every}
    lines = [
        {
            "model": part,
            "title": title,
            "verdict": shallow_page.OUTSIDE if title in out else "inside",
        }
        for part, out in names.items()
        for title in titles
    ]
    models = [{"model": part, "lr": 0.1, "for_acc": 0.0, "ret_acc": 0.9} for part in names]
    models += [{"model": model} for model in ("original", "oracle")]
    models = [row | {"probe_pre_logits": 0.9} for row in models]
    models[0]["for_acc"] = 0.0 if reached else 0.7
    dataset = {"name": "digits", "num_classes": 10}
    results = {"dataset": dataset, "model": {"name": "vit"}, "oracles": oracles}
    case = {"forget": "class:3", "at_chance": 0.15, "models": models, "verdicts": lines}
    return results | {"cases": [case]}


def verdicts(*args, **settings):
    made = shallow_page.claims(made_up(*args, **settings), {"method": "famr"})
    return [claim["verdict"] for claim in made]


def test_verdicts_follow_from_the_rows():
    probe = "Probe of block_0"
    assert verdicts([probe], []) == ["holds", "holds"]
    assert verdicts([probe, "Entropy"], []) == ["holds", "mixed"]
    assert verdicts(["Entropy"], ["Entropy"]) == ["holds", "fails"]
    assert verdicts(["Entropy"], []) == ["holds", "fails"]
    assert verdicts([], [], reached=False, oracles=3) == ["fails", "not resolved"]


@pytest.mark.parametrize("name", RESULTS)
def test_prose_is_what_the_code_makes_of_the_numbers(name):
    for line in shallow_page.headline(RESULTS[name]):
        assert line in shallow.__doc__
