"""The benchmarks run at their SMALL size, and both sides compute the same."""

import json
import re
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import (
    compile_cache,
    convolution,
    curvature,
    curvature_peers,
    influence,
    kronecker_trial,
    preconditioners,
    shadows,
    step,
)
from experiments.benchmarks import preconditioners_table as table
from famr_jax.cli.flags import check
from famr_jax.cli.run import main


@pytest.mark.slow
def test_step_agrees_with_pytorch_and_writes_its_ratios(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "step.json"
    step.run(replace(step.SMALL, out=out))
    results = json.loads(out.read_text())["results"]
    assert max(results["agreement"].values()) < step.TOLERANCE
    assert all(ratio["best"] > 0 for ratio in results["ratios"].values())


@pytest.mark.slow
def test_patches_and_convolutions_have_the_gradient_of_pytorch(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "convolution.json"
    convolution.run(replace(convolution.SMALL, out=out))
    content = json.loads(out.read_text())
    assert max(content["results"]["4"]["apart"].values()) < 1e-4
    assert len(convolution.headline(content)) == 4


@pytest.mark.slow
def test_influence_agrees_with_its_correct_peers(tmp_path):
    for package in ("torch", "dattri", "kronfluence"):
        pytest.importorskip(package)
    out = tmp_path / "influence.json"
    influence.run(replace(influence.SMALL, out=out, data_dir=tmp_path))
    for result in json.loads(out.read_text())["results"].values():
        error = {name: each["error"] for name, each in result["accuracy"].items()}
        assert max(error[name] for name in ("ours", "dattri explicit", "torch by hand")) < 1e-3
        assert result["accuracy"]["ours"]["residual"] < 1e-4


@pytest.mark.slow
def test_curvature_is_right_where_the_peers_are_known_to_be_wrong(tmp_path):
    pytest.importorskip("torch")
    absent = curvature_peers.missing()
    out = tmp_path / "curvature.json"
    curvature.run(replace(curvature.SMALL, out=out))
    result = json.loads(out.read_text())
    results = result["results"]
    assert max(results["agreement"].values()) < 1e-10
    for task in results["tasks"].values():
        assert task["runners"]["ours"]["right"]
    assert results["products"]["product / gradient"]["flops"] < 3
    ragged, copies, silent = results["faults"].values()
    assert ragged["ours"] < 1e-5
    assert copies["ours"] == 1
    assert "indefinite" in silent["ours"]
    assert len(curvature.headline(result)) > len(curvature.TASKS)
    if "hessian-eigenthings" not in absent:
        assert ragged["hessian-eigenthings"] > 1e-3
        assert copies["hessian-eigenthings"] > 1
    if "PyHessian" not in absent:
        assert "failed" in results["tasks"]["density, MLP"]["runners"]["PyHessian"]
    if "curvlinops" not in absent:
        assert not results["tasks"]["product, ViT"]["runners"]["curvlinops"]["right"]


def test_curvature_goes_on_without_a_peer_and_says_so(monkeypatch):
    monkeypatch.setattr(curvature_peers, "PACKAGES", {"Nobody": ("nobody", "nobody_at_all")})
    assert "pip install nobody" in curvature_peers.missing()["Nobody"]


@pytest.mark.slow
def test_the_second_process_finds_its_programs(tmp_path):
    out = tmp_path / "compile_cache.json"
    step = {"step_model": "vit_mu/4", "step_size": 8, "step_batch_size": 4}
    compile_cache.run(compile_cache.Flags(cases=("step",), **step, out=out))
    without, first, second = json.loads(out.read_text())["results"]["rows"]
    assert second["programs"] > 0
    assert second["compile"] < min(without["compile"], first["compile"])


@pytest.mark.slow
def test_shadows_are_made_once_and_attacked(tmp_path):
    bench = replace(shadows.SMALL.bench, cache=tmp_path / "cache")
    flags = replace(shadows.SMALL, bench=bench, result=tmp_path / "shadows.json")
    content = shadows.run(flags)
    trained, unlearned = content["results"]["phases"]
    assert trained["most_programs"] == unlearned["most_programs"] == 1
    assert trained["processor_minutes"] > 0
    assert [row["attack"] for row in content["results"]["attacks"]] == [
        "LiRA, nothing unlearned", "LiRA", "U-LiRA", "RULI",
    ]  # fmt: skip
    for row in content["results"]["attacks"]:
        assert 0.3 < row["auc"] < 0.7
        assert row["members"] == row["others"]
        assert "tpr_0.1" in row
        assert "tpr_0.01" not in row  # 213 scores of others
    known = len(shadows.COMPILED)
    assert shadows.run(flags)["results"] == content["results"]
    assert not [name for name in shadows.COMPILED[known:] if "_epoch" in name]


BENCHMARKS = {
    "compile_cache": lambda result: result,
    "convolution": lambda result: result,
    "curvature": lambda result: result,
    "influence": lambda result: result["results"],
    "kronecker_trial": lambda result: result,
    "preconditioners": lambda result: result,
    "shadows": lambda result: result,
}
RESULTS = Path(__file__).parent.parent / "experiments" / "results"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_docstring_is_the_result(name):
    result = json.loads((RESULTS / f"benchmark-{name}.json").read_text())
    modules = {
        "compile_cache": compile_cache,
        "convolution": convolution,
        "curvature": curvature,
        "influence": influence,
        "kronecker_trial": kronecker_trial,
        "preconditioners": table,
        "shadows": shadows,
    }
    module = modules[name]
    for line in module.headline(BENCHMARKS[name](result)):
        assert line in module.__doc__


@pytest.mark.slow
def test_preconditioners_solve_in_fewer_products_and_a_second_run_measures_nothing_anew(tmp_path):
    small = preconditioners.SMALL
    flags = replace(small, data_dir=tmp_path, cache=tmp_path / "c", out=tmp_path / "p.json")
    preconditioners.run(flags)
    result = json.loads(flags.out.read_text())
    rows = result["results"]["rows"]
    sketches = ["Nystrom 5", "Nystrom 10"]
    kinds = ["none", "diagonal", "K-FAC", "EK-FAC", *sketches, "eigenvectors 20"]
    assert len(rows) == len(kinds) * len(preconditioners.TOLERANCES) * 2
    products = {
        kind: [row["products"] for row in rows if row["preconditioner"] == kind] for kind in kinds
    }
    assert sum(products["eigenvectors 20"]) < sum(products["none"])
    assert all(row["residual"] <= row["tol"] for row in rows if row["converged"])
    assert "by trust d = " in preconditioners.headline(result)[0]
    preconditioners.run(flags)
    assert json.loads(flags.out.read_text()) == result
    out = tmp_path / "k.json"
    kronecker_trial.run(
        kronecker_trial.Flags(("MLP 2k",), rank=5, repeats=1, counted=flags.out, out=out)
    )
    trial = json.loads(out.read_text())["results"]
    assert {row["preconditioner"] for row in trial["totals"]} == {
        "none", "Nystrom", "K-FAC", "EK-FAC",
    }  # fmt: skip
    assert all(row["seconds"] >= row["solve"] > 0 for row in trial["totals"])


def test_the_trial_of_kronecker_inverses_adds_preparing_to_products_times_a_step():
    def cost(**milliseconds):
        return {kind: {"process_ms": {"best": each}} for kind, each in milliseconds.items()}

    costs = {
        "step": {**cost(none=100, **{"Nystrom 5": 200}), **cost(**{"K-FAC": 300, "EK-FAC": 400})},
        "preparing": cost(**{"Nystrom 5": 1000, "K-FAC": 500, "EK-FAC": 700}),
    }
    common = {"case": "a", "damping": "0.1", "tol": 0.1, "converged": True}
    rows = [
        common | {"preconditioner": kind, "preparing": preparing, "products": products}
        for kind, preparing, products in (
            ("none", 0, 40), ("Nystrom 5", 5, 9), ("Nystrom 10", 10, 2), ("K-FAC", 20, 2),
            ("EK-FAC", 30, 2), ("diagonal", 0, 3),
        )
    ]  # fmt: skip
    rows.append(rows[0] | {"damping": "0.01"})  # where the others are not measured
    found = list(kronecker_trial.totals("a", costs, rows, 5))
    by_kind = {row["preconditioner"]: (row["seconds"], row["solve"]) for row in found}
    assert len(found) == 4
    np.testing.assert_allclose(by_kind["none"], (4, 4))
    np.testing.assert_allclose(by_kind["Nystrom"], (2.4, 0.4))  # 1 + 9 * .2 or 2 + 2 * .2
    np.testing.assert_allclose(by_kind["K-FAC"], (1.1, 0.6))
    np.testing.assert_allclose(by_kind["EK-FAC"], (1.5, 0.8))
    [counted] = kronecker_trial.counts(rows)
    assert counted["products"] == {"none": 40, "Nystrom": 12, "K-FAC": 2, "EK-FAC": 2}
    content = {"results": {"costs": {"a": costs}, "totals": found, "counts": [counted]}}
    first, _, _, *of_counts = kronecker_trial.headline(content)[-5:]
    assert first == (
        "a, K-FAC: half of Nystrom's time in 1 of 1 cells; the quickest in 1, twice so in 1"
    )
    assert of_counts[-1] == "a, EK-FAC: half of Nystrom's in 1 of 1 cells, fewer than plain CG in 1"


FOLDER = Path(preconditioners.__file__).parent
COMMANDS = [path.stem for path in sorted(FOLDER.glob("*.py")) if "class Flags" in path.read_text()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_of_the_flags_has_a_range_that_a_run_holds_it_against_first(name):
    module = import_module(f"experiments.benchmarks.{name}")
    default = module.Flags()
    for field in fields(default):
        value = getattr(default, field.name)
        several = isinstance(value, tuple)
        number = type(value[0] if several else value) in (int, float)
        bad = [(-1,) if several else -1] if number else []
        bad += [()] if several and field.name not in ("vit", "dampings") else []
        for each in bad:
            for refusing in (check, module.run):
                with pytest.raises(ValueError, match=f"`{field.name}` must .*, got (-1|none)"):
                    refusing(replace(default, **{field.name: each}))


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("augment", "--repeats 0", "`repeats` must be an integer >= 1, got 0."),
        ("compile_cache", "--cases none", "`cases` must be one of demo, conditioning, step, got"),
        ("compile_cache", "--step-model vit_foo/2", "or logistic, got 'vit_foo/2'."),
        ("curvature", "--size 1798", "`size` must be in [1, 1798), got 1798."),
        ("curvature", "--mlp logistic", "`mlp` must be mlp_SIZExSIZE..., got 'logistic'."),
        ("curvature", "--vit 3 64 4 4", "`vit` must have a patch that divides 8, and heads that"),
        ("federated", "--alpha nan", "`alpha` must be finite and > 0, got nan."),
        ("influence", "--l2 nan", "`l2` must be finite and > 0, got nan."),
        ("influence", "--models vit_mu/2", "`models` must be logistic or mlp_SIZExSIZE..., got"),
        ("kronecker_trial", "--cases none", "`cases` must be one of MLP 2k, ViT 40k, ViT 200k,"),
        ("kronecker_trial", "--counted none.json", "`counted` must be the JSON of the benchmark"),
        ("preconditioners", "--cases none", "`cases` must be one of MLP 2k, ViT 40k, ViT 200k,"),
        ("preconditioners", "--forget 1000", "`forget` must be below `size`, 1000, got 1000."),
        ("rbm", "--hidden 99", "`hidden` must be in [1, "),
        ("rbm", "--batch-sizes 37 41", "`batch_sizes` must divide one number of at most 1437, the"),
        ("scaling", "--num-classes 1", "`num_classes` must be finite and >= 2, got 1."),
        ("scaling", "--meshes model=1", "`meshes` must have the axis data, got 'model=1'."),
        ("shadows", "--shadows 2", "`shadows` must be finite and >= 6, got 2."),
        ("step", "--model mlp_8", "`model` must be vit_V/PATCH, got 'mlp_8'."),
        ("step", "--model vit_nano/5", "`model` 'vit_nano/5' needs an image whose sides its patch"),
    ],
)
def test_bad_words_are_refused_in_a_line(name, words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = import_module(f"experiments.benchmarks.{name}")
    with pytest.raises(SystemExit) as stop:
        main(module.Flags, module.run, description=None, args=words.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_preconditioners_go_on_with_the_same_systems_only():
    rule = "`size`, `forget`, `epochs` and `seed` must be those of MLP 2k in `out`, {'size': 1000,"
    out = RESULTS / "benchmark-preconditioners.json"
    with pytest.raises(ValueError, match=re.escape(rule)):
        preconditioners.run(preconditioners.Flags(size=200, out=out))
