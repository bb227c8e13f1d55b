"""The experiment on filters at its SMALL size, verdicts on made-up rows, prose and ledger."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.filters import compared, output_filters, outputs_page, tables
from experiments.filters.compared import Labels, Outputs
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax import filters

RESULTS = {k: r for k, r in read_results().items() if k.startswith("output_filters")}


def small(root, **changes):
    bench = replace(output_filters.SMALL.bench, out=root / "out", cache=root / "cache")
    flags = replace(output_filters.SMALL, bench=bench, **changes)
    return run(output_filters.EXPERIMENT, flags)


def test_every_class_has_a_row_for_every_filter_beside_original_and_floor(tmp_path):
    content = small(tmp_path)
    results, flags = content["results"], content["config"]["flags"]
    wanted = ["original", "oracle", *compared.names(flags["betas"])]
    for classifier in ("mlp_8", "trees on wine"):
        for removed in range(3):
            rows = [r for r in results["rows"] if r["classifier"] == classifier]
            mine = [row for row in rows if row["removed"] == removed]
            assert [row["model"] for row in mine] == wanted
            for row in mine:
                count = 2  # of seeds, and of oracles
                assert len(row["kl_forget"]) == len(row["acc_retain"]) == count
                assert min(row["kl_forget"] + row["kl_retain"]) >= 0
            # Over the kept classes doing nothing is masking.
            assert mine[0]["kl_forget"] == pytest.approx(mine[2]["kl_forget"], rel=1e-5)
            assert mine[1]["retrain"] > 0
    assert [made["claim"] for made in content["claims"]]
    assert ledger.ledger({"output_filters": content})
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 * 2
    assert str(tmp_path) not in json.dumps(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"removed": (1, 1)}, "`removed` must be different classes from 0 on, got 1 1"),
        ({"removed": (-1,)}, "`removed` must be different classes from 0 on, got -1"),
        ({"removed": (10,)}, r"`forget` class must be in \[0, 10\), got 10"),
        ({"betas": (3.0, 1.0)}, "`betas` must be ascending"),
        ({"tables": ("iris",)}, "`tables` must be one of wine, digits, covertype, got 'iris'"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        small(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_numbers_of_a_class_by_hand():
    labels = Labels(np.array([0, 1, 2]), np.array([0, 1, 2, 1]))
    test = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.1, 0.3, 0.6]])
    oracle = np.array([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.1, 0.9], [0.2, 0.4, 0.4]])
    outputs = Outputs(np.eye(3), test, np.eye(3))
    rows = compared.compare("x", 0, [outputs], [oracle, oracle], labels, (1.0,))
    row = {row["model"]: row for row in rows}
    q = filters.masked(test, removed=0)
    kl = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert row["masked"]["kl_forget"] == pytest.approx([kl])
    rest = [-np.log(q[1, 1]), 0.1 * np.log(0.1 / q[2, 1]) + 0.9 * np.log(0.9 / q[2, 2])]
    rest.append(0.5 * np.log(0.5 / q[3, 1]) + 0.5 * np.log(0.5 / q[3, 2]))
    assert row["masked"]["kl_retain"] == pytest.approx([np.mean(rest)])
    assert row["masked"]["acc_retain"] == pytest.approx([2 / 3])
    whole = 0.5 * np.log(0.5 / 0.3) + 0.5 * np.log(0.5 / 0.1)
    assert row["original"]["kl_forget_all"] == pytest.approx([whole])
    assert row["oracle"]["kl_forget"] == pytest.approx([0, 0])
    only = compared.compare("x", 0, [outputs], [oracle], labels, (1.0,))
    assert "oracle" not in [row["model"] for row in only]


def test_covertype_is_fetched_cut_and_counted_from_zero(monkeypatch):
    from sklearn import datasets

    rows = tables.FETCHED_ROWS + 10
    labels = np.arange(rows) % 7 + 1

    def fetched(return_X_y):
        assert return_X_y
        return np.arange(rows)[:, None], labels

    monkeypatch.setattr(datasets, "fetch_covtype", fetched)
    x, found = tables.load("covertype")
    assert len(x) == len(found) == tables.FETCHED_ROWS
    assert set(found) == set(range(7))
    np.testing.assert_array_equal(labels[x[:, 0]] - 1, found)


def made_up(*, classes=4, mpru=0.5, masked=1.0, published=0.2, accuracy=0.9):
    """Rows of one classifier, whose oracles are 0.1 nats apart and 90 % right."""
    forget = {"original": masked, "oracle": 0.1, "masked": masked, "MPRU": mpru}
    forget |= {"MPRU as published": published, "tilted 10": 2.0}
    rows = []
    for c in range(classes):
        for model, kl in forget.items():
            near = 0.9 if model == "oracle" else accuracy
            row = {"classifier": "a", "removed": c, "model": model}
            row |= {"kl_forget": [kl + 0.01 * c, kl], "kl_retain": [0.1, 0.1]}
            row["acc_retain"] = [near + 0.001 * c, near]
            if model in ("original", "oracle"):
                row |= {"kl_forget_all": [9.0], "kl_retain_all": [0.2], "retrain": 3.0}
            else:
                row["seconds"] = [0.01]
            rows.append(row)
    return {"rows": rows}


def verdicts(results):
    return [made["verdict"] for made in outputs_page.claims(results, {"betas": [10.0]})]


def test_verdicts_follow_from_the_rows():
    assert verdicts(made_up()) == ["fails", "holds", "holds", "fails"]
    assert verdicts(made_up(mpru=0.1)) == ["holds", "holds", "fails", "fails"]
    assert verdicts(made_up(mpru=0.1, accuracy=0.8))[0] == "fails"
    assert verdicts(made_up(mpru=1.5))[1] == "fails"
    assert verdicts(made_up(classes=2)) == ["not resolved"] * 4
    other = [row | {"classifier": "b"} for row in made_up(mpru=0.1)["rows"]]
    assert verdicts({"rows": [*made_up()["rows"], *other]})[0] == "mixed"


@pytest.mark.parametrize("name", RESULTS)
def test_prose_is_what_the_code_makes_of_the_numbers(name):
    if "-" not in name:
        for line in outputs_page.headline(RESULTS[name]):
            assert line in output_filters.__doc__
