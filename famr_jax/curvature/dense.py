"""A small symmetric operator as a matrix, and solves by its factors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import (
    ROUNDING,
    check_vector,
    linearized,
    norm,
    operator,
    power_of_two,
    precise,
)
from famr_jax.curvature.solve import (
    CONVERGED,
    NOT_FINITE,
    STALLED,
    Solution,
    check_limits,
    flat_rows,
    normalised,
)
from famr_jax.types import as_pytree, check_count

NUM_PROBES = 4  # random vectors that look for a null space
NEAR = 10  # times rounding: below it the eigenvalues decide whether the matrix is singular


@operator
class Matrix:
    """v -> M v for an array M, `[dim, dim]`, on vectors of any structure."""

    array: Array

    def __call__(self, v: Any) -> Any:
        flat, unravel = ravel_pytree(v)
        return unravel(self.array @ flat)


@precise
def matrix_of(matvec: Callable, like: Any, *, at_once: int = 128) -> Matrix:
    """All of A, from one product for each dimension.

    Args:
        matvec: A, symmetric.
        like: A pytree of arrays of the shapes that A acts on.
        at_once: Columns that one `vmap` forms.

    Raises:
        ValueError: `at_once` below one, or a `like` that is not of one real floating-point type.
    """
    check_vector("like", like)
    check_count("at_once", at_once)
    return _matrix_of(as_pytree(matvec), like, at_once=at_once)


@partial(jax.jit, static_argnames="at_once")
def _matrix_of(matvec, like, *, at_once):
    flat, unravel = ravel_pytree(like)
    product = linearized(matvec)

    def row(i):
        image = product(unravel(jax.nn.one_hot(i, flat.size, dtype=flat.dtype)))
        return ravel_pytree(image)[0].astype(flat.dtype)

    # A `vmap` of one row rounds otherwise than the row.
    batch_size = min(at_once, flat.size) if at_once > 1 else None
    array = jax.lax.map(row, jnp.arange(flat.size), batch_size=batch_size)
    return Matrix((array + array.T) / 2)


@precise
def solve_dense(
    matrix: Matrix, b: Any, *, damping: float | Array = 0.0, tol: float | Array = 1e-5
) -> Solution:
    """Solves (A + damping I) x_j = b_j for all j by LU factors, refined once if that falls short.

    A may be indefinite. Where the factors show an eigenvalue near rounding, the spectrum decides:
    those below 10 eps max|e| count as zero, and x is the least of all that leave the least residual
    (the pseudo-inverse's).

    Args:
        matrix: A; forming it cost one product for each dimension, which is what is reported.
        b: Right-hand sides, a pytree of arrays with a leading axis.
        damping: Shift of the matrix, which biases the answer.
        tol: Wanted relative residual of each.

    Returns:
        A `Solution` whose fields have one entry for each right-hand side. Its negative curvature is
        that of the solution itself, x_j^T (A + damping I) x_j <= 0.

    Raises:
        ValueError: A number out of range, or a `b` that is not of one real floating-point type or
            not of A's dimension.
    """
    check_vector("b", b)
    check_limits(damping, tol, 1)
    leaves, dim = jax.tree.leaves(b), len(matrix.array)
    each = sum(leaf.size for leaf in leaves) / len(leaves[0])
    if each != dim:
        raise ValueError(f"`b` must hold {dim} numbers for each column, got {each:g}.")
    return _solve_dense(matrix, b, damping, tol)


@jax.jit
def _solve_dense(matrix, b, damping, tol):
    rows, unravel = flat_rows(b)
    rows, scale = jax.vmap(normalised)(rows)
    damped = matrix.array + damping * jnp.eye(len(matrix.array), dtype=rows.dtype)
    unit = power_of_two(damped)
    damped = damped / unit
    solved = partial(jax.scipy.linalg.lu_solve, jax.scipy.linalg.lu_factor(damped))
    rounding = 2 * ROUNDING * jnp.finfo(damped.dtype).eps

    def closer(found, x):
        error = rows.T - damped @ x
        keep = left(error) < left(found[1])
        return jnp.where(keep, x, found[0]), jnp.where(keep, error, found[1])

    def by_eigenvalues(nothing):
        values, vectors = jnp.linalg.eigh(damped)
        inverse = jnp.where(jnp.abs(values) > rounding * jnp.max(jnp.abs(values)), 1 / values, 0)
        found = closer(nothing, vectors @ (inverse[:, None] * (vectors.T @ rows.T)))
        return closer(found, found[0] + vectors @ (inverse[:, None] * (vectors.T @ found[1])))

    def by_factors(nothing):
        found = closer(nothing, solved(rows.T))
        return jax.lax.cond(jnp.all(left(found[1]) <= tol), same, refined, found)

    def refined(found):
        return closer(found, found[0] + solved(found[1]))

    def same(found):
        return found

    left = partial(jnp.linalg.norm, axis=0)
    finite = jnp.all(jnp.isfinite(damped))
    # Two steps of inverse iteration: what they grow by is at most 1/|e| of the eigenvalue nearest
    # to zero, and near it. The norm is at least the largest |e|.
    probes = jax.random.normal(jax.random.key(0), (len(damped), NUM_PROBES), damped.dtype)
    once = solved(probes)
    once = once / jax.vmap(norm, in_axes=1)(once)
    nearest = 1 / jnp.max(jax.vmap(norm, in_axes=1)(solved(once)))
    largest = jnp.max(jnp.sum(jnp.abs(damped), axis=1))
    sound = nearest > NEAR * rounding * largest
    nothing = jnp.zeros_like(rows.T), rows.T
    x, error = jax.lax.cond(sound | ~finite, by_factors, by_eigenvalues, nothing)
    x, residual = x.T, left(error)
    reason = jnp.where(finite & jnp.isfinite(residual), STALLED, NOT_FINITE)
    return Solution(
        jax.vmap(unravel)(x / unit * scale[:, None]),
        residual,
        jnp.full(residual.shape, len(damped)),
        residual <= tol,
        finite & (jnp.sum(x * (rows.T - error).T, axis=1) <= 0) & (scale > 0),
        jnp.where(residual <= tol, CONVERGED, reason),
    )
