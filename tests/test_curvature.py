"""Operators, solvers and spectra against dense float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from famr_jax import losses, models
from famr_jax.curvature import operators, spectrum
from famr_jax.curvature.solve import solve
from famr_jax.types import Batch, pytree

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytree
class Dense:
    """A matrix on vectors of one leaf."""

    matrix: object

    def __call__(self, v):
        return {"a": self.matrix @ v["a"]}


def symmetric(eigenvalues, seed=0):
    size = len(eigenvalues)
    q = scipy.stats.ortho_group.rvs(size, random_state=seed)
    matrix = q @ np.diag(eigenvalues) @ q.T
    return jnp.asarray((matrix + matrix.T) / 2)


def problem(name, n=13):
    """A small net in float64 at generic weights, its data, and its per-example losses."""
    model = models.create(name, num_classes=3, image_shape=(4, 4, 1))
    keys = jax.random.split(KEY, 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(keys[0]))
    flat, unravel = ravel_pytree(params)
    params = unravel(flat + 0.3 * jax.random.normal(keys[1], flat.shape))
    x = jax.random.normal(keys[2], (n, 4, 4, 1), jnp.float64)
    batch = Batch(x, jnp.arange(n) % 3)

    def loss_fn(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.labels, label_smoothing=0.1)

    def outputs_fn(params, batch):
        return model.apply(params, batch.x)

    def output_loss(outputs, batch):
        return losses.cross_entropy(outputs, batch.labels, label_smoothing=0.1)

    return params, batch, loss_fn, outputs_fn, output_loss


def dense(matvec, params):
    flat, unravel = ravel_pytree(params)
    columns = jax.jit(jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0]))(jnp.eye(flat.size))
    return np.asarray(columns)


def jacobian(function, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jacobian(lambda flat: function(unravel(flat)))(flat))


MODELS = ["logistic", "mlp_5"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [None, 13, 5, 1])
def test_operators_are_their_dense_matrices_whatever_the_micro_batch(name, batch_size):
    params, batch, loss_fn, outputs_fn, output_loss = problem(name)
    flat, unravel = ravel_pytree(params)
    n = len(batch)
    mean = lambda flat: jnp.mean(loss_fn(unravel(flat), batch))  # noqa: E731
    hessian = np.asarray(jax.hessian(mean)(flat))
    j = jacobian(lambda p: outputs_fn(p, batch), params)
    p = np.asarray(jax.nn.softmax(outputs_fn(params, batch)))
    inner = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    gauss_newton = np.einsum("nci,ncd,ndj->ij", j, inner, j) / n
    g = jacobian(lambda p: loss_fn(p, batch), params)
    wanted = [
        (operators.Hessian(loss_fn, params, batch, batch_size), hessian),
        (operators.GaussNewton(outputs_fn, output_loss, params, batch, batch_size), gauss_newton),
        (operators.fisher(outputs_fn, params, batch, batch_size=batch_size), gauss_newton),
        (operators.EmpiricalFisher(loss_fn, params, batch, batch_size), g.T @ g / n),
    ]
    for matvec, matrix in wanted:
        np.testing.assert_allclose(dense(matvec, params), matrix, atol=1e-12)
        np.testing.assert_allclose(dense(operators.linearized(matvec), params), matrix, atol=1e-12)


def test_algebra_and_restriction():
    params, batch, loss_fn, *_ = problem("mlp_5")
    hessian = operators.Hessian(loss_fn, params, batch)
    matrix = dense(hessian, params)
    both = 2.0 * hessian + 0.5 * operators.Identity()
    wanted = 2 * matrix + 0.5 * np.eye(len(matrix))
    np.testing.assert_allclose(dense(both, params), wanted, atol=1e-12)
    head = operators.Restricted(hessian, params, lambda path: path.startswith("head"))
    mark = lambda path, leaf: jnp.full(leaf.shape, path[0].key == "head", float)  # noqa: E731
    marks = jax.tree_util.tree_map_with_path(mark, params)
    rows = np.flatnonzero(ravel_pytree(marks)[0])
    wanted = matrix[np.ix_(rows, rows)]
    np.testing.assert_allclose(dense(head, head.select(params)), wanted, atol=1e-12)


def test_hessian_is_gauss_newton_for_a_linear_model():
    params, batch, loss_fn, outputs_fn, output_loss = problem("logistic")
    first = dense(operators.Hessian(loss_fn, params, batch), params)
    second = dense(operators.GaussNewton(outputs_fn, output_loss, params, batch), params)
    np.testing.assert_allclose(first, second, atol=1e-13)


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
    found = solve(Dense(matrix), b, damping=0.01, tol=tol, max_steps=500, method=method)
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
    found = solve(Dense(matrix), b, tol=1e-12, max_steps=5000, method=method)
    assert not found.converged
    assert "floor" in found.why
    assert found.residual < 1e-4
    assert found.num_steps < 1000


def test_many_right_hand_sides_by_vmap_and_preconditioning():
    matrix = symmetric(np.geomspace(1e-3, 10, 50))
    b = {"a": jnp.asarray(np.random.default_rng(1).normal(size=(4, 50)))}
    one = lambda b: solve(Dense(matrix), b, tol=1e-8, max_steps=2000)  # noqa: E731
    found = jax.vmap(one)(b)
    np.testing.assert_allclose(found.value["a"], np.linalg.solve(matrix, b["a"].T).T, rtol=1e-4)
    inverse = Dense(jnp.asarray(np.linalg.inv(matrix + 1e-4 * np.eye(50))))
    first = {"a": b["a"][0]}
    plain = solve(Dense(matrix), first, tol=1e-8, max_steps=2000)
    helped = solve(Dense(matrix), first, tol=1e-8, max_steps=2000, preconditioner=inverse)
    assert helped.converged
    assert helped.num_steps < plain.num_steps / 3


def test_zero_right_hand_side_and_bad_arguments():
    matvec, b = Dense(jnp.eye(3)), {"a": jnp.zeros(3)}
    assert solve(matvec, b).converged
    for bad in ({"tol": 0.0}, {"damping": float("nan")}, {"max_steps": 0}, {"method": "gmres"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            solve(matvec, b, **bad)
    with pytest.raises(ValueError, match="preconditioner"):
        solve(matvec, b, method="minres", preconditioner=matvec)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize(("size", "k"), [(200, 5), (200, 1), (30, 10), (10, 10)])
def test_eigenvalues_are_the_dense_ones(which, size, k):
    small = np.random.default_rng(0).normal(size=size - 5) / 10
    spread = np.sort(np.r_[np.linspace(5, 6, 5), small])
    matrix = symmetric(spread)
    like = {"a": jnp.zeros(size)}
    found = spectrum.eigenvalues(Dense(matrix), like, k=k, which=which, tol=1e-8, key=KEY)
    wanted = spread[::-1][:k] if which == "largest" else spread[:k]
    np.testing.assert_allclose(found.values, wanted, atol=1e-8)
    assert found.converged.all()
    again = np.linalg.norm(matrix @ found.vectors.T - found.vectors.T * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, again, atol=1e-12)


def test_long_lanczos_shows_no_ghosts():
    """200 steps for the 10 eigenvalues of a small matrix: each once."""
    spread = np.r_[np.linspace(-0.01, 0.01, 240), np.arange(1, 11)]
    found = spectrum.lanczos(Dense(symmetric(spread)), {"a": jnp.ones(250)}, num_steps=200)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(200), atol=1e-10)
    off = np.diag(found.offdiagonal, 1)
    matrix = np.diag(found.diagonal) + off + off.T
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix)[-10:], np.arange(1, 11), atol=1e-9)


def test_density_moments_trace_and_diagonal_are_within_their_errors():
    matrix = symmetric(SPECTRA["indefinite"])
    like = {"a": jnp.zeros(50)}
    found = spectrum.density(Dense(matrix), like, num_steps=20, num_probes=200, key=KEY)
    for power in (1, 2, 3):
        mean, error = found.mean_of(lambda nodes, power=power: nodes**power)
        assert abs(mean - np.mean(SPECTRA["indefinite"] ** power)) < 4 * error
    grid = jnp.linspace(-10, 15, 400)
    height, _ = found.smooth(grid, width=0.5)
    np.testing.assert_allclose(jnp.trapezoid(height, grid), 1, atol=1e-3)
    mean, error = spectrum.trace(Dense(matrix), like, num_probes=300, key=KEY)
    assert abs(mean - np.trace(matrix)) < 4 * error
    entries, errors = spectrum.diagonal(Dense(matrix), like, num_probes=2000, key=KEY)
    assert np.mean(np.abs(entries["a"] - np.diag(matrix)) < 3 * errors["a"]) > 0.95


def test_basis_that_does_not_fit_is_refused_with_its_bytes():
    like = {"a": jax.ShapeDtypeStruct((10**12,), jnp.float32)}
    with pytest.raises(ValueError, match="bytes, got 30 vectors: 120000000000000"):
        spectrum.eigenvalues(Dense(None), like, k=5, key=KEY)
