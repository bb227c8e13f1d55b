"""Solvers against dense float64 solutions, and what they say when they fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense, problem, symmetric

from famr_jax import curvature


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


SPECTRA = {
    "definite": np.linspace(0.1, 10, 50),
    "indefinite": np.linspace(-5, 10.3, 50),
    "singular": np.r_[np.zeros(5), np.linspace(1, 10, 45)],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("tol", [1e-4, 1e-10])
def test_solution_is_the_dense_one_or_says_why_not(name, method, tol):
    matrix = symmetric(SPECTRA[name])
    b = {"a": jnp.asarray(np.random.default_rng(1).normal(size=50))}
    found = curvature.solve(Dense(matrix), b, damping=0.01, tol=tol, max_steps=500, method=method)
    shifted = np.asarray(matrix) + 0.01 * np.eye(50)
    residual = np.linalg.norm(b["a"] - shifted @ found.value["a"]) / np.linalg.norm(b["a"])
    np.testing.assert_allclose(found.residual, residual, rtol=1e-3, atol=1e-14)
    assert bool(found.negative_curvature) == (name == "indefinite")
    if name == "indefinite" and method == "cg":
        assert not found.converged
        assert "indefinite" in found.why
    else:
        assert found.converged
        assert found.why == "converged"
        assert found.residual <= tol


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_float32_floor_is_said_and_not_looped_at(method):
    matrix = symmetric(np.linspace(0.01, 10, 50)).astype(jnp.float32)
    b = {"a": jnp.ones(50, jnp.float32)}
    found = curvature.solve(Dense(matrix), b, tol=1e-12, max_steps=5000, method=method)
    assert not found.converged
    assert "floor" in found.why
    assert found.residual < 1e-4
    assert found.num_steps < 1000


def test_many_right_hand_sides_by_vmap_and_preconditioning():
    matrix = symmetric(np.geomspace(1e-3, 10, 50))
    b = {"a": jnp.asarray(np.random.default_rng(1).normal(size=(4, 50)))}

    def one(b):
        return curvature.solve(Dense(matrix), b, tol=1e-8, max_steps=2000)

    found = jax.vmap(one)(b)
    np.testing.assert_allclose(found.value["a"], np.linalg.solve(matrix, b["a"].T).T, rtol=1e-4)
    inverse = Dense(jnp.asarray(np.linalg.inv(matrix + 1e-4 * np.eye(50))))
    first = {"a": b["a"][0]}
    plain = curvature.solve(Dense(matrix), first, tol=1e-8, max_steps=2000)
    helped = curvature.solve(Dense(matrix), first, tol=1e-8, max_steps=2000, preconditioner=inverse)
    assert helped.converged
    assert helped.num_steps < plain.num_steps / 3


def test_zero_right_hand_side_and_bad_arguments():
    matvec, b = Dense(jnp.eye(3)), {"a": jnp.zeros(3)}
    assert curvature.solve(matvec, b).converged
    for bad in ({"tol": 0.0}, {"damping": float("nan")}, {"max_steps": 2.5}, {"method": "gmres"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            curvature.solve(matvec, b, **bad)
    with pytest.raises(ValueError, match="preconditioner"):
        curvature.solve(matvec, b, method="minres", preconditioner=matvec)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_what_is_not_finite_has_not_converged(method):
    matrix, ones = symmetric(np.linspace(0.1, 10, 20)), jnp.ones(20)
    for bad in (jnp.nan, jnp.inf):
        for a, b in ((matrix, ones.at[3].set(bad)), (matrix.at[0, 0].set(bad), ones)):
            found = curvature.solve(Dense(a), {"a": b}, method=method, max_steps=10**6)
            assert not found.converged
            assert "not finite" in found.why
            assert found.num_steps < 100
            assert not found.residual < 1


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_right_hand_sides_whose_squares_are_no_float32(method):
    matrix = symmetric(np.linspace(0.1, 10, 20)).astype(jnp.float32)
    for scale in (1e-30, 1e30):
        b = {"a": jnp.full(20, scale, jnp.float32)}
        found = curvature.solve(Dense(matrix), b, method=method, damping=jnp.float64(0.1))
        wanted = np.linalg.solve(np.float64(matrix) + 0.1 * np.eye(20), np.ones(20))
        assert found.converged
        np.testing.assert_allclose(np.float64(found.value["a"]) / scale, wanted, rtol=1e-3)


def test_minres_sees_the_negative_curvature_that_cg_sees():
    """No Lanczos vector has it, their span has."""
    matvec, b = Dense(symmetric(np.r_[-0.05, np.linspace(1, 10, 49)])), {"a": jnp.ones(50)}
    found = curvature.solve(matvec, b, method="minres")
    assert found.converged
    assert found.negative_curvature
    assert curvature.solve(matvec, b).negative_curvature


def test_a_matrix_of_zeros_has_no_solution():
    b = {"a": jnp.ones(20)}
    found = curvature.solve(Dense(jnp.zeros((20, 20))), b, method="minres", max_steps=1000)
    assert found.residual == 1
    assert "singular" in found.why
    assert "singular" in curvature.solve(Dense(jnp.zeros((20, 20))), b).why


def test_many_solutions_tell_every_reason_once():
    matvec = Dense(symmetric(np.linspace(0.1, 10, 20)))
    b = {"a": jnp.ones((3, 20)).at[0, 0].set(jnp.nan)}
    found = jax.vmap(lambda b: curvature.solve(matvec, b))(b)
    assert (
        found.why == "converged; met numbers that are not finite: look at A and b, or raise damping"
    )
    found = curvature.solve_block(matvec, b)
    assert not found.converged.any()
    assert "not finite" in found.why


def test_right_hand_sides_that_are_no_vectors():
    mixed = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.float32)}
    for b in (
        {"a": jnp.ones((3, 3), int)},
        {"a": jnp.ones((3, 3), complex)},
        mixed,
        {},
        {"a": 1.0},
    ):
        for solve in (curvature.solve, curvature.solve_block):
            with pytest.raises(ValueError, match="one real floating-point type, got"):
                solve(curvature.Identity(), b)
    with pytest.raises(ValueError, match="at least one number"):
        curvature.solve_block(curvature.Identity(), {"a": jnp.ones((0, 3))})


def test_lineax_agrees():
    lineax = pytest.importorskip("lineax")
    params, batch, _, outputs_fn, output_loss = problem("vit")
    matvec = curvature.GaussNewton(outputs_fn, output_loss, params, batch)
    b = jax.tree.map(jnp.ones_like, params)
    found = curvature.solve(matvec, b, damping=0.1, tol=1e-10, max_steps=500)
    shifted = matvec + 0.1 * curvature.Identity()
    like = jax.eval_shape(lambda: params)
    operator = lineax.FunctionLinearOperator(shifted, like, tags=lineax.positive_semidefinite_tag)
    wanted = lineax.linear_solve(operator, b, lineax.CG(rtol=1e-12, atol=0)).value
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), found.value, wanted)


def test_one_program_for_all_dampings_tolerances_and_data():
    params, batch, loss_fn, *_ = problem("logistic")
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    def solve(params, damping):
        matvec = curvature.Hessian(counted, params, batch)
        curvature.solve(matvec, params, damping=damping, tol=1e-6 * damping)

    solve(params, 0.1)
    count = len(traces)
    solve(jax.tree.map(lambda leaf: leaf + 1, params), 0.2)
    assert len(traces) == count > 0


LEAST = {
    "two zeros": np.r_[0, 0, np.logspace(0, -2, 10)],
    "indefinite": np.r_[np.zeros(9), np.linspace(-1, 1, 31)[np.linspace(-1, 1, 31) != 0]],
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", LEAST)
def test_minres_finds_the_least_residual_of_a_system_without_solution(name, dtype):
    """Steps beyond it divide by rounding: they ended at x = 0, with the advice to take more."""
    spread = LEAST[name]
    matrix = symmetric(spread).astype(dtype)
    b = np.ones(len(spread))
    found = curvature.solve(
        Dense(matrix), {"a": jnp.asarray(b, dtype)}, method="minres", max_steps=400
    )
    values, vectors = np.linalg.eigh(np.asarray(matrix, float))
    least = np.linalg.norm(vectors[:, np.abs(values) < 1e-5].T @ b) / np.linalg.norm(b)
    np.testing.assert_allclose(found.residual, least, rtol=1e-3)
    assert not found.converged
    assert "least residual" in found.why
    assert found.num_steps < 200


def test_unfinished_cg_is_the_best_of_its_space_and_not_zero():
    """Its residual is above one, where x = 0 has one; its error in the A-norm is smaller."""
    matrix = symmetric(np.logspace(0, -5, 300)).astype(jnp.float32)
    b = np.random.default_rng(0).normal(size=(2, 300))
    exact = np.asarray(matrix, float)
    right = {"a": jnp.asarray(b, jnp.float32)}
    single = curvature.solve(Dense(matrix), {"a": right["a"][0]}, max_steps=60)
    block = curvature.solve_block(Dense(matrix), right, max_steps=20)
    for x, b_j in ((single.value["a"], b[0]), *zip(block.value["a"], b, strict=True)):
        wanted = np.linalg.solve(exact, b_j)
        error = np.asarray(x, float) - wanted
        assert error @ exact @ error < 0.9 * wanted @ exact @ wanted
    residual = np.linalg.norm(b[0] - exact @ np.asarray(single.value["a"], float))
    np.testing.assert_allclose(single.residual, residual / np.linalg.norm(b[0]), rtol=0.05)
    assert single.residual > 1
    assert not single.converged
    assert "A-norm" in single.why


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e20, 1e30])
def test_scale_of_the_matrix_does_not_matter_in_float32(scale):
    """The squares of such numbers vanish or overflow."""
    spread = np.logspace(0, -2, 24)
    matrix, b = symmetric(spread).astype(jnp.float32), np.ones(24)
    matvec, like = Dense(matrix * np.float32(scale)), {"a": jnp.ones(24, jnp.float32)}
    wanted = np.linalg.solve(np.asarray(matrix, float), b)
    for method in ("cg", "minres"):
        found = curvature.solve(matvec, like, tol=1e-4, method=method)
        assert found.why == "converged"
        x = np.asarray(found.value["a"], float) * scale
        np.testing.assert_allclose(x, wanted, atol=1e-2 * np.abs(wanted).max())
    key = jax.random.key(0)
    found = curvature.eigenvalues(matvec, like, k=1, which="smallest", key=key)
    np.testing.assert_allclose(found.values / scale, 0.01, rtol=1e-3)
    density = curvature.density(matvec, like, num_steps=24, num_probes=2, key=key)
    np.testing.assert_allclose(density.nodes[0] / scale, spread[::-1], rtol=1e-2)
    trace, error = curvature.trace(matvec, like, key=key)
    assert abs(trace / scale - spread.sum()) < 5 * error / scale < 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda a, b: curvature.solve(a, b),
        lambda a, b: curvature.solve(a, b, method="minres"),
        lambda a, b: curvature.solve_block(a, {"a": b["a"][None]}),
        lambda a, b: curvature.eigenvalues(a, b, k=2, key=jax.random.key(0)),
        lambda a, b: curvature.eigenspace(a, b, k=2, size=10, key=jax.random.key(0)),
    ],
)
def test_a_program_holds_one_product(ask):
    """Each further one is as much to compile, and to read from a cache, as the model's own."""
    matrix, traces = symmetric(np.linspace(1, 2, 12)), []

    def matvec(v):
        traces.append(None)
        return {"a": matrix @ v["a"]}

    ask(matvec, {"a": jnp.ones(12)})
    assert len(traces) == 1
