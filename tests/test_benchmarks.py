"""The benchmarks run at their SMALL size, and both sides compute the same."""

import json
from dataclasses import replace

import pytest

from experiments.benchmarks import influence, step


@pytest.mark.slow
def test_step_agrees_with_pytorch_and_writes_its_ratios(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "step.json"
    step.run(replace(step.SMALL, out=out))
    results = json.loads(out.read_text())["results"]
    assert max(results["agreement"].values()) < step.TOLERANCE
    assert all(ratio["best"] > 0 for ratio in results["ratios"].values())


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
