"""The main job's curvature store: what is kept is the curvature, and what is told is true."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from famr_jax import curvature
from famr_jax.cli import forget, storing
from famr_jax.cli.opening import open_bench


def flags(root, **changes):
    places = {"out": root / "out", "cache": root / "cache", "data_dir": root / "data"}
    return replace(forget.SMALL, bench=replace(forget.SMALL.bench, **places), **changes)


def test_what_is_kept_is_the_curvature_and_what_is_told_is_true(tmp_path, capsys):
    bench = open_bench(flags(tmp_path).bench)
    cases = bench.forget_sets(("class:3",))
    params = jax.tree.map(lambda leaf: leaf + 0.1, bench.model.init(jax.random.key(1)))
    told = storing.stored(bench, cases, params, 8)
    space = curvature.load(bench.out / storing.FILE)
    assert space.rows.shape == (8, told["dim"])
    assert told["directions"] == 8
    assert told["bytes"] == 4 * 8 * (told["dim"] + 8)
    assert space.size == len(bench.train)

    def outputs(params, batch):
        return bench.model.apply(params, batch.x)

    matrix = curvature.fisher(outputs, params, bench.train)
    exact = curvature.inside(matrix, space.rows, params)
    np.testing.assert_allclose(space.matrix, exact, atol=1e-4 * float(jnp.max(exact)))
    gone = bench.in_memory(cases[0].mask)

    def loss(params):
        log_p = jax.nn.log_softmax(outputs(params, gone))
        return -jnp.mean(jnp.take_along_axis(log_p, gone.labels[:, None], 1))

    slope = ravel_pytree(jax.grad(loss)(params))[0]
    rest = slope - (space.rows @ slope) @ space.rows
    [entry] = told["outside"]
    share = jnp.linalg.norm(rest) / jnp.linalg.norm(slope)
    np.testing.assert_allclose(entry["share"], share, rtol=1e-2)
    words = capsys.readouterr().out
    assert f"curvature store: 8 directions of {told['dim']}" in words
    assert f"{entry['forget']} {entry['share']:.0%}" in words
    again = storing.stored(bench, cases, params, 8)  # read, not computed
    assert again["products"] == told["products"]


@pytest.mark.slow
def test_the_main_job_keeps_a_store(tmp_path):
    found = forget.run(flags(tmp_path, forget=("class:3",), study=False, store=5))
    assert found["results"]["store"]["directions"] == 5
    assert (tmp_path / "out" / storing.FILE).exists()
