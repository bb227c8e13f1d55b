"""The benchmarks run at their SMALL size, and both sides compute the same."""

import json
from dataclasses import replace

import pytest

from experiments.benchmarks import step


@pytest.mark.slow
def test_step_agrees_with_pytorch_and_writes_its_ratios(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "step.json"
    step.run(replace(step.SMALL, out=out))
    results = json.loads(out.read_text())["results"]
    assert max(results["agreement"].values()) < step.TOLERANCE
    assert all(ratio["best"] > 0 for ratio in results["ratios"].values())
