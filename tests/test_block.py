"""Many right-hand sides, by block CG and by factors, against dense float64 solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense, symmetric

from famr_jax.curvature import block, solve
from famr_jax.curvature.block import solve_block
from famr_jax.curvature.dense import Matrix, matrix_of, solve_dense


@pytest.fixture(autouse=True)
def _x64(x64):
    """Everything here is float64 unless it says otherwise."""


def right_sides(count, size=50, seed=1):
    return {"a": jnp.asarray(np.random.default_rng(seed).normal(size=(count, size)))}


@pytest.mark.parametrize("count", [1, 7])
def test_all_right_hand_sides_are_solved_in_few_products(count):
    matrix = symmetric(np.geomspace(1e-3, 10, 50))
    b = right_sides(count)
    found = solve_block(Dense(matrix), b, damping=1e-3, tol=1e-8, max_steps=500)
    wanted = np.linalg.solve(matrix + 1e-3 * np.eye(50), b["a"].T).T
    np.testing.assert_allclose(found.value["a"], wanted, rtol=1e-4, atol=1e-4)
    residual = b["a"] - found.value["a"] @ (matrix + 1e-3 * np.eye(50))
    relative = np.linalg.norm(residual, axis=1) / np.linalg.norm(b["a"], axis=1)
    np.testing.assert_allclose(found.residual, relative, rtol=1e-3, atol=1e-13)
    assert found.converged.all()
    assert not found.negative_curvature.any()
    assert found.num_steps.shape == (count,)
    one = {"a": b["a"][0]}
    alone = solve(Dense(matrix), one, damping=1e-3, tol=1e-8, max_steps=500)
    assert found.num_steps[0] < alone.num_steps * (1.1 if count == 1 else 0.5)


def test_repeated_and_zero_right_hand_sides_do_no_harm():
    matrix = symmetric(np.geomspace(0.1, 10, 50))
    b = right_sides(3)
    rows = jnp.concatenate([b["a"], b["a"], 1e6 * b["a"][:1], jnp.zeros((1, 50))])
    found = solve_block(Dense(matrix), {"a": rows}, tol=1e-10)
    np.testing.assert_allclose(found.value["a"], np.linalg.solve(matrix, rows.T).T, rtol=1e-6)
    assert found.converged.all()


def test_indefinite_matrix_is_said_so():
    found = solve_block(Dense(symmetric(np.linspace(-5, 10.3, 50))), right_sides(4))
    assert not found.converged.any()
    assert found.negative_curvature.all()


def test_float32_floor_is_said_and_not_looped_at():
    matrix = symmetric(np.linspace(0.01, 10, 50)).astype(jnp.float32)
    b = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), right_sides(4))
    found = solve_block(Dense(matrix), b, tol=1e-12, max_steps=5000)
    assert not found.converged.any()
    assert (found.residual < 1e-4).all()
    assert (found.num_steps < 1000).all()


def test_out_of_steps_and_bad_arguments():
    matvec, b = Dense(symmetric(np.geomspace(1e-3, 10, 50))), right_sides(4)
    assert not solve_block(matvec, b, tol=1e-10, max_steps=3).converged.any()
    for bad in ({"tol": 0.0}, {"damping": float("nan")}, {"max_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            solve_block(matvec, b, **bad)
    with pytest.raises(ValueError, match="at most 50 columns, got 51"):
        solve_block(matvec, right_sides(51))


@pytest.mark.parametrize("at_once", [7, 128])
def test_formed_matrix_is_the_operator(at_once):
    matrix = symmetric(np.linspace(-5, 10, 50))
    formed = matrix_of(Dense(matrix), {"a": jnp.zeros(50)}, at_once=at_once)
    np.testing.assert_allclose(formed.array, matrix, atol=1e-12)
    v = {"a": jnp.arange(50.0)}
    np.testing.assert_allclose(formed(v)["a"], matrix @ v["a"], rtol=1e-9)


def test_factors_solve_indefinite_systems_and_say_so():
    matrix, b = symmetric(np.linspace(-5, 10.3, 50)), right_sides(4)
    b["a"] = b["a"].at[2].set(0)
    formed = matrix_of(Dense(matrix), {"a": jnp.zeros(50)})
    found = solve_dense(formed, b, damping=0.1, tol=1e-10)
    damped = matrix + 0.1 * jnp.eye(50)
    np.testing.assert_allclose(found.value["a"], np.linalg.solve(damped, b["a"].T).T, rtol=1e-6)
    assert found.converged.all()
    along = jnp.sum(found.value["a"] * b["a"], axis=1)
    np.testing.assert_array_equal(found.negative_curvature, along < 0)
    assert (found.num_steps == 50).all()


def test_factors_are_refined_and_a_singular_matrix_is_not_called_solved():
    def scaled(low):
        return symmetric(np.geomspace(low, 10, 50)).astype(jnp.float32)

    b = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), right_sides(4))
    like = {"a": jnp.zeros(50, jnp.float32)}

    def solved(matrix, tol):
        return solve_dense(matrix_of(Dense(matrix), like), b, tol=tol)

    once, twice = solved(scaled(1e-3), 1.0), solved(scaled(1e-3), 1e-12)
    assert (twice.residual <= once.residual).all()
    assert (twice.residual < once.residual).any()
    assert once.converged.all()
    assert not twice.converged.any()
    singular = solved(jnp.zeros((50, 50), jnp.float32), 1e-5)
    assert not singular.converged.any()
    assert "of a singular matrix" in singular.why
    with pytest.raises(ValueError, match="`at_once` must be"):
        matrix_of(Dense(scaled(1.0)), like, at_once=0)
    with pytest.raises(ValueError, match="`tol` must be"):
        solve_dense(matrix_of(Dense(scaled(1.0)), like), b, tol=0.0)


def test_factors_of_a_singular_matrix_give_way_to_its_pseudo_inverse():
    """As of a Hessian without ridge: pixels that are always zero, two logits that move alike."""
    block_ = np.kron(np.diag([0.0, 0.0, 1.0, 4.0]), [[0.25, -0.25], [-0.25, 0.25]])
    formed = matrix_of(Dense(jnp.asarray(block_)), {"a": jnp.zeros(8)})
    inside = {"a": right_sides(3, 8)["a"] @ block_}
    found = solve_dense(formed, {"a": inside["a"].at[1].set(0)}, tol=1e-10)
    wanted = np.array(inside["a"] @ np.linalg.pinv(block_))
    wanted[1] = 0
    np.testing.assert_allclose(found.value["a"], wanted, atol=1e-12)
    assert found.converged.all()
    assert not found.negative_curvature.any()
    outside = solve_dense(formed, right_sides(3, 8), tol=1e-10)
    assert not outside.converged.any()
    assert (outside.residual < 1).all()
    assert outside.why.endswith("use float64")


def test_numbers_that_are_not_finite_stay_in_their_column_and_are_said():
    matrix, b = symmetric(np.linspace(1, 10, 50)), right_sides(3)
    formed = matrix_of(Dense(matrix), {"a": jnp.zeros(50)})
    found = solve_dense(formed, {"a": b["a"].at[1, 3].set(jnp.nan)}, tol=1e-10)
    np.testing.assert_array_equal(found.converged, [True, False, True])
    assert "not finite" in found.why
    wanted = np.linalg.solve(matrix, b["a"].T).T
    np.testing.assert_allclose(found.value["a"][::2], wanted[::2], rtol=1e-6)
    assert jnp.isnan(found.value["a"][1]).any()
    none = solve_dense(matrix_of(Dense(matrix.at[0, 0].set(jnp.nan)), {"a": jnp.zeros(50)}), b)
    assert not none.converged.any()
    assert not none.negative_curvature.any()
    assert none.why.startswith("met numbers that are not finite")
    with pytest.raises(ValueError, match="`b` must hold 50 numbers for each column, got 49"):
        solve_dense(formed, right_sides(3, 49))


def test_rows_that_depend_on_each_other_get_an_orthonormal_basis():
    rng = np.random.default_rng(0)
    for smallest in (1.0, 1e-3, 1e-12, 0.0):
        mixed = symmetric(np.geomspace(max(smallest, 1e-300), 1, 6)) @ rng.normal(size=(6, 50))
        for dtype, close in ((jnp.float64, 1e-12), (jnp.float32, 1e-4)):
            rows = jnp.asarray(mixed, dtype)
            q, r = block.factor(rows)
            np.testing.assert_allclose(q @ q.T, np.eye(6), atol=close)
            np.testing.assert_allclose(r.T @ q, rows, atol=close * jnp.abs(rows).max())


def test_singular_systems_get_the_least_solution_and_ill_conditioned_ones_all_of_theirs():
    """LU leaves a small residual, and x up to 160 times too long by its part in the null space."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        basis = np.linalg.qr(draw.normal(size=(40, 40)))[0]
        inside = draw.normal(size=(3, 40))
        for zeros, least in ((8, 0.0), (0, 1e-4)):
            spread = np.r_[np.full(8, least), draw.uniform(0.5, 2, size=32)]
            exact = (basis * spread) @ basis.T
            matrix = jnp.asarray(exact + exact.T, jnp.float32) / 2
            b = {"a": jnp.asarray(inside @ exact, jnp.float32)}
            found = solve_dense(Matrix(matrix), b, tol=1e-4)
            assert found.converged.all()
            wanted = inside - inside @ basis[:, :zeros] @ basis[:, :zeros].T
            off = np.linalg.norm(found.value["a"] - wanted, axis=1)
            assert np.all(off < 1e-2 * np.linalg.norm(wanted, axis=1)), (seed, zeros)
