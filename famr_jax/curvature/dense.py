"""A small symmetric operator as a matrix, and solves by its factors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import check_vector, linearized, operator, precise
from famr_jax.curvature.solve import (
    CONVERGED,
    NOT_FINITE,
    STALLED,
    Solution,
    check_limits,
    normalised,
)
from famr_jax.types import as_pytree, check_count


@operator
class Matrix:
    """v -> M v for an array M, `[dim, dim]`, on vectors of any structure."""

    array: Array

    def __call__(self, v):
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

    array = jax.lax.map(row, jnp.arange(flat.size), batch_size=min(at_once, flat.size))
    return Matrix((array + array.T) / 2)


@precise
def solve_dense(
    matrix: Matrix, b: Any, *, damping: float | Array = 0.0, tol: float | Array = 1e-5
) -> Solution:
    """Solves (A + damping I) x_j = b_j for all j by LU factors, refined once if that falls short.

    A may be indefinite.

    Args:
        matrix: A; forming it cost one product for each dimension, which is what is reported.
        b: Right-hand sides, a pytree of arrays with a leading axis.
        damping: Shift of the matrix, which biases the answer.
        tol: Wanted relative residual of each.

    Returns:
        A `Solution` whose fields have one entry for each right-hand side. Its negative curvature is
        that of the solution itself, x_j^T b_j <= 0.

    Raises:
        ValueError: A number out of range, or a `b` that is not of one real floating-point type.
    """
    check_vector("b", b)
    check_limits(damping, tol, 1)
    return _solve_dense(matrix, b, damping, tol)


@jax.jit
def _solve_dense(matrix, b, damping, tol):
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], b))[1]
    rows, scale = jax.vmap(normalised)(jax.vmap(lambda tree: ravel_pytree(tree)[0])(b))
    damped = matrix.array + damping * jnp.eye(len(matrix.array), dtype=rows.dtype)
    solved = partial(jax.scipy.linalg.lu_solve, jax.scipy.linalg.lu_factor(damped))

    def refined(x, error):
        better = x + solved(error)
        rest = rows.T - damped @ better
        keep = jnp.linalg.norm(rest, axis=0) < jnp.linalg.norm(error, axis=0)
        return jnp.where(keep, better, x), jnp.where(keep, rest, error)

    x = solved(rows.T)
    error = rows.T - damped @ x
    enough = jnp.all(jnp.linalg.norm(error, axis=0) <= tol)
    x, error = jax.lax.cond(enough, lambda *found: found, refined, x, error)
    x, residual = x.T, jnp.linalg.norm(error, axis=0)
    reason = jnp.where(jnp.isfinite(residual), STALLED, NOT_FINITE)
    return Solution(
        jax.vmap(unravel)(x * scale[:, None]),
        residual,
        jnp.full(residual.shape, len(damped)),
        residual <= tol,
        (jnp.sum(x * rows, axis=1) <= 0) & (scale > 0),
        jnp.where(residual <= tol, CONVERGED, reason),
    )
