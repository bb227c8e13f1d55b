"""Preconditioners against dense float64, on hard spectra, at any scale, in few products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense, symmetric

from famr_jax import curvature
from famr_jax.curvature import deflated, nystrom, solve, solve_block

KEY = jax.random.key(3)
DIM = 60

SPECTRA = {
    "power law": 10.0 / np.arange(1, DIM + 1) ** 2,
    "singular": np.r_[np.geomspace(10, 0.1, 20), np.zeros(40)],
    "crowded": np.r_[[10, 9, 8], np.linspace(0.01, 0.011, 57)],
    "multiple": np.r_[np.full(20, 5.0), np.full(20, 1.0), np.full(20, 0.01)],
    "flat": np.linspace(1, 2, DIM),
}


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


def like(dtype=jnp.float64):
    return {"a": jnp.zeros(DIM, dtype)}


def side(*shape, dtype=jnp.float64):
    return {"a": jnp.asarray(np.random.default_rng(1).normal(size=(*shape, DIM)), dtype)}


def dense_nystrom(matrix, rank):
    """The projection formula in NumPy, from the same random vectors."""
    draws = np.asarray(jax.random.normal(KEY, (rank, DIM), jnp.float64))
    q = np.linalg.qr(draws.T)[0]
    image = matrix @ q
    core = np.linalg.pinv(q.T @ image, rcond=1e-13, hermitian=True)
    return image @ core @ image.T


@pytest.mark.parametrize("name", SPECTRA)
def test_sketch_is_the_formula_and_lies_below_the_operator(name):
    matrix = symmetric(SPECTRA[name])
    found = nystrom(Dense(matrix), like(), rank=25, key=KEY)
    rows = np.asarray(found.rows)
    np.testing.assert_allclose(rows @ rows.T, np.eye(25), atol=1e-10)
    sketch = rows.T @ np.diag(found.values) @ rows
    np.testing.assert_allclose(sketch, dense_nystrom(np.asarray(matrix), 25), atol=1e-7)
    assert np.linalg.eigvalsh(np.asarray(matrix) - sketch)[0] > -1e-7
    assert np.all(np.diff(found.values) <= 1e-12)
    assert found.num_products == 25
    assert not found.negative_curvature
    assert found.why == "positive semidefinite on the sketch"


def test_exact_where_the_rank_is_that_of_the_operator():
    matrix = symmetric(SPECTRA["singular"])
    found = nystrom(Dense(matrix), like(), rank=25, key=KEY)
    wanted = np.sort(SPECTRA["singular"])[::-1][:25]
    np.testing.assert_allclose(found.values, wanted, atol=1e-7)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("damping", [1e-1, 1e-4])
def test_solutions_are_the_dense_ones_whatever_preconditions_them(name, damping):
    matrix = symmetric(SPECTRA[name])
    wanted = np.linalg.solve(np.asarray(matrix) + damping * np.eye(DIM), side(2)["a"].T).T
    sketch = nystrom(Dense(matrix), like(), rank=25, key=KEY)
    found = curvature.eigenvalues(Dense(matrix), like(), k=25, tol=1e-8, key=KEY)
    for rows, values in ((sketch.rows, sketch.values), (found.vectors, found.values)):
        preconditioner = deflated(rows, values, damping)
        form = np.asarray(jax.vmap(preconditioner)({"a": jnp.eye(DIM)})["a"])
        assert np.linalg.eigvalsh(form)[0] > 0
        np.testing.assert_allclose(form, form.T, atol=1e-12)
        settings = {"damping": damping, "tol": 1e-9, "max_steps": 400}
        settings["preconditioner"] = preconditioner
        one = solve(Dense(matrix), {"a": side(2)["a"][0]}, **settings)
        block = solve_block(Dense(matrix), side(2), **settings)
        scale = np.abs(wanted).max()
        for solution, x in ((one, wanted[0]), (block, wanted)):
            assert jnp.all(solution.converged)
            assert solution.why == "converged"
            np.testing.assert_allclose(solution.value["a"], x, atol=1e-4 * scale)


@pytest.mark.parametrize("block", [False, True])
def test_better_preconditioners_take_fewer_products(block):
    matrix, damping = Dense(symmetric(SPECTRA["power law"])), 1e-3
    sketch = nystrom(matrix, like(), rank=25, key=KEY)
    top = curvature.eigenvalues(matrix, like(), k=25, tol=1e-8, key=KEY)
    steps = []
    for preconditioner in (
        None,
        deflated(sketch.rows, sketch.values, damping),
        deflated(top.vectors, top.values, damping),
    ):
        ask = solve_block if block else solve
        b = side(2) if block else side()
        found = ask(
            matrix, b, damping=damping, tol=1e-6, max_steps=200, preconditioner=preconditioner
        )
        assert jnp.all(found.converged)
        steps.append(int(jnp.max(found.num_steps)))
    assert steps[0] > steps[1] >= steps[2]
    assert steps[2] <= steps[0] / 2


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12, 1e30])
def test_scale_does_not_matter_in_float32(scale):
    matrix = symmetric(SPECTRA["power law"]).astype(jnp.float32) * jnp.float32(scale)
    plain = symmetric(SPECTRA["power law"]).astype(jnp.float32)
    zeros = like(jnp.float32)
    found, same = (nystrom(Dense(m), zeros, rank=25, key=KEY) for m in (matrix, plain))
    np.testing.assert_allclose(found.values / np.float32(scale), same.values, rtol=1e-3, atol=1e-5)
    damping = np.float32(1e-2 * scale)
    preconditioner = deflated(found.rows, found.values, damping)
    b = side(dtype=jnp.float32)
    for ask, each in ((solve, b), (solve_block, side(2, dtype=jnp.float32))):
        solution = ask(
            Dense(matrix), each, damping=damping, tol=1e-4, preconditioner=preconditioner
        )
        assert jnp.all(solution.converged)


def test_indefinite_operators_are_said_and_their_preconditioner_is_positive_all_the_same():
    matrix = symmetric(np.linspace(-5, 10, DIM))
    sketch = nystrom(Dense(matrix), like(), rank=25, key=KEY)
    assert sketch.negative_curvature
    assert "indefinite" in sketch.why
    found = curvature.eigenvalues(Dense(matrix), like(), k=25, which="smallest", key=KEY)
    for rows, values in ((sketch.rows, sketch.values), (found.vectors, found.values)):
        preconditioner = deflated(rows, values, 0.1)
        assert jnp.all(preconditioner.factors > 0)
        for ask, b in ((solve, side()), (solve_block, side(2))):
            solution = ask(Dense(matrix), b, damping=0.1, preconditioner=preconditioner)
            assert not jnp.any(solution.converged)
            assert "indefinite" in solution.why
    # Noise of float32 alone is none.
    low = symmetric(SPECTRA["singular"]).astype(jnp.float32)
    assert not nystrom(Dense(low), like(jnp.float32), rank=25, key=KEY).negative_curvature


def test_the_zero_operator_has_the_zero_sketch():
    sketch = nystrom(Dense(jnp.zeros((DIM, DIM))), like(), rank=25, key=KEY)
    np.testing.assert_array_equal(sketch.values, 0)
    assert not sketch.negative_curvature
    found = solve(
        Dense(jnp.zeros((DIM, DIM))),
        side(),
        damping=2.0,
        preconditioner=deflated(sketch.rows, sketch.values, 2.0),
    )
    np.testing.assert_allclose(found.value["a"], side()["a"] / 2)


def test_powers_of_a_preconditioner():
    sketch = nystrom(Dense(symmetric(SPECTRA["crowded"])), like(), rank=25, key=KEY)
    whole = deflated(sketch.rows, sketch.values, 0.01)
    root, back = whole.power(0.5), whole.power(-1)
    for both in (root(root(side())), whole(whole(back(side())))):
        np.testing.assert_allclose(both["a"], whole(side())["a"], atol=1e-10)


def test_one_program_for_all_dampings():
    traces = []

    def matvec(v):
        traces.append(1)
        return {"a": jnp.linspace(0, 3, DIM) * v["a"]}

    matvec = jax.tree_util.Partial(matvec)
    sketch = nystrom(matvec, like(), rank=25, key=KEY)
    nystrom(matvec, like(), rank=25, key=jax.random.key(0))
    seen = len(traces)
    counts = []
    for damping in (0.1, 0.2):
        made = deflated(sketch.rows, sketch.values, damping)
        solve(matvec, side(), damping=damping, preconditioner=made)
        solve_block(matvec, side(2), damping=damping, preconditioner=made)
        counts.append(len(traces))
    assert seen > 0
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: nystrom(m, like(), rank=0, key=KEY), "`rank` must be an integer >= 1"),
        (lambda m: nystrom(m, like(), rank=61, key=KEY), "`rank` must be at most the dimension 60"),
        (lambda m: nystrom(m, like(jnp.int32), rank=3, key=KEY), "`like` must hold arrays of one"),
        (lambda m: nystrom(m, like(), rank=3, key=jax.random.PRNGKey(0)), "`key` must come from"),
        (lambda m: deflated(jnp.eye(3, 60), jnp.ones(2), 0.1), "`values` must be one for each"),
        (lambda m: deflated(jnp.eye(3, 60), jnp.ones(3), -0.1), "`damping` must be finite and >= "),
        (
            lambda m: solve_block(m, side(2), preconditioner=lambda r: r),
            "`preconditioner` must have a root: a `Preconditioner`, got function",
        ),
    ],
)
def test_bad_arguments_are_named(ask, words):
    with pytest.raises(ValueError, match=words):
        ask(Dense(jnp.eye(DIM)))
