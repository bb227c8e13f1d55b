"""The main job, at its SMALL size: what it writes, what it refuses, and that it survives a kill."""

import json
import os
import re
import shutil
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
from famr_jax import __main__ as commands
from famr_jax import checkpoint, report
from famr_jax.cli import forget, places, record, study
from famr_jax.cli.forget import SMALL
from famr_jax.cli.measured import line
from famr_jax.cli.opening import open_bench
from famr_jax.store import FailedRunError, NonFiniteError, Store

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
        (method,) = case["methods"]
        assert len(method["curves"]["for_acc"]) == SMALL.epochs + 1
        assert len(method["terms"]["objective"]) == SMALL.epochs
        assert (method["uses_retain"], method["batch_size"]) == (False, 64)
        assert method["diagnosis"]
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
            row, curve = line(case, measure), case["methods"][0]["curves"][measure]
            assert curve[0] == pytest.approx(row["original"], abs=1e-5)
            assert curve[-1] == pytest.approx(row["value"], abs=1e-5)


def test_stationary_point_is_reached_by_going_on_and_not_by_the_run(done):
    for case in done[1]["results"]["cases"]:
        stationarity = case["stationarity"]
        assert stationarity["converged"]["converged"]
        assert stationarity["converged"]["norm"] <= 1.01e-2 * stationarity["end"]


def test_the_same_command_again_trains_and_studies_nothing(done, monkeypatch):
    chosen, content = done
    monkeypatch.setattr(Store, "_run", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(study, "forms", lambda *_, **__: pytest.fail("studied again"))
    class_forgetting.run(chosen)
    again = read(chosen)
    assert again["results"] == content["results"]
    assert {path.name for path in chosen.bench.out.iterdir()} == {
        "checkpoints", "metrics.json", "report.html"
    }  # fmt: skip


def test_another_configuration_is_refused_where_results_are(done):
    chosen = done[0]
    before = (chosen.bench.out / "metrics.json").read_text()
    with pytest.raises(ValueError, match=r"with lam 0\.1 instead of lam 0\.2: give"):
        class_forgetting.run(replace(chosen, lam=0.2))
    with pytest.raises(ValueError, match="class_forgetting instead of experiment forget"):
        forget.run(chosen)
    assert (chosen.bench.out / "metrics.json").read_text() == before


def test_old_results_stay_until_the_new_are_whole(done, monkeypatch):
    chosen = done[0]
    files = [path for path in sorted(chosen.bench.out.rglob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    monkeypatch.setattr(report, "write", lambda *_, **__: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        class_forgetting.run(chosen)
    assert {path: path.read_bytes() for path in files} == before
    assert not (chosen.bench.out / places.NEW).exists()


def test_without_out_each_configuration_has_a_directory_of_its_own(done, monkeypatch):
    chosen, found = done[0], []
    bench = open_bench(replace(chosen.bench, out=None))
    for lam in (0.1, 0.1, 0.2):
        config = record.describe("forget", "a command", replace(chosen, lam=lam))
        found.append(places.settled(bench, config).out)
    assert found[0] == found[1] != found[2]
    assert re.fullmatch(r"runs/forget-[0-9a-f]{8}", str(found[0]))


def test_fresh_makes_this_run_anew_and_leaves_the_others(tmp_path, done):
    old = done[0]
    shutil.copytree(old.bench.cache, tmp_path / "cache")
    other = tmp_path / "cache" / "of-another-run" / "weights"
    other.mkdir(parents=True)
    chosen = flags(tmp_path, forget=("class:3",), bench={"fresh": True})
    ran = []
    run = Store._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Store, "_run", lambda self, phase, *of: ran.append(phase.name) or run(self, phase, *of)
        )
        class_forgetting.run(chosen)
    assert set(ran) == {"original", "oracles class-3", "famr class-3"}
    assert other.exists()
    assert read(chosen)["results"]["cases"] == done[1]["results"]["cases"][:1]
    with pytest.raises(ValueError, match="`fresh` and `resume` must not be given together"):
        class_forgetting.run(flags(tmp_path, bench={"fresh": True, "resume": True}))


def test_original_checkpoint_skips_training(done, tmp_path):
    chosen, content = done
    original = chosen.bench.out / "checkpoints" / "original"
    other = flags(tmp_path, forget=("random:0.05",), bench={"original": original})
    class_forgetting.run(other)
    again = read(other)
    assert "original" not in again["config"]["seconds"]["phases"]
    (first, second) = (run["results"]["cases"][-1]["models"] for run in (content, again))
    assert first == second


def test_original_that_turns_non_finite_says_so_and_is_all_there_is(tmp_path):
    chosen = flags(tmp_path, bench={"train_lr": 1e38})
    with pytest.raises(NonFiniteError, match=r"original: not finite in epoch 1"):
        class_forgetting.run(chosen)
    content = read(chosen)
    assert content["results"] == {"finite": False, "phase": "original", "epoch": 1}
    assert not (chosen.bench.out / "report.html").exists()


def test_method_that_turns_non_finite_fails_the_run_and_the_page_says_so(tmp_path, done):
    original = done[0].bench.out / "checkpoints" / "original"
    chosen = flags(
        tmp_path,
        forget=("class:3",),
        method=("famr", "gradient_ascent"),
        method_lr=(1e38, 1e-3),
        optimizer="sgd",
        bench={"original": original},
    )
    with pytest.raises(FailedRunError, match=r"diverged: FAMR on class:3; .*report.html says how"):
        class_forgetting.run(chosen)
    (case,) = read(chosen)["results"]["cases"]
    famr, ascent = case["methods"]
    assert (famr["finite"], famr["epoch"]) == (False, 1)
    assert ascent["finite"]
    assert {row["model"] for row in case["rows"]} == {"gradient_ascent"}
    assert "FAMR was not finite in epoch 1" in (chosen.bench.out / "report.html").read_text()
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
    ({"method_lr": (0.0,)}, {}, "lr"),
    ({"method_lr": (1e-4, 1e-3)}, {}, r"`method_lr` must be one value, or one for each of the 1"),
    ({"method": ("unlearn",)}, {}, "`method` must be one of .*famr.*, or FILE.py:FUNCTION"),
    ({"method": ()}, {}, "`method` must name at least one"),
    ({"method": ("famr", "famr")}, {}, "`method` must name different methods"),
    ({"method": ("gradient_ascent",)}, {}, "`study` must be of famr among `method`"),
    ({"unlearn_batch_size": 0}, {}, "unlearn_batch_size"),
    ({"forget": ("class:cat",)}, {}, "class must be a name or an index below 10, got 'cat'"),
    ({"forget": ("file:names.txt",)}, {}, "must be of a data set folder:PATH"),
    ({"epochs": 0}, {}, "epochs"),
    ({"forget": ()}, {}, "forget"),
    ({"forget": ("class:3", "class:3")}, {}, "forget"),
    ({"forget": ("class:10",)}, {}, "class"),
    ({"forget": ("class:0,1,2,3,4,5,6,7,8,9",)}, {}, "forget"),
    ({"forget": ("random:1.5",)}, {}, "fraction"),
    ({"forget": ("index:/no/such/file",)}, {}, "file must be a readable text"),
    ({"forget": ("style:tint",)}, {}, "forget"),
    ({"forget": ("class:3,5", "class:5,3")}, {}, "different sets"),
    ({"forget": ("class:",)}, {}, "class must be a name or an index below 10, got ''"),
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


def command(chosen):
    """The command line of a SMALL run that saves after every epoch."""
    program = (
        "import dataclasses, pathlib, sys; from experiments import class_forgetting\n"
        "from famr_jax import store; from famr_jax.cli.forget import SMALL as small\n"
        "store.SECONDS_BETWEEN_SAVES = 0\n"
        "out, cache, data_dir = sys.argv[1:]\n"
        "bench = dataclasses.replace(small.bench, out=pathlib.Path(out), cache=pathlib.Path(cache),"
        " data_dir=pathlib.Path(data_dir))\n"
        "class_forgetting.run(dataclasses.replace(small, bench=bench))\n"
    )
    bench = chosen.bench
    where = [str(path) for path in (bench.out, bench.cache, bench.data_dir)]
    return [sys.executable, "-c", program, *where]


def test_killed_at_several_points_it_resumes_to_the_same_bits(done, tmp_path):
    whole, content = done
    chosen = flags(tmp_path)
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for phase in ("original-", "oracles-class-3-", "famr-class-3-"):
        process = subprocess.Popen(command(chosen), env=dict(os.environ), **quiet)
        deadline = time.monotonic() + 240
        while not list(chosen.bench.cache.glob(f"{phase}*/progress/[1-9]")):
            assert process.poll() is None, f"ended before {phase} saved an epoch"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (chosen.bench.out / "metrics.json").exists()
    subprocess.run(command(chosen), check=True, timeout=300, **quiet)
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


def test_the_library_runs_the_same_job_without_the_claims(tmp_path, done, monkeypatch):
    monkeypatch.setattr(Store, "_run", lambda *_: pytest.fail("trained again"))
    chosen, content = done
    again = forget.run(replace(chosen, bench=replace(chosen.bench, out=tmp_path / "out")))
    assert again["config"]["experiment"] == "forget"
    assert again["config"]["command"].startswith("python -m famr_jax forget --epochs 3")
    assert again["claims"] == []
    assert again["results"] == content["results"]


def test_a_list_of_the_classes_is_printed_and_nothing_runs(tmp_path, capsys):
    found = forget.run(flags(tmp_path, list=True))
    assert found["names"] == [str(c) for c in range(10)]
    assert (sum(found["train"]), sum(found["test"])) == (1437, 360)
    told = capsys.readouterr().out
    assert re.search(r"│ +3 │ 3 +│ +146 │ +37 │", told)
    assert not list(tmp_path.iterdir())


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
