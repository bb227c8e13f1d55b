"""The main job, at its SMALL size: what it writes, what it refuses, and that it survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import class_forgetting
from experiments.famr import FAMR, main_job
from famr_jax import __main__ as commands
from famr_jax import checkpoint
from famr_jax.cli import forget
from famr_jax.cli.diagnosis import line
from famr_jax.cli.forget import SMALL
from famr_jax.cli.opening import open_bench
from famr_jax.store import NonFiniteError, Store

ROOT = Path(__file__).parent.parent


def flags(root, *, bench=None, **changes):
    """SMALL, writing under `root`."""
    places = {"out": root / "out", "cache": root / "cache", "data_dir": DATA[0]}
    return replace(SMALL, bench=replace(SMALL.bench, **places | (bench or {})), **changes)


DATA = []


@pytest.fixture(scope="module", autouse=True)
def _data_dir(tmp_path_factory):
    DATA[:] = [tmp_path_factory.mktemp("tfds")]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One SMALL run: its flags and its JSON."""
    chosen = flags(tmp_path_factory.mktemp("run"))
    class_forgetting.run(chosen)
    return chosen, read(chosen)


def read(chosen):
    """The JSON that a run left."""
    return json.loads((chosen.bench.out / "metrics.json").read_text())


def load(chosen, role):
    """The weights a run kept, and the bench they belong to."""
    bench = open_bench(chosen.bench)
    like = jax.eval_shape(bench.model.init, jax.random.key(0))
    return bench, checkpoint.load(chosen.bench.out / "checkpoints" / role, like).tree


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("model", ["original", "famr", "oracle"])
def test_metrics_agree_with_the_checkpoints_evaluated_afresh(done, case, model):
    chosen, content = done
    spec = SMALL.forget[case]
    name = spec.replace(":", "-")
    role = {"original": "original", "famr": f"{name}/famr", "oracle": f"{name}/oracle_0"}[model]
    bench, params = load(chosen, role)
    (gone,) = bench.forget_sets([spec])
    found = content["results"]["cases"][case]
    assert gone.mask.sum() == found["num_forget"]
    row = next(row for row in found["models"] if row["model"] == model)
    for measure, mask in (("for_acc", gone.mask), ("ret_acc", ~gone.mask)):
        logits = np.asarray(bench.model.apply(params, bench.train.x[mask]))
        labels = bench.dataset.train.labels[mask]
        assert np.mean(logits.argmax(1) == labels) == pytest.approx(row[measure], abs=1e-5)


def test_content_is_complete_and_judged(done):
    chosen, content = done
    assert content["results"]["finite"] is True
    assert content["config"]["command"].startswith(
        "python -m experiments.class_forgetting --epochs 3"
    )
    assert str(chosen.bench.out.parent) not in json.dumps(content)
    phases = content["config"]["seconds"]["phases"]
    assert {"original", "oracles class-3", "famr class-3"} <= set(phases)
    assert all(phase["run"] >= 0 for phase in phases.values())
    for case in content["results"]["cases"]:
        assert len(case["epochs"]["for_acc"]) == SMALL.epochs + 1
        assert len(case["epochs"]["objective"]) == SMALL.epochs
        assert case["diagnosis"]
        assert {row.get("verdict", "too few oracles") for row in case["rows"]} == {
            "too few oracles"
        }
    assert content["claims"] == []  # SMALL is not at the paper's settings
    page = (chosen.bench.out / "report.html").read_text()
    assert "<html" in page
    assert not [line for line in page.splitlines() if 'src="http' in line]


def test_unlearning_curve_ends_where_the_table_says(done):
    for case in done[1]["results"]["cases"]:
        for measure in ("for_acc", "entropy"):
            row, curve = line(case, measure), case["epochs"][measure]
            assert curve[0] == pytest.approx(row["original"], abs=1e-5)
            assert curve[-1] == pytest.approx(row["value"], abs=1e-5)


def test_stationary_point_is_reached_by_going_on_and_not_by_the_run(done):
    for case in done[1]["results"]["cases"]:
        stationarity = case["stationarity"]
        assert stationarity["converged"]["converged"]
        assert stationarity["converged"]["norm"] <= 1.01e-2 * stationarity["end"]


def test_resume_of_a_finished_run_trains_nothing(done, monkeypatch):
    chosen, content = done
    monkeypatch.setattr(Store, "_run", lambda *_: pytest.fail("trained again"))
    class_forgetting.run(replace(chosen, bench=replace(chosen.bench, resume=True)))
    again = read(chosen)
    assert again["results"] == content["results"]


def test_original_checkpoint_skips_training(done, tmp_path):
    chosen, content = done
    original = chosen.bench.out / "checkpoints" / "original"
    other = flags(tmp_path, forget=("random:0.05",), bench={"original": original})
    class_forgetting.run(other)
    again = read(other)
    assert "original" not in again["config"]["seconds"]["phases"]
    (first, second) = (run["results"]["cases"][-1]["models"] for run in (content, again))
    assert first == second


def test_run_that_turns_non_finite_says_so_and_exits_1(tmp_path, done):
    original = done[0].bench.out / "checkpoints" / "original"
    chosen = flags(tmp_path, lr=1e38, optimizer="sgd", bench={"original": original})
    with pytest.raises(NonFiniteError, match=r"famr class-3: not finite in epoch 1"):
        class_forgetting.run(chosen)
    content = read(chosen)
    assert content["results"] == {"finite": False, "phase": "famr class-3", "epoch": 1}
    assert not (chosen.bench.out / "report.html").exists()
    assert checkpoint.latest_epoch(original) == 0


BAD = [
    ({}, {"dataset": "no_such_data"}, "no_such_data"),
    ({}, {"dataset": "folder:/no/such/folder"}, "folder"),
    ({}, {"model": "vit_huge/2"}, "model"),
    ({}, {"model": "vit_mu/3"}, "patch"),
    ({}, {"classes": 1}, "classes"),
    ({}, {"classes": 11}, "classes"),
    ({}, {"train_epochs": 0}, "train_epochs"),
    ({}, {"batch_size": 0}, "batch_size"),
    ({}, {"oracles": 0}, "oracles"),
    ({}, {"train_lr": float("nan")}, "train_lr"),
    ({}, {"original": Path("/no/such/checkpoint")}, "checkpoint"),
    ({"optimizer": "adamax"}, {}, "optimizer"),
    ({"lam": -1.0}, {}, "lam"),
    ({"lam": float("nan")}, {}, "lam"),
    ({"lr": 0.0}, {}, "lr"),
    ({"epochs": 0}, {}, "epochs"),
    ({"forget": ()}, {}, "forget"),
    ({"forget": ("class:3", "class:3")}, {}, "forget"),
    ({"forget": ("class:10",)}, {}, "class"),
    ({"forget": ("class:0,1,2,3,4,5,6,7,8,9",)}, {}, "forget"),
    ({"forget": ("random:1.5",)}, {}, "fraction"),
    ({"forget": ("index:/no/such/file",)}, {}, "index"),
    ({"forget": ("style:tint",)}, {}, "forget"),
    ({"forget": ("class:3,5", "class:5,3")}, {}, "different sets"),
    ({"forget": ("class:",)}, {}, "integers"),
    ({"forget": ("class:-1",)}, {}, "class"),
    ({"forget": ("random:nan",)}, {}, "fraction"),
    ({}, {"seed": -1}, "seed"),
    ({}, {"seed": 2**70}, "seed"),
]


@pytest.mark.parametrize(("changes", "bench", "names"), BAD)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, bench, names):
    with pytest.raises(ValueError, match=names):
        class_forgetting.run(flags(tmp_path, bench=bench, **changes))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["out", "cache"])
def test_place_that_cannot_be_written_is_refused_before_training(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"`{name}` must be a directory to write in"):
        class_forgetting.run(flags(tmp_path, bench={name: tmp_path / "file"}))


def test_new_run_leaves_nothing_of_an_older_one(tmp_path):
    bench = open_bench(flags(tmp_path).bench)
    params = bench.model.init(jax.random.key(0))
    for role in ("original", "class-5/famr"):
        bench.keep(role, params, {})
    (bench.out / "report.html").write_text("old")
    spared = replace(bench.flags, original=bench.out / "checkpoints" / "original")
    replace(bench, flags=spared).clear()
    assert checkpoint.latest_epoch(bench.out / "checkpoints" / "original") == 0
    assert not (bench.out / "checkpoints" / "class-5" / "famr").exists()
    assert not (bench.out / "report.html").exists()


CASE = {
    "kind": "class",
    "forget": "class:3",
    "method": {**main_job.PAPER, "name": "famr", "optimizer": "adam"},
    "targets": {"chance": 0.1},
    "stationarity": {"at_anchor": 0.0, "end": 0.0},
    "normalisation": [
        {"form": form, "optimizer": "sgd", "obeys": form == "mean", "limit": 1e-3}
        for form in ("mean", "sum")
    ],
}


@pytest.mark.parametrize(
    ("model", "forgotten", "retained", "verdicts"),
    [
        ("vit_B/16", 0.0, 0.95, ["holds", "holds"]),
        ("vit_B/16", 0.0, 0.60, ["holds", "fails"]),
        ("vit_S/16", 0.02, 0.95, ["holds", "holds"]),
        # 3 % of 500 images may be 2.1 % of the class (1.7 to 4.9 %), 5 % may not (3.3 to 7.3 %).
        ("vit_Ti/16", 0.03, 0.95, ["not resolved", "holds"]),
        ("vit_Ti/16", 0.05, 0.95, ["fails", "holds"]),
        ("vit_L/16_token", 0.002, 0.95, ["fails", "holds"]),
        ("vit_Ti/16", 0.9, 0.95, ["fails", "not testable here"]),
        # What the paper reports of larger models is not refuted by a smaller one.
        ("vit_nano/4", 0.9, 0.50, ["not testable here", "not testable here"]),
        ("mlp_16", 0.0, 0.95, ["not testable here", "not testable here"]),
    ],
)
def test_claims_are_judged_by_what_was_forgotten_and_kept(model, forgotten, retained, verdicts):
    common = {"model": "famr", "oracle": 0.0, "oracles": 3, "n": 500}
    rows = [
        {"measure": "for_acc", "original": 0.9, "value": forgotten, **common},
        {"measure": "ret_acc", "original": 0.96, "value": retained, **common},
    ]
    found = main_job.claims_of({**CASE, "rows": rows}, "a model on data", model)
    assert [entry["verdict"] for entry in found] == [*verdicts, "mixed", "holds"]
    assert "N=500 images; FAMR's own target, 1/C, is 10.0%" in found[0]["words"]
    assert all(entry["words"].startswith("a model on data, class:3:") for entry in found)
    assert {entry["claim"] for entry in found} <= set(FAMR.claims.values())
    other = {**CASE, "rows": rows, "method": {**CASE["method"], "lam": 1.0}}
    assert main_job.claims_of(other, "", model) == []


def test_words_of_a_small_model_hold_its_numbers_interval_and_target():
    common = {"model": "famr", "original": 0.492, "oracle": 0.0, "oracles": 3, "n": 500}
    rows = [{"measure": name, "value": 0.026, **common} for name in ("for_acc", "ret_acc")]
    first, *_ = main_job.claims_of({**CASE, "rows": rows}, "vit_nano/4 on data", "vit_nano/4")
    assert first["words"] == (
        "vit_nano/4 on data, class:3: For-Acc 49.2% before, 2.6% after (95 % interval 1.4% to "
        "4.4%, N=500 images; FAMR's own target, 1/C, is 10.0%), oracles 0.0% (n=3). No ViT-Ti, S, "
        "B or L was run here."
    )


def command(chosen, *, resume):
    """The command line of a SMALL run that saves after every epoch."""
    program = (
        "import dataclasses, pathlib, sys; from experiments import class_forgetting\n"
        "from famr_jax import store; from famr_jax.cli.forget import SMALL as small\n"
        "store.SECONDS_BETWEEN_SAVES = 0\n"
        "out, cache, data_dir, resume = sys.argv[1:]\n"
        "bench = dataclasses.replace(small.bench, out=pathlib.Path(out), cache=pathlib.Path(cache),"
        " data_dir=pathlib.Path(data_dir), resume=resume == 'yes')\n"
        "class_forgetting.run(dataclasses.replace(small, bench=bench))\n"
    )
    bench = chosen.bench
    places = [str(path) for path in (bench.out, bench.cache, bench.data_dir)]
    return [sys.executable, "-c", program, *places, "yes" if resume else "no"]


def test_killed_at_several_points_it_resumes_to_the_same_bits(done, tmp_path):
    whole, content = done
    chosen = flags(tmp_path)
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for phase in ("original-", "oracles-class-3-", "famr-class-3-"):
        process = subprocess.Popen(command(chosen, resume=True), env=dict(os.environ), **quiet)
        deadline = time.monotonic() + 240
        while not list(chosen.bench.cache.glob(f"{phase}*/progress/[1-9]")):
            assert process.poll() is None, f"ended before {phase} saved an epoch"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (chosen.bench.out / "metrics.json").exists()
    subprocess.run(command(chosen, resume=True), check=True, timeout=300, **quiet)
    for role in ("original", "class-3/famr", "class-3/oracle_1", "random-0.05/famr"):
        _, expected = load(whole, role)
        _, found = load(chosen, role)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(a, b)
    again = read(chosen)
    assert again["results"] == content["results"]


def test_command_line_exits_2_on_bad_input_with_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["forget", "--lam", "-1"])
    assert stop.value.code == 2
    assert "`lam` must be finite and >= 0, got -1.0." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        commands.main(["forget", "--model", "vit_foo/2"])  # many words, and still one line
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("or logistic, got 'vit_foo/2'.")
    with pytest.raises(SystemExit):
        commands.main(["forget", "--nosuch"])
    assert "python -m famr_jax forget --help" in capsys.readouterr().err


def test_the_library_runs_the_same_job_without_the_claims(done, monkeypatch):
    monkeypatch.setattr(Store, "_run", lambda *_: pytest.fail("trained again"))
    chosen, content = done
    again = forget.run(replace(chosen, bench=replace(chosen.bench, resume=True)))
    assert again["config"]["experiment"] == "forget"
    assert again["config"]["command"].startswith("python -m famr_jax forget --epochs 3")
    assert again["claims"] == []
    assert again["results"] == content["results"]


def test_unknown_commands_are_told_which_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["forgive"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert all(name in told for name in commands.COMMANDS)
    with pytest.raises(SystemExit) as stop:
        commands.main(["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == told
    with pytest.raises(SystemExit):
        commands.main(["prepare"])
    assert "prepare [-h]" in capsys.readouterr().err
