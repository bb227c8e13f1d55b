"""Block CG against dense float64 solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense, symmetric

from famr_jax.curvature import solve
from famr_jax.curvature.block import solve_block


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
