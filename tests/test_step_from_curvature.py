"""A step from the curvature: its eigenvalue against a dense one, SMALL, verdicts, refusals."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison import step_from_curvature as step
from experiments.comparison import step_page
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax.losses import cross_entropy
from famr_jax.methods import gradient_ascent
from famr_jax.types import Batch, Pair

RESULTS = {k: r for k, r in read_results().items() if k.startswith("step_from_curvature")}


def apply_fn(params, x):
    return x.reshape(len(x), -1) @ params["kernel"]


def test_the_eigenvalue_is_that_of_the_dense_matrix_between_the_scales():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"kernel": jax.random.normal(keys[0], (4, 3))}
    x = jax.random.normal(keys[1], (8, 2, 2, 1))
    batch = Batch(x, jnp.arange(8) % 3)

    def ascent(flat):
        logits = apply_fn({"kernel": flat.reshape(4, 3)}, x)
        return -jnp.mean(cross_entropy(logits, batch.labels))

    flat = params["kernel"].ravel()
    dense, gradient = jax.hessian(ascent)(flat), jax.grad(ascent)(flat)
    method, sets = gradient_ascent(apply_fn), Pair(batch, batch)
    plain = step.largest(method, params, sets, keys[2], adam=False)
    np.testing.assert_allclose(plain, np.abs(np.linalg.eigvalsh(dense)).max(), rtol=1e-4)
    # A minibatch of all eight: the mean square of the gradients is the square of the one.
    scale = (jnp.abs(gradient) + step.EPSILON) ** -0.5
    wanted = np.abs(np.linalg.eigvalsh(scale[:, None] * dense * scale)).max()
    found = step.largest(method, params, sets, keys[2], adam=True, batch_size=8)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_small_runs_and_holds_both_proposals_against_the_grid(tmp_path):
    bench = replace(step.SMALL.bench, out=tmp_path / "out", cache=tmp_path / "cache")
    content = run(step.EXPERIMENT, replace(step.SMALL, bench=bench))
    columns = content["results"]["rows"]
    assert columns["by"] == ["", *(["grid"] * 4 + list(step_page.PROPOSALS)) * 2]
    assert all(lr > 0 for lr in columns["lr"][1:])
    assert len(set(columns["lr"][5:7])) == 2
    assert len(step_page.headline(content)) == 1
    assert ledger.ledger({"step_from_curvature": content})
    assert "grid" in (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in json.dumps(content)


def verdict(*ends):
    """The verdict where proposals end at these pairs of Ret-Acc and Tug of War."""
    rows = [{"method": "original", "by": "", "lr": None, "ret_acc": 0.95, "tow": 0.1}]
    for i, (ret_acc, tow) in enumerate(ends):
        for by, numbers in (
            ("grid", (0.94, 0.9)),
            ("retained", (0.1, 0.0)),
            ("own", (ret_acc, tow)),
        ):
            found = dict(zip(("ret_acc", "tow"), numbers, strict=True))
            rows.append({"method": f"m{i}", "by": by, "lr": 1e-3} | found)
    rows = [row | {"model": "mlp", "forget": "class:3", "for_acc": 0.0} for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    flags = {"methods": ["m"] * len(ends)}
    return step_page.claims({"rows": columns}, flags)[0]["verdict"]


def test_a_proposal_must_keep_the_accuracy_and_reach_the_grid():
    good, lost, far = (0.9, 0.86), (0.84, 0.86), (0.9, 0.84)
    assert verdict(good, good) == "holds"
    assert verdict(good, lost) == verdict(good, far) == "mixed"
    assert verdict(good, lost, far) == "fails"


def test_refuses_a_method_that_descends_nothing():
    with pytest.raises(ValueError, match="`methods` must descend an objective, got 'ssd'"):
        run(step.EXPERIMENT, replace(step.SMALL, methods=("ssd",)))


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_results(name):
    for line in step_page.headline(RESULTS[name]):
        assert line in step.__doc__
