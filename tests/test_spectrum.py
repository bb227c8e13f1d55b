"""Spectra, traces and conditioning against dense float64 eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import KEY, Dense, columns, problem, symmetric

from famr_jax import curvature


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


SPREAD = np.linspace(-5, 10.3, 50)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize(("size", "k"), [(200, 5), (200, 1), (30, 10), (10, 10)])
def test_eigenvalues_are_the_dense_ones(which, size, k):
    small = np.random.default_rng(0).normal(size=size - 5) / 10
    spread = np.sort(np.r_[np.linspace(5, 6, 5), small])
    matrix = symmetric(spread)
    like = {"a": jnp.zeros(size)}
    found = curvature.eigenvalues(Dense(matrix), like, k=k, which=which, tol=1e-8, key=KEY)
    wanted = spread[::-1][:k] if which == "largest" else spread[:k]
    np.testing.assert_allclose(found.values, wanted, atol=1e-8)
    assert found.converged.all()
    again = np.linalg.norm(matrix @ found.vectors.T - found.vectors.T * found.values, axis=0)
    assert (found.residuals > again - 1e-12).all()
    assert (found.residuals < 2 * again + 1e-12).all()


SPREADS = {
    "power": 1 / np.arange(1, 201) ** 1.5,
    "copies": np.r_[np.ones(7), np.linspace(0, 0.5, 193)],
    "crowded": np.linspace(0.9, 1, 200),
    "indefinite": np.linspace(-1, 1.1, 200),
}


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("tol", [1e-4, 1e-6])
@pytest.mark.parametrize("name", SPREADS)
def test_residuals_without_products_bound_the_true_ones_in_float32(name, tol, which):
    """Over restarts, fresh starts and near the floor, where they are taken anew."""
    matrix, calls = symmetric(SPREADS[name]).astype(jnp.float32), []

    def counted(v):
        jax.debug.callback(calls.append, None)
        return {"a": matrix @ v["a"]}

    like = {"a": jnp.zeros(200, jnp.float32)}
    found = curvature.eigenvalues(counted, like, k=10, which=which, tol=tol, key=KEY)
    jax.effects_barrier()
    assert len(calls) == found.num_products
    exact, vectors = np.asarray(matrix, float), np.asarray(found.vectors, float)
    exact = (exact + exact.T) / 2
    again = np.linalg.norm(exact @ vectors.T - vectors.T * np.asarray(found.values, float), axis=0)
    rounding = 3e-7 * np.abs(SPREADS[name]).max()
    assert (again < found.residuals + rounding).all()
    assert (found.residuals < 20 * again + 10 * rounding).all()
    assert (found.residuals < tol + 10 * rounding).all()
    assert found.converged.all() or tol < 1e-5


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("spread", [-np.arange(1.0, 7), np.zeros(6), np.ones(6)])
def test_all_eigenvalues_at_the_floor_of_float32(spread, which):
    """With as many vectors as dimensions, no fresh direction is left."""
    matrix, like = symmetric(spread).astype(jnp.float32), {"a": jnp.zeros(6, jnp.float32)}
    for tol in (1e-7, 1e-9):
        found = curvature.eigenvalues(Dense(matrix), like, k=6, which=which, tol=tol, key=KEY)
        np.testing.assert_allclose(np.sort(found.values), np.sort(spread), atol=5e-6)
        assert (found.residuals < 1e-5).all()
        np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(6), atol=2e-6)


def test_long_lanczos_shows_no_ghosts():
    """200 steps for the 10 eigenvalues of a small matrix: each once."""
    spread = np.r_[np.linspace(-0.01, 0.01, 240), np.arange(1, 11)]
    found = curvature.lanczos(Dense(symmetric(spread)), {"a": jnp.ones(250)}, num_steps=200)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(200), atol=1e-10)
    off = np.diag(found.offdiagonal, 1)
    matrix = np.diag(found.diagonal) + off + off.T
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix)[-10:], np.arange(1, 11), atol=1e-9)


def test_lanczos_ends_where_the_space_does():
    spread = np.arange(1.0, 9)
    found = curvature.lanczos(Dense(symmetric(spread)), {"a": jnp.ones(8)}, num_steps=20)
    off = np.diag(found.offdiagonal, 1)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(np.diag(found.diagonal) + off + off.T), spread, atol=1e-9
    )
    assert found.remainder < 1e-9


COPIES = {
    "largest": np.r_[np.full(3, 5.0), np.linspace(-4, 4, 97)],
    "smallest": np.r_[np.zeros(50), np.linspace(0.5, 10, 50)],
}


@pytest.mark.parametrize("which", COPIES)
def test_every_copy_of_a_multiple_eigenvalue_is_found(which):
    """From one start Lanczos finds one copy, and the residuals of all that it finds are small."""
    spread = COPIES[which]
    like = {"a": jnp.zeros(100)}
    found = curvature.eigenvalues(Dense(symmetric(spread)), like, k=3, which=which, key=KEY)
    np.testing.assert_allclose(found.values, spread[:3], atol=1e-2)
    assert found.converged.all()


def test_exhausted_spaces_show_nothing_that_is_not_there():
    """Rounding, scaled up to a unit vector, gave eigenvalues of -890 and 815 of this matrix."""
    for dtype in (jnp.float32, jnp.float64):
        matvec, like = Dense(3 * jnp.eye(400, dtype=dtype)), {"a": jnp.zeros(400, dtype)}
        found = curvature.density(matvec, like, num_steps=20, num_probes=3, key=KEY)
        np.testing.assert_allclose(found.nodes, 3, atol=1e-5)
        assert jnp.max(found.residuals) < 1e-5
    start = {"a": jnp.zeros(400).at[3].set(2.0)}
    found = curvature.lanczos(Dense(jnp.diag(jnp.linspace(1, 5, 400))), start, num_steps=8)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(8), atol=1e-12)
    assert found.offdiagonal[0] == 0
    off = np.diag(found.offdiagonal, 1)
    assert np.linalg.eigvalsh(np.diag(found.diagonal) + off + off.T)[0] >= 1


def test_matrices_that_are_not_finite_have_no_counts():
    matvec, like = Dense(jnp.full((20, 20), jnp.nan)), {"a": jnp.zeros(20)}
    for num_steps in (4, 20):
        found = curvature.condition(
            matvec, like, lam=0.1, num_steps=num_steps, num_probes=2, key=KEY
        )
        assert found.exact == (num_steps == 20)
        for name in ("near_zero", "under_floor", "negative", "ratio", "effective_dimension"):
            assert np.isnan(getattr(found, name).value), name


def test_probes_are_not_held_all_at_once():
    like, keys = {"a": jnp.zeros(50)}, {"num_probes": 7, "key": KEY}
    for function in (curvature.trace, curvature.diagonal):
        program = jax.make_jaxpr(lambda a, f=function: f(Dense(a), like, **keys))(jnp.eye(50))
        assert "f64[50,50]" in str(program)
        assert "f64[7,50]" not in str(program)


def test_density_moments_trace_and_diagonal_are_within_their_errors():
    matrix = symmetric(SPREAD)
    like = {"a": jnp.zeros(50)}
    found = curvature.density(Dense(matrix), like, num_steps=20, num_probes=200, key=KEY)
    for power in (1, 2, 3):
        mean, error = found.mean_of(lambda nodes, power=power: nodes**power)
        assert abs(mean - np.mean(SPREAD**power)) < 4 * error
    grid = jnp.linspace(-10, 15, 400)
    height, _ = found.smooth(grid, width=0.5)
    np.testing.assert_allclose(jnp.trapezoid(height, grid), 1, atol=1e-3)
    mean, error = curvature.trace(Dense(matrix), like, num_probes=300, key=KEY)
    assert abs(mean - np.trace(matrix)) < 4 * error
    entries, errors = curvature.diagonal(Dense(matrix), like, num_probes=2000, key=KEY)
    assert np.mean(np.abs(entries["a"] - np.diag(matrix)) < 3 * errors["a"]) > 0.95


def test_basis_that_does_not_fit_is_refused_with_its_bytes():
    like = {"a": jax.ShapeDtypeStruct((10**12,), jnp.float32)}
    with pytest.raises(ValueError, match="bytes, got 30 vectors: 120000000000000"):
        curvature.eigenvalues(Dense(None), like, k=5, key=KEY)


def test_hutch_plus_plus_beats_hutchinson_where_eigenvalues_decay():
    spread = 100 / np.arange(1, 201) ** 2
    matvec, like = Dense(symmetric(spread)), {"a": jnp.zeros(200)}
    plain, loose = curvature.trace(matvec, like, num_probes=60, key=KEY)
    fine, tight = curvature.trace(matvec, like, num_probes=60, method="hutch++", key=KEY)
    assert abs(plain - spread.sum()) < 4 * loose
    assert abs(fine - spread.sum()) < 4 * tight
    assert tight < loose / 10
    one = curvature.trace(Dense(3 * jnp.eye(1)), {"a": jnp.zeros(1)}, method="hutch++", key=KEY)
    np.testing.assert_allclose(one, (3, 0), atol=1e-12)
    for bad in ({"num_probes": 1}, {"method": "hutch++", "num_probes": 5}, {"method": "exact"}):
        with pytest.raises(ValueError, match=next(reversed(bad))):
            curvature.trace(matvec, like, key=KEY, **bad)


def test_matfree_agrees():
    matfree = pytest.importorskip("matfree.decomp")
    spread = np.r_[np.linspace(0, 1, 40), 3, 5]
    matrix = symmetric(spread)
    start = jax.random.normal(KEY, (42,))
    found = curvature.lanczos(Dense(matrix), {"a": start}, num_steps=15)
    tridiag = matfree.tridiag_sym(15, reortho="full", materialize=True)
    wanted = tridiag(lambda v: matrix @ v, start)
    off = np.diag(found.offdiagonal, 1)
    np.testing.assert_allclose(np.diag(found.diagonal) + off + off.T, wanted.J_small, atol=1e-10)


LAM = 0.3
CASES = {
    "definite": np.linspace(0.1, 10, 60),
    "singular": np.r_[np.zeros(30), np.linspace(0.5, 10, 30)],
    "indefinite": np.r_[np.linspace(-1, -0.1, 10), np.zeros(20), np.linspace(0.02, 5, 30)],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [(80, 10), (9, 6)])
def test_condition_counts_what_the_spectrum_holds(name, sizes):
    """The whole spectrum where it is as cheap, else quadrature within four of its errors."""
    spread = CASES[name]
    num_steps, num_probes = sizes
    matvec, like = Dense(symmetric(spread)), {"a": jnp.zeros(60)}
    found = curvature.condition(
        matvec, like, lam=LAM, num_steps=num_steps, num_probes=num_probes, tol=1e-9, key=KEY
    )
    assert found.exact == (num_steps * num_probes >= 60)
    positive = np.maximum(spread, 0)
    wanted = {
        "lambda_min": spread.min(),
        "lambda_max": spread.max(),
        "shifted_min": spread.min() + LAM,
        "near_zero": np.sum(np.abs(spread) < LAM),
        "under_floor": np.sum(spread == 0),
        "negative": np.sum(spread < 0),
        "effective_dimension": np.sum(positive / (positive + LAM)),
    }
    for field, value in wanted.items():
        estimate = getattr(found, field)
        assert abs(estimate.value - value) <= 4 * estimate.error + 1e-8, field
    definite = spread.min() + LAM > 0
    ratio = (spread.max() + LAM) / (spread.min() + LAM) if definite else np.inf
    np.testing.assert_allclose(found.ratio.value, ratio, rtol=1e-6)


def test_condition_by_quadrature_is_near_the_truth():
    """Errors that say anything: the counts of a net's Gauss-Newton matrix to a tenth."""
    params, batch, _, outputs_fn, _ = problem("vit")
    matvec = curvature.fisher(outputs_fn, params, batch)
    spread = np.linalg.eigvalsh(columns(matvec, params))
    found = curvature.condition(matvec, params, lam=0.01, num_steps=40, num_probes=20, key=KEY)
    assert not found.exact
    dimension = np.sum(np.maximum(spread, 0) / (np.maximum(spread, 0) + 0.01))
    for estimate, value in (
        (found.effective_dimension, dimension),
        (found.near_zero, np.sum(spread < 0.01)),
        (found.under_floor, np.sum(np.abs(spread) < found.floor)),
    ):
        assert abs(estimate.value - value) < 4 * estimate.error
        assert estimate.error < 0.1 * len(spread)
    assert found.negative.value - 4 * found.negative.error <= 0


CROWDED = {
    "uniform": np.linspace(0, 1, 400),
    "power law": 100 / np.arange(1, 401) ** 1.5,
    "nearly null": np.r_[np.full(350, 1e-5), np.geomspace(1e-4, 100, 50)],
    "indefinite": np.r_[-np.geomspace(1e-4, 3, 200), np.geomspace(1e-4, 100, 200)],
}


def test_intervals_cover_what_crowded_spectra_hold():
    """Ends, and the effective dimension, of which the error over the probes says little."""
    like, lam, inside = {"a": jnp.zeros(400)}, 1e-2, {}
    judged = jax.jit(lambda density: (density.decided(lam), density.unseen(400)))
    for name, spread in CROWDED.items():
        positive = np.maximum(spread, 0)
        dimension = np.sum(positive / (positive + lam))
        matvec = Dense(jnp.diag(jnp.asarray(spread)))
        for seed in range(20):
            found = curvature.density(
                matvec, like, num_steps=25, num_probes=6, key=jax.random.key(seed)
            )
            (share, error), (lowest, highest) = judged(found)
            for what, covers in (
                ("dimension", abs(400 * share - dimension) <= 400 * error),
                ("lowest", lowest <= spread.min()),
                ("highest", highest >= spread.max()),
            ):
                inside.setdefault((name, what), []).append(bool(covers))
            # The least node would stand in for the end: room is left, but no more than a tenth.
            assert found.nodes.min() - lowest < 0.15 * np.ptp(spread)
            if name != "indefinite":
                assert 400 * error < 40
    for case, covered in inside.items():
        assert np.mean(covered) >= 0.9, case


def test_spectra_refuse_what_is_no_vector():
    functions = (
        lambda like: curvature.eigenvalues(curvature.Identity(), like, k=1, key=KEY),
        lambda like: curvature.density(curvature.Identity(), like, key=KEY),
        lambda like: curvature.condition(curvature.Identity(), like, lam=1.0, key=KEY),
        lambda like: curvature.trace(curvature.Identity(), like, key=KEY),
        lambda like: curvature.diagonal(curvature.Identity(), like, key=KEY),
        lambda like: curvature.lanczos(curvature.Identity(), like, num_steps=2),
    )
    for function in functions:
        for like in ({"a": jnp.zeros(3, int)}, {"a": jnp.zeros(3, complex)}, {}, {"a": 0.0}):
            with pytest.raises(ValueError, match="one real floating-point type, got"):
                function(like)
    with pytest.raises(ValueError, match="max_restarts"):
        curvature.eigenvalues(
            curvature.Identity(), {"a": jnp.zeros(3)}, k=1, max_restarts=-1, key=KEY
        )


def test_condition_refuses_bad_numbers():
    matvec, like = Dense(jnp.eye(3)), {"a": jnp.zeros(3)}
    for bad in ({"lam": 0.0}, {"lam": 1.0, "num_probes": 1}, {"lam": 1.0, "num_steps": 0}):
        with pytest.raises(ValueError, match=next(reversed(bad))):
            curvature.condition(matvec, like, key=KEY, **bad)


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_the_error_of_an_exact_effective_dimension_is_never_negative(share):
    """A rank-deficient matrix, all of whose eigenvalues are known, those at zero too."""
    dim, lam = 40, 0.1
    rank = round(share * dim)
    spectrum = np.concatenate([np.zeros(dim - rank), np.logspace(-4, 1, rank)])
    with jax.enable_x64(False):
        nodes = jnp.asarray(spectrum, jnp.float32)
        nodes = nodes.at[: dim - rank].add(jnp.linspace(-1e-7, 1e-7, dim - rank))
        nodes = jnp.broadcast_to(nodes, (2, dim))  # as `condition` has it
        found = curvature.Density(nodes, jnp.full_like(nodes, 1 / dim), jnp.full_like(nodes, 1e-4))
        value, error = (dim * float(each) for each in found.decided(lam))
    wanted = np.sum(spectrum / (spectrum + lam))
    assert error >= 0
    assert abs(value - wanted) <= error + 1e-4 * wanted
