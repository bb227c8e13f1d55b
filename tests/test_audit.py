"""The audit: models of scikit-learn and torch by their arrays, checkpoints, verdicts, the page."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, random_batch

from famr_jax import __main__ as commands
from famr_jax import audit, checkpoint, statistics
from famr_jax.audit import auditing
from famr_jax.evaluation import EnsembleMeasure
from famr_jax.forget import ForgetSet

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


def command(*words):
    """The status that the command exits with."""
    try:
        commands.main(["audit", *words])
    except SystemExit as stop:
        return stop.code
    return 0


def oracles_of(files, count=8):
    return ["--oracle", *[files[f"oracle_{i}"] for i in range(count)]]


def test_the_command_exits_1_where_the_model_left_the_band(files, capsys, tmp_path):
    words = ["--before", files["before"], "--after", files["before"], *oracles_of(files)]
    assert command(*words, "--out", "deep/er/page.html") == 1
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
    assert command(*words, *oracles_of(files)) == 0
    assert "unseen.npz: inside the band. Inside in" in capsys.readouterr().out
    assert command("--before", files["before"], "--after", files["before"], "--oracle",
                   files["oracle_0"]) == 0  # fmt: skip
    assert "not resolved. 1 oracle: a verdict needs 8." in capsys.readouterr().out
    assert command("--before", files["before"], "--after", files["before"]) == 0
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
    assert command("--before", files["before"], "--after", files["unseen"], *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert told in line
    assert sorted(tmp_path.iterdir()) == before


# Checkpoints


TRAIN, TEST = random_batch(30, seed=3), random_batch(15, seed=4)
MASK = np.asarray(TRAIN.labels) == 0
CLASS = ForgetSet("class:0", MASK, (0,))


def test_checkpoints_and_the_arrays_of_the_same_models_give_the_same_audit(model, tmp_path):
    weights = [drawn(model.init, seed) for seed in range(4)]
    for i in (0, 1):
        checkpoint.save(tmp_path / str(i), weights[i], epoch=0, config={})
    given = [tmp_path / "0", tmp_path / "1", *weights[2:]]
    found = audit.checkpoints(model, given[0], given[1], given[2:], TRAIN, TEST, CLASS)
    x = jnp.concatenate([TRAIN.x, TEST.x])
    shared = {
        "labels": np.concatenate([TRAIN.labels, TEST.labels]),
        "split": np.array([b"train"] * 30 + [b"test"] * 15),
        "forget": np.concatenate([MASK, np.zeros(15, bool)]),
    }
    apply, features = jax.jit(model.apply), jax.jit(model.features)
    models = [
        shared | {"logits": apply(p, x), "features": features(p, x)["pre_logits"]} for p in weights
    ]
    same = audit.arrays(models[0], models[1], models[2:])
    assert (found.verdict, found.sizes) == (same.verdict, same.sizes)
    for line, other in zip(found.lines, same.lines, strict=True):
        assert (line["measure"], line.get("verdict")) == (other["measure"], other.get("verdict"))
        if "value" in line:
            assert line["value"] == pytest.approx(other["value"], rel=1e-4)
    with pytest.raises(ValueError, match="`oracle` 1 must be a model of its own"):
        audit.checkpoints(model, *weights[:2], [weights[2], weights[2]], TRAIN, TEST, CLASS)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Checkpoints of a small model on digits, as the main job leaves them, by name."""
    from famr_jax.cli.flags import BenchFlags
    from famr_jax.cli.opening import open_bench

    monkeypatch.chdir(tmp_path)
    bench = open_bench(BenchFlags(model="mlp_8", out=tmp_path / "runs"))
    (gone,) = bench.forget_sets(["class:3"])
    everything = np.ones(len(gone.mask), bool)
    roles = {"original": everything, "famr": gone.mask, "other": np.roll(gone.mask, 1)}
    roles |= {f"oracle_{i}": ~gone.mask for i in range(2)}
    for seed, (role, mask) in enumerate(roles.items()):
        config = bench.config(mask)
        config |= {"unlearn": {"lr": 1.0}} if role in ("famr", "other") else {}
        bench.keep(role, drawn(bench.model.init, seed), config)
    return {role: str(tmp_path / "runs" / "checkpoints" / role) for role in roles}


def test_the_command_audits_the_main_jobs_checkpoints_by_its_flags(kept, capsys, tmp_path):
    words = ["--model", "mlp_8", "--before", kept["original"], "--after", kept["famr"]]
    oracles = ["--oracle", kept["oracle_0"], kept["oracle_1"]]
    assert command(*words, *oracles, "--forget", "class:3", "--out", "page.html") == 0
    assert "famr: not resolved. 2 oracles" in capsys.readouterr().out
    content = json.loads((tmp_path / "page.json").read_text())
    (line,) = [x for x in content["results"]["lines"] if x["measure"] == "for_acc"]
    assert line["oracles"] == 2
    for changed, told in (
        ([*words, *oracles], "`forget` must be given with checkpoints, as class:3"),
        ([*words, "--oracle", kept["original"], "--forget", "class:3"],
         "must be made of the training images without this forget set, by its record it was not"),
        ([*words[:4], "--after", kept["other"], "--forget", "class:3"],
         "must be made of this forget set, by its record it was not"),
        ([*words[:2], "--before", kept["famr"], *words[4:], "--forget", "class:3"],
         "must be made of all training images, by its record it was not"),
        ([*words[2:], "--forget", "class:3"], "must have model = 'vit_mu/2', got 'mlp_8'"),
        ([*words, *oracles, "--forget", "class:3", "--oracle", kept["oracle_0"], kept["oracle_0"]],
         "`oracle` 1 must be a model of its own"),
    ):  # fmt: skip
        assert command(*changed) == 2
        assert told in capsys.readouterr().err


# Torch


@pytest.mark.slow
def test_a_residual_network_of_torch_is_audited_by_its_arrays(tmp_path):
    """Trained for a moment on digits, saved as a user would: half precision, tensors, bytes."""
    torch = pytest.importorskip("torch", reason="torch is not installed: it is no requirement")
    from sklearn.datasets import load_digits
    from torch_resnet import trained

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[:600], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(labels[:600])
    split = np.array(["train"] * 400 + ["test"] * 200)
    is_train, forget = torch.tensor(split == "train"), torch.tensor(labels[:600] == 3)
    retained = is_train & ~forget
    plans = {"before": (0, is_train), "after": (1, is_train)}
    plans |= {f"oracle_{i}": (2 + i, retained) for i in range(2)}
    for name, (seed, rows) in plans.items():
        logits, features = trained(x, y, rows, seed)
        np.savez(
            tmp_path / f"{name}.npz",
            logits=logits.half(),
            features=features,
            labels=y.to(torch.int8),
            split=split,
            forget=forget & is_train,
        )
    paths = {name: tmp_path / f"{name}.npz" for name in plans}
    found = audit.arrays(paths["before"], paths["after"], [paths["oracle_0"], paths["oracle_1"]])
    lines = {line["measure"]: line for line in found.lines}
    assert lines["for_acc"]["value"] > 0.5 > lines["for_acc"]["oracle"]
    assert lines["ret_acc"]["oracle"] > 0.5
    assert 0.5 < lines["probe"]["value"] <= 1
    assert found.verdict == "not resolved"
