"""What features still know: the SMALL run, its pictures, verdicts on made-up rows, prose."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from experiments.knowledge import representation_forgetting as features
from experiments.knowledge import representation_picture as picture
from experiments.knowledge import representation_verdicts as verdicts
from famr_jax import evaluation
from famr_jax.evaluation.knowledge import EVERY, OF_CLASS

RESULTS = {k: r for k, r in read_results().items() if k.startswith("representation_forgetting")}
LAYERS = ("block_0", "pre_logits")


def small(root, **changes):
    bench = replace(features.SMALL.bench, out=root / "out", cache=root / "cache")
    return run(features.EXPERIMENT, replace(features.SMALL, bench=bench, **changes))


def test_every_model_is_measured_in_every_layer(tmp_path):
    content = small(tmp_path)
    (case,) = content["results"]["cases"]
    models = [row["model"] for row in case["models"]]
    assert models == ["untrained", "original", "oracle", "oracle", "trw"]
    table = evaluation.of_layers(case["layers"])
    assert len(table) == 6 * 3 + 2
    for row in case["models"]:
        assert all(math.isfinite(row[measure.name]) for measure in table)
    original, unlearned = case["models"][1], case["models"][4]
    for layer in case["layers"]:
        assert original[f"like_before_{layer}"] == pytest.approx(1)
        assert unlearned[f"like_before_{layer}"] < 1
        assert abs(case["shuffled"][layer] - 0.5) < 0.2
    # The head reads of the last block what the model says, here of the test images of the class.
    for row in case["models"]:
        assert row["reads_block_1"] == pytest.approx(row["for_acc_test"])
    assert [row["model"] for row in case["relearning"]] == models
    assert [row["model"] for row in case["pictures"]] == ["original", "trw", "oracle"]
    assert len(case["pictures"][0]["tsne_x"]) == len(case["labels"])
    assert ledger.ledger({"representation_forgetting": content})
    assert "t-SNE of pre_logits" in (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in json.dumps(content)


def test_bad_flags_are_refused(tmp_path):
    for changes, words in (
        ({"forget": ("random:0.1",)}, "`forget` must be single classes"),
        ({"forget": ("class:1,2",)}, "got 'class:1,2'"),
        ({"methods": ("nobody",)}, "`methods` must be among"),
        ({"methods": ()}, "`methods` must name at least one"),
        ({"shots": (5, 1)}, "`shots` must be ascending"),
        ({"bench": replace(features.SMALL.bench, model="mlp_8")}, "must be a Vision Transformer"),
    ):
        with pytest.raises(ValueError, match=words):
            features.check(replace(features.SMALL, **changes)) or small(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_few_are_as_many_of_each_class_and_another_draw_is_another():
    labels = np.repeat([0, 1, 2], [30, 30, 2])
    rows = features.few(labels, 4, [0, 4])
    assert np.bincount(labels[rows]).tolist() == [4, 4, 2]
    assert len(set(rows.tolist())) == 10
    assert set(rows) != set(features.few(labels, 4, [1, 4]))
    np.testing.assert_array_equal(rows, features.few(labels, 4, [0, 4]))


def test_pictures_of_equal_features_are_equal_and_of_turned_ones_in_components():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) * [9, 5, 1, 1, 1, 1]
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    first, same, turned, other = picture.projections(
        {"a": x, "b": x, "c": 7 * x @ turn + 3, "d": rng.normal(size=(40, 6))}, seed=0
    )
    columns = ("pca_x", "pca_y", "tsne_x", "tsne_y")
    assert all(first[name] == same[name] for name in columns)
    for name in ("pca_x", "pca_y"):
        np.testing.assert_allclose(first[name], turned[name], atol=1)
        assert np.abs(np.subtract(first[name], other[name])).max() > 50
    for name in columns:
        assert min(first[name]) >= 0
        assert max(first[name]) <= picture.SIDE
    drawn = picture.panel(first, "tsne", np.arange(40) % 10, 3, title="before")
    assert "class 3 marked" in drawn.alt


def test_never_is_more_than_any_number_of_steps():
    assert verdicts.median_steps([3, None, 1]) == 3
    assert verdicts.median_steps([4, 2]) == 3
    assert verdicts.median_steps([None, 2]) == math.inf
    assert verdicts.median_steps([None]) == math.inf
    assert verdicts.steps_in_words([2.0, math.inf, math.inf]) == "never"
    assert verdicts.steps_in_words([2.0, 3.5]) == "2.75"


def made_up(knows=0.5, like=0.5, *, original=0.9, steps=30, oracles=8, seeds=2, delete=None):
    """A case in which the oracles scatter by 0.01 about 0.5 and relearn in 20 to 27 steps."""
    table = evaluation.of_layers(LAYERS)
    more = ("knows", "reads", "apart")

    def model(named, value, alike):
        row = {m.name: value if m.name.startswith(more) else alike for m in table}
        return named | row | {"for_acc": 0.0, "ret_acc": 0.9}

    kept = range(seeds)
    rows = [model({"model": "original", "seed": s}, original, 0.1) for s in kept]
    for i in range(oracles):
        value = 0.5 + 0.01 * (-1) ** i
        rows.append(model({"model": "oracle", "member": i}, value, value))
    rows += [model({"model": "famr", "seed": s}, knows if s == 0 else 0.5, like) for s in kept]
    rows += [model({"model": "delete", "seed": s}, delete, like) for s in kept if delete]
    again = [{"model": "original", "seed": s, "shots": 1, "steps": [0, 0]} for s in kept]
    again.append({"model": "untrained", "seed": 0, "shots": 1, "steps": [None, 40]})
    again += [
        {"model": "oracle", "member": i, "shots": 1, "steps": [20 + i] * 2} for i in range(oracles)
    ]
    names = ("famr", "delete") if delete else ("famr",)
    again += [
        {"model": n, "seed": s, "shots": 1, "steps": [steps] * 2} for n in names for s in kept
    ]
    case = {"forget": "class:3", "class": 3, "layers": list(LAYERS), "models": rows}
    case |= {"sizes": {EVERY: 360, OF_CLASS: 36}, "relearning": again}
    dataset = {"name": "digits", "num_classes": 10}
    return {"dataset": dataset, "model": {"name": "vit"}, "oracles": oracles, "cases": [case]}


def claimed(methods, *args, **settings):
    flags = {"methods": methods, "shots": [1], "level": 0.5}
    made = verdicts.claims(made_up(*args, **settings), flags)
    return dict(zip(("knows", "reads", "apart", "like", "relearn"), made, strict=True))


def judge(*args, methods=("famr",), **settings):
    made = claimed(methods, *args, **settings)
    return {name: claim["verdict"] for name, claim in made.items()}


def judged_words(claim, **settings):
    return claimed(("famr",), **settings)[claim]["words"]


def test_verdicts_follow_from_the_rows():
    assert set(judge().values()) == {"holds"}
    assert "original 0, oracles 23.5, fresh weights never" in judged_words("relearn")
    assert "famr 2 (65.0), original 4 (90.0); oracles 50.0" in judged_words("knows", knows=0.8)
    assert set(judge(knows=0.8, like=0.2, steps=3).values()) == {"fails"}
    assert judge(knows=0.8)["relearn"] == "holds"
    assert judge(knows=0.8, methods=("famr", "delete"), delete=0.8)["knows"] == "fails"
    assert judge(knows=0.8, methods=("famr", "delete"), delete=0.5)["knows"] == "mixed"
    below = judge(knows=0.2, like=0.9, steps=90)  # below in the probe, more alike, later: no sign
    assert set(below.values()) == {"holds"}
    assert judge(original=0.5)["knows"] == "not resolved"
    assert set(judge(knows=0.8, steps=3, oracles=7).values()) == {"not resolved"}
    assert judge(steps=None)["relearn"] == "holds"


def test_as_many_outside_as_by_luck_are_no_finding():
    """Of 12 lines one may lie outside the band; of 4, two may come before each of eight oracles."""
    lines = [{"model": "famr"}] * 12
    for count, more in ((0, False), (1, False), (2, True)):
        told = [True] * count + [False] * (12 - count)
        assert verdicts._counted(lines, ["famr"], told, verdicts.TAIL) == {"famr": (count, more)}
    assert verdicts._counted(lines[:4], ["famr"], [True, True, False, False], 1 / 9) == {
        "famr": (2, False)
    }
    assert verdicts._counted(lines[:4], ["famr"], [True, True, True, False], 1 / 9)["famr"][1]


def test_every_model_is_judged_beside_its_own_original():
    case = made_up(knows=0.8)["cases"][0]
    first = next(row for row in case["models"] if row["model"] == "original")
    first["knows_block_0"] = 0.7
    lines = [li for li in verdicts.judged(case) if li["measure"] == "knows_block_0"]
    assert [(li["seed"], li["original"], li["side"]) for li in lines] == [(0, 0.7, 1), (1, 0.9, 0)]
    first["knows_block_0"] = 0.5
    lines = [li for li in verdicts.judged(case) if li["measure"] == "knows_block_0"]
    assert [li["original_side"] for li in lines] == [0, 1]


@pytest.mark.parametrize("name", RESULTS)
def test_prose_is_what_the_code_makes_of_the_numbers(name):
    for line in verdicts.headline(RESULTS[name]):
        assert line in features.__doc__
