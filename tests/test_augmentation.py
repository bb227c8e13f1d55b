"""Augmentation and unlearning: SMALL, verdicts on made-up gaps, refusals."""

import json
from dataclasses import replace

import pytest

from experiments.comparison import AUGMENTATION, OWN, augmentation, augmentation_page
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run

RESULTS = {k: r for k, r in read_results().items() if k.startswith("augmentation")}


def test_small_runs_and_says_what_each_augmentation_leaves(tmp_path):
    bench = replace(augmentation.SMALL.bench, out=tmp_path / "out", cache=tmp_path / "cache")
    content = run(augmentation.EXPERIMENT, replace(augmentation.SMALL, bench=bench))
    none, trivial = content["results"]["cells"]
    assert [none["augmentation"], trivial["augmentation"]] == ["none", "trivial"]
    for cell in (none, trivial):
        assert [row["model"] for row in cell["rows"]] == [
            *["nothing"] * 2, *["delete"] * 2, *["random_labels"] * 2
        ]  # fmt: skip
        assert len(cell["oracles"]) == 2
        assert all(0 <= row["average_gap"] <= 1 for row in cell["rows"])
    assert none["oracles"] != trivial["oracles"]
    assert none["rows"][0] != trivial["rows"][0]
    assert ledger.ledger({"augmentation": content})
    assert "Average gap, random:0.1" in (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in json.dumps(content)


def judged(gaps, oracles=8):
    """Verdicts where `gaps` are those of nothing and of a method by augmentation."""
    cells = [
        {"forget": "random:0.1", "augmentation": word, "null": 0.01}
        | {
            "rows": [
                {"model": model, "seed": i, "average_gap": value + 0.001 * i}
                for model, value in zip(("nothing", "finetune"), values, strict=True)
                for i in range(3)
            ]
        }
        for word, values in gaps.items()
    ]
    results = {
        "dataset": {"name": "cifar100", "num_classes": 10},
        "model": {"name": "vit_mu/8"},
        "oracles": oracles,
        "cells": cells,
    }
    found = {entry["claim"]: entry for entry in augmentation_page.claims(results, {})}
    papers = (AUGMENTATION.claims["augmentation"], OWN.claims["share"])
    return [found[claim] for claim in papers] if found else []


def test_a_smaller_gap_of_a_smaller_reference_is_no_help():
    gap, share = judged({"none": (0.4, 0.2), "crop_flip": (0.3, 0.15), "trivial": (0.1, 0.09)})
    assert [gap["verdict"], share["verdict"]] == ["holds", "fails"]
    assert "by 55 % at best" in gap["words"]
    assert "falls for every original in 0 of 2 comparisons and rises in 2" in share["words"]


def test_help_is_a_smaller_share_of_what_doing_nothing_leaves():
    gap, share = judged({"none": (0.4, 0.4), "trivial": (0.3, 0.1)})
    assert [gap["verdict"], share["verdict"]] == ["holds", "holds"]
    few = judged({"none": (0.4, 0.4), "trivial": (0.3, 0.1)}, oracles=7)
    assert {entry["verdict"] for entry in few} == {"not resolved"}
    assert judged({"trivial": (0.3, 0.1)}) == []


def test_bad_flags_are_refused():
    with pytest.raises(ValueError, match="`methods` must be among finetune"):
        augmentation.check(replace(augmentation.SMALL, methods=("scrub",)))
    bench = replace(augmentation.SMALL.bench, augment="trivial")
    with pytest.raises(ValueError, match="`augment` must be left out, use `augmentations`"):
        augmentation.check(replace(augmentation.SMALL, bench=bench))


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_prose_is_what_the_results_say(name):
    content = RESULTS[name]
    flags = content["config"]["flags"]
    assert content["claims"] == augmentation_page.claims(content["results"], flags)
    for line in augmentation_page.headline(content):
        assert line in augmentation.__doc__
