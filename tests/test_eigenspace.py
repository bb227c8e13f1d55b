"""Curvature stores against dense float64: exact inside, honest outside, kept, and gone on with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense, symmetric

from famr_jax.curvature import (
    Eigenspace,
    eigenspace,
    eigenvalues,
    keep,
    keeping,
    load,
    nystrom,
    on_rows,
    save,
    sketched,
    solve,
)

KEY, DIM = jax.random.key(2), 60


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


def matrix_of_rank(rank, seed, dim=DIM):
    draw = np.random.default_rng(seed).normal(size=(rank, dim))
    return draw.T @ draw / rank


# 20 of 100 examples go; what they leave is exact.
PART, REST = matrix_of_rank(20, 1), matrix_of_rank(15, 2)
WHOLE = 0.2 * PART + 0.8 * REST


def whole():
    return Dense(jnp.asarray(WHOLE))


def like():
    return {"a": jnp.zeros(DIM)}


@pytest.fixture
def space():
    return eigenspace(whole(), like(), k=25, size=100, key=KEY)


def b():
    return {"a": jnp.asarray(np.random.default_rng(4).normal(size=DIM))}


def test_it_holds_the_leading_eigenvectors_and_counts_what_they_cost(space):
    values, vectors = np.linalg.eigh(WHOLE)
    top = vectors[:, -25:]
    np.testing.assert_allclose(np.linalg.eigvalsh(space.matrix), values[-25:], rtol=1e-6)
    np.testing.assert_allclose(space.rows.T @ space.rows, top @ top.T, atol=1e-2)
    inner = np.asarray(space.rows) @ np.asarray(b()["a"])
    wanted = np.asarray(space.rows).T @ (np.asarray(space.matrix) @ inner)
    np.testing.assert_allclose(space(b())["a"], wanted, atol=1e-10)
    found = eigenvalues(whole(), like(), k=25, key=KEY)
    assert space.num_products <= found.num_products
    assert space.cost.startswith("25 directions of 60, 0.0 MB, ")
    assert space.cost.endswith(f"{int(space.num_products)} products")
    gone = np.linalg.norm(b()["a"] - np.asarray(space.rows).T @ inner) / np.linalg.norm(b()["a"])
    np.testing.assert_allclose(space.outside(b()), gone, rtol=1e-9)


def test_without_a_part_it_is_exact_inside_and_semidefinite(space):
    left = space.without(Dense(jnp.asarray(PART)), 20, like=like())
    rows = np.asarray(space.rows)
    np.testing.assert_allclose(left.matrix, rows @ REST @ rows.T, atol=1e-10)
    assert left.size == 80
    assert left.num_products == space.num_products + 25
    assert np.linalg.eigvalsh(left.matrix)[0] > -1e-10
    y = np.linalg.solve(rows @ REST @ rows.T + 0.1 * np.eye(25), rows @ np.asarray(b()["a"]))
    found = left.solve(b(), damping=0.1)
    np.testing.assert_allclose(found.value["a"], rows.T @ y, atol=1e-9)
    assert found.converged
    assert found.residual < 1e-10
    assert found.num_steps == 0


def test_with_every_direction_it_is_the_operator():
    space = eigenspace(whole(), like(), k=100, size=100, key=KEY)
    left = space.without(Dense(jnp.asarray(PART)), 20, like=like())
    wanted = np.linalg.solve(REST + 0.1 * np.eye(DIM), b()["a"])
    np.testing.assert_allclose(left.solve(b(), damping=0.1).value["a"], wanted, atol=1e-9)
    assert space.num_products == DIM
    assert space.outside(b()) < 1e-12


def test_a_sketch_is_a_store_with_the_exact_matrix_and_refused_with_its_own_values():
    space = sketched(whole(), like(), rank=25, size=100, key=KEY)
    assert space.num_products == 50
    rows = np.asarray(space.rows)
    left = space.without(Dense(jnp.asarray(PART)), 20, like=like())
    np.testing.assert_allclose(left.matrix, rows @ REST @ rows.T, atol=1e-10)
    short = nystrom(whole(), like(), rank=25, key=KEY)
    raw = Eigenspace(short.rows, jnp.diag(short.values), 100.0)
    with pytest.raises(ValueError, match="must stay positive semidefinite, got eigenvalue -"):
        raw.without(Dense(jnp.asarray(PART)), 20, like=like())
    with pytest.raises(ValueError, match="must stay positive semidefinite"):
        space.without(Dense(jnp.asarray(10 * PART)), 20, like=like())
    with pytest.raises(ValueError, match="`size` must be below 100, that of the store, got 100"):
        space.without(Dense(jnp.asarray(PART)), 100, like=like())


def test_an_indefinite_matrix_is_said_so_and_gives_no_step():
    space = Eigenspace(jnp.eye(3, DIM), jnp.diag(jnp.array([2.0, 1.0, -0.5])), 10.0)
    found = space.solve(b(), damping=0.25)
    assert not found.converged
    assert found.negative_curvature
    assert "indefinite" in found.why
    np.testing.assert_array_equal(found.value["a"], 0)
    assert space.solve(b(), damping=0.75).converged
    nothing = space.solve({"a": jnp.zeros(DIM)}, damping=0.75)
    assert nothing.converged
    np.testing.assert_array_equal(nothing.value["a"], 0)


def test_it_preconditions_the_operator_that_it_is_of(space):
    plain = solve(whole(), b(), damping=1e-3, tol=1e-6, max_steps=300)
    helped = solve(whole(), b(), damping=1e-3, tol=1e-6, preconditioner=space.preconditioner(1e-3))
    assert helped.converged
    assert helped.num_steps < plain.num_steps / 2


def test_it_is_kept_and_read_and_another_is_refused(space, tmp_path):
    path = tmp_path / "store.npz"
    save(path, space)
    back = load(path)
    for name in ("rows", "matrix", "size", "num_products"):
        np.testing.assert_array_equal(getattr(back, name), getattr(space, name))
    with pytest.raises(ValueError, match="`path` must be a curvature store, got"):
        load(tmp_path / "none.npz")
    (tmp_path / "broken.npz").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="`path` must be a curvature store, got"):
        load(tmp_path / "broken.npz")


def test_an_interrupted_build_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    spectrum = symmetric(1.0 / np.arange(1, DIM + 1) ** 2)
    matvec = Dense(spectrum)
    settings = {"k": 12, "size": 100, "key": KEY, "tol": 1e-9, "made_by": {"weights": "a"}}
    whole = keep(matvec, like(), **settings, path=tmp_path / "whole.npz")
    np.testing.assert_allclose(
        np.linalg.eigvalsh(whole.matrix)[::-1], 1.0 / np.arange(1, 13) ** 2, rtol=1e-8
    )
    assert [path.name for path in tmp_path.iterdir()] == ["whole.npz"]
    cut, write, count = tmp_path / "cut.npz", keeping._write, []

    def killed(path, arrays, config):
        write(path, arrays, config)
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(keeping, "_write", killed)
    monkeypatch.setattr(keeping, "SECONDS_BETWEEN_SAVES", 0)
    with pytest.raises(KeyboardInterrupt):
        keep(matvec, like(), **settings, path=cut)
    monkeypatch.setattr(keeping, "_write", write)
    assert [path.name for path in tmp_path.glob("cut*")] == ["cut.npz.search"]
    with pytest.raises(ValueError, match=r"must hold the store of .*weights.*b.*got .*weights"):
        keep(matvec, like(), **{**settings, "made_by": {"weights": "b"}}, path=cut)
    again = keep(matvec, like(), **settings, path=cut)
    for name in ("rows", "matrix", "num_products"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert [path.name for path in tmp_path.glob("cut*")] == ["cut.npz"]
    never = Dense(jnp.full((DIM, DIM), jnp.nan))  # what is there is read, not computed
    np.testing.assert_array_equal(keep(never, like(), **settings, path=cut).rows, whole.rows)


def test_an_unfinished_build_of_another_layout_is_refused(tmp_path, monkeypatch):
    path, settings = tmp_path / "store.npz", {"k": 12, "size": 100, "key": KEY, "tol": 1e-9}
    matvec = Dense(symmetric(1.0 / np.arange(1, DIM + 1) ** 2))
    monkeypatch.setattr(keeping, "SECONDS_BETWEEN_SAVES", 0)
    monkeypatch.setattr(keeping.Basis, "_asdict", lambda basis: {"rows": basis.rows})
    monkeypatch.setattr(keeping, "_write_space", None)
    with pytest.raises(TypeError):  # ended before the store was written
        keep(matvec, like(), **settings, path=path)
    with pytest.raises(ValueError, match=r"store.npz.search must hold matrix, lost, .* delete it"):
        keep(matvec, like(), **settings, path=path)


@pytest.mark.parametrize("spread", [np.zeros(DIM), -np.arange(1.0, DIM + 1)])
def test_what_has_no_positive_eigenvalue_is_stored_too(spread):
    space = eigenspace(Dense(symmetric(spread)), like(), k=8, size=100, key=KEY)
    np.testing.assert_allclose(np.linalg.eigvalsh(space.matrix)[::-1], spread[:8], atol=1e-6)
    np.testing.assert_allclose(space.rows @ space.rows.T, np.eye(8), atol=1e-9)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: eigenspace(m, like(), k=5, size=0, key=KEY), "`size` must be finite and > 0"),
        (lambda m: keep(m, like(), k=0, size=1, key=KEY, path="x"), "`k` must be an integer >= 1"),
        (lambda m: on_rows(m, like(), jnp.eye(2, DIM), size=9).solve(b(), damping=-1.0),
         "`damping` must be finite and >= 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(ask, words):
    with pytest.raises(ValueError, match=words):
        ask(whole())
