"""The audit: models of scikit-learn by their arrays, verdicts, the page, the command."""

import json
import re

import numpy as np
import pytest
from conftest import exit_status

from famr_jax import audit, statistics
from famr_jax.audit import auditing
from famr_jax.evaluation import EnsembleMeasure

GONE = 2
"""The class that is forgotten."""


@pytest.fixture(scope="module")
def iris():
    """Arrays of scikit-learn models: before, eight oracles, and others that no one gave."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, labels = load_iris(return_X_y=True)
    x = x + np.random.default_rng(0).normal(size=x.shape)
    is_train = np.arange(len(x)) % 3 > 0
    rows = np.flatnonzero(is_train)
    shared = {
        "labels": labels,
        "split": np.where(is_train, "train", "test"),
        "forget": is_train & (labels == GONE),
        "ids": np.arange(len(x)),
        "features": x,
    }

    def model(seed, without=None):
        kept = rows[labels[rows] != without]
        picked = np.random.default_rng(seed).choice(kept, len(kept))
        found = LogisticRegression(max_iter=500).fit(x[picked], labels[picked])
        logits = np.full((len(x), 3), -8.0)
        logits[:, found.classes_] = found.predict_log_proba(x)
        return shared | {"logits": logits}

    return {
        "before": model(0),
        "oracles": [model(seed, GONE) for seed in range(1, 9)],
        "unseen": [model(seed, GONE) for seed in range(9, 13)],
    }


def audited(iris, after, count=8, **changes):
    models = [m | changes for m in (iris["before"], after, *iris["oracles"][:count])]
    return audit.arrays(models[0], models[1], models[2:])


@pytest.fixture(scope="module")
def nothing_done(iris):
    return audited(iris, iris["before"])


def test_doing_nothing_leaves_the_band_and_every_number_is_beside_its_references(nothing_done):
    assert nothing_done.verdict == "left the band"
    lines = {line["measure"]: line for line in nothing_done.lines}
    line = lines["for_acc"]
    assert line["verdict"] == "outside band"
    assert line["value"] == line["original"] > 0.5
    assert line["oracle"] == line["null"] == 0
    assert (line["oracles"], line["n"]) == (8, 34)
    assert line["title"] in nothing_done.words
    assert {"band", "gap", "original_gap", "what"} <= set(line)
    assert "membership" in lines["svc_attack"]["absent"]
    assert [row["model"] for row in nothing_done.models] == ["original", *["oracle"] * 8, "after"]
    assert nothing_done.sizes == {"forget": 34, "retain": 66, "test": 34, "test_forgotten": 16}


def test_numbers_are_those_of_the_arrays(iris):
    after = iris["unseen"][0]
    found = {line["measure"]: line["value"] for line in audited(iris, after, 0).lines[:8]
             if "value" in line}  # fmt: skip
    hits = after["logits"].argmax(1) == after["labels"]
    train, lost = after["split"] == "train", after["labels"] == GONE
    assert found["for_acc"] == pytest.approx(hits[train & lost].mean())
    assert found["ret_acc"] == pytest.approx(hits[train & ~lost].mean())
    assert found["for_acc_test"] == pytest.approx(hits[~train & lost].mean())
    assert found["test_acc"] == pytest.approx(hits[~train & ~lost].mean())
    p = np.exp(after["logits"]) / np.exp(after["logits"]).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)[train & lost].mean()
    assert found["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_retrained_models_lie_inside_in_nearly_all_measures_and_hardly_any_fails(iris):
    outside = inside = 0
    for after in iris["unseen"]:
        verdicts = [line.get("verdict") for line in audited(iris, after).lines]
        outside += verdicts.count("outside band")
        inside += verdicts.count("inside band")
    assert inside > 6 * max(outside, 1)


def test_with_fewer_oracles_than_a_verdict_needs_nothing_is_resolved(iris):
    for count, words in (
        (7, "7 oracles: a verdict needs 8."),
        (1, "1 oracle: a"),
        (0, "No oracle"),
    ):
        found = audited(iris, iris["before"], count)
        assert found.verdict == "not resolved"
        assert found.words.startswith(words)
        assert not found.held_out
        kinds = {line.get("verdict") for line in found.lines}
        assert kinds <= {None, "too few oracles"}
    kl = next(line for line in found.lines if line["measure"] == "kl_forget")
    assert "no other retrained model" in kl["absent"]


def test_the_verdict_of_all_measures_follows_from_each():
    def line(verdict, title="M"):
        return {"title": title, "oracles": 8, "verdict": verdict}

    judged = auditing._judged
    same, inside, outside = (line(v) for v in ("not resolved", "inside band", "outside band"))
    assert judged([same, inside, same], 8, [0] * 8)[0] == "inside the band"
    assert judged([inside, outside], 8, [0] * 8)[0] == "left the band"
    assert judged([same, same], 8, [0] * 8)[0] == "not resolved"
    assert judged([line("not finite"), inside], 8, [0] * 8)[0] == "left the band"
    words = judged([inside, line("outside band", "Loss attack")], 8, [0, 2, 1] + [0] * 5)[1]
    assert words == (
        "Outside in 1 of 2 measures beside 8 oracles: Loss attack. Of the oracles, each held out, "
        "2 left the band of the others, in 2 at most."
    )


def test_an_oracle_held_out_is_judged_by_the_others(nothing_done):
    oracles = [row for row in nothing_done.models if row["model"] == "oracle"]
    counted = np.zeros(8, int)
    for line in nothing_done.lines:
        if "verdict" not in line:
            continue
        values = [row[line["measure"]] for row in oracles]
        for i in range(8):
            by = statistics.resolution_of(line["unit"], line["n"])
            low, high = statistics.prediction_interval(np.delete(values, i), resolution=by)
            counted[i] += not low <= values[i] <= high
    assert nothing_done.held_out == counted.tolist()


def test_samples_are_attacked_and_have_no_forgotten_class(iris):
    mask = (iris["before"]["split"] == "train") & (np.arange(150) % 7 == 0)
    found = audited(iris, iris["before"], forget=mask)
    lines = {line["measure"]: line for line in found.lines}
    assert 0 <= lines["svc_attack"]["value"] <= 1
    assert 0 <= lines["loss_attack"]["value"] <= 1
    assert "test_forgotten" in lines["for_acc_test"]["absent"]
    assert lines["probe"]["absent"] == "no whole class is forgotten"


def test_what_cannot_be_measured_is_said_with_its_reason(iris, monkeypatch):
    row = EnsembleMeasure("klom", "nats", "forget", lambda ensemble: 0.0, "KLoM")
    monkeypatch.setattr(auditing, "ENSEMBLE_MEASURES", (row,))
    bare = {k: v for k, v in iris["before"].items() if k not in ("features", "ids")}
    without_test = {k: v[iris["before"]["split"] == "train"] for k, v in bare.items()}
    found = audit.arrays(without_test, without_test)
    reasons = {line["title"]: line["absent"] for line in found.lines if "absent" in line}
    assert "no examples in the set 'test'" in reasons["Test-Acc"]
    assert "many models" in reasons["KLoM"]
    assert "no examples in the set 'all_test'" in reasons["Probe"]
    reasons = {line["title"]: line.get("absent") for line in audit.arrays(bare, bare).lines}
    assert reasons["Probe"] == "the model has no layer 'pre_logits'"


def test_features_of_some_models_alone_give_no_verdict_and_no_error(iris, nothing_done):
    def bare(model):
        return {key: array for key, array in model.items() if key != "features"}

    before, oracles = iris["before"], iris["oracles"]
    for models in (
        (bare(before), before, oracles),
        (before, bare(before), oracles),
        (before, before, [*map(bare, oracles[:2]), *oracles[2:]]),
    ):
        found = audit.arrays(*models)
        assert found.verdict == nothing_done.verdict
        (line,) = [line for line in found.lines if line["measure"] == "probe"]
        assert line.get("verdict") in (None, "too few oracles")


def test_the_probe_finds_a_class_that_features_still_have(iris):
    known = iris["before"]["features"].copy()
    known[:, 0] += 50 * (iris["before"]["labels"] == GONE)
    (line,) = [
        line
        for line in audited(iris, iris["before"], 0, features=known).lines
        if line["measure"] == "probe"
    ]
    assert line["value"] == 1.0
    assert line["n"] == 50


def test_the_probe_needs_five_test_images_of_either_class(iris):
    before = iris["before"]
    lost = np.flatnonzero((before["labels"] == GONE) & (before["split"] == "test"))
    keep = np.delete(np.arange(len(before["labels"])), lost[4:])

    def cut(model):
        return {key: array[keep] for key, array in model.items()}

    found = audit.arrays(cut(before), cut(before), list(map(cut, iris["oracles"])))
    (line,) = [line for line in found.lines if line["measure"] == "probe"]
    assert line["absent"] == "it needs 5 test images of forgotten and of kept classes"


def test_the_order_of_the_rows_does_not_matter(iris, nothing_done):
    order = np.random.default_rng(0).permutation(150)

    def shuffled(model):
        return {key: array[order] for key, array in model.items()}

    found = audit.arrays(
        shuffled(iris["before"]), shuffled(iris["before"]), list(map(shuffled, iris["oracles"]))
    )
    for line, same in zip(found.lines[:8], nothing_done.lines[:8], strict=True):
        assert line["value"] == pytest.approx(same["value"], rel=1e-5)


def test_page_and_json_have_the_verdict_every_measure_and_what_is_absent(tmp_path, nothing_done):
    page = tmp_path / "new" / "a [1].html"
    audit.write(nothing_done, page, name="<b>mine</b>", config={"command": "mine"})
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "left the band" in text
    assert "&lt;b&gt;mine" in text
    for line in nothing_done.lines:
        assert line["title"].replace("||", "||") in text
        assert line.get("absent", "") in text
    assert text.count('class="strip"') == sum("value" in line for line in nothing_done.lines)
    content = json.loads(page.with_suffix(".json").read_text())
    assert content["results"]["verdict"] == "left the band"
    assert len(content["results"]["lines"]) == len(nothing_done.lines)
    assert content["config"] == {"command": "mine"}
    for wrong in (tmp_path, tmp_path / "x.json", tmp_path / "mine.npz"):
        with pytest.raises(ValueError, match="`out` must be the file of a page"):
            audit.write(nothing_done, wrong)


# The command


@pytest.fixture
def files(iris, tmp_path, monkeypatch):
    """The arrays as files, some of them in a directory with brackets; the paths by name."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs [a]"
    place.mkdir()
    models = {"before": iris["before"], "unseen": iris["unseen"][1]}
    models |= {f"oracle_{i}": model for i, model in enumerate(iris["oracles"])}
    for name, model in models.items():
        np.savez(place / f"{name}.npz", **model)
    return {name: str(place / f"{name}.npz") for name in models}


def oracles_of(files, count=8):
    return ["--oracle", *[files[f"oracle_{i}"] for i in range(count)]]


def test_the_command_exits_1_where_the_model_left_the_band(files, capsys, tmp_path):
    words = ["--before", files["before"], "--after", files["before"], *oracles_of(files)]
    assert exit_status("audit", *words, "--out", "deep/er/page.html") == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error")]
    assert re.match(r"error: before.npz: left the band. Outside in \d+ of \d+ measures", line)
    assert "deep/er/page.html" in said.out
    content = json.loads((tmp_path / "deep/er/page.json").read_text())
    assert str(tmp_path) not in json.dumps(content)
    assert content["config"]["command"].startswith("python -m famr_jax audit --before DIR")
    assert set(content["config"]["flags"]) == {"before", "after", "oracle", "out"}
    assert "How this was made" in (tmp_path / "deep/er/page.html").read_text()


def test_the_command_exits_0_inside_the_band_and_where_nothing_is_resolved(files, capsys):
    words = ["--before", files["before"], "--after", files["unseen"]]
    assert exit_status("audit", *words, *oracles_of(files)) == 0
    assert "unseen.npz: inside the band. Inside in" in capsys.readouterr().out
    words = ["--before", files["before"], "--after", files["before"]]
    assert exit_status("audit", *words, "--oracle", files["oracle_0"]) == 0
    assert "not resolved. 1 oracle: a verdict needs 8." in capsys.readouterr().out
    assert exit_status("audit", *words) == 0
    assert "not resolved. No oracle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "."], "`out` must be the file of a page, as audit.html, got ."),
        (["--out", "runs [a]/before.npz"], "`out` must be the file of a page"),
        (["--forget", "class:3"], "`forget` must be left out where arrays hold it"),
        (["--oracle", "."], "must be all checkpoints or all .npz files"),
        (["--oracle", "none.npz"], "`oracle` none.npz must be a .npz file of arrays, got no file."),
    ],
)
def test_the_command_exits_2_with_one_line_and_writes_nothing(files, capsys, words, told, tmp_path):
    before = sorted(tmp_path.iterdir())
    models = ["--before", files["before"], "--after", files["unseen"]]
    assert exit_status("audit", *models, *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert told in line
    assert sorted(tmp_path.iterdir()) == before
