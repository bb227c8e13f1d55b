"""Solve (A + damping I) X = B for many right-hand sides in one Krylov space: block CG."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import check_vector, linearized, precise
from famr_jax.curvature.solve import (
    CONVERGED,
    FALLS,
    INDEFINITE,
    NOT_FINITE,
    OUT_OF_STEPS,
    STALLED,
    Solution,
    check_limits,
    flat_rows,
    normalised,
)
from famr_jax.types import as_pytree

NEARLY = 0.5  # distance of a Gram matrix from the identity at which one pass leaves rounding
MOST_PASSES = 4


@precise
def solve_block(
    matvec: Callable,
    b: Any,
    *,
    damping: float | Array = 0.0,
    tol: float | Array = 1e-5,
    max_steps: int | Array = 100,
    preconditioner: Callable | None = None,
) -> Solution:
    """Solves (A + damping I) x_j = b_j for all j at once, by block conjugate gradients.

    Every x_j is sought in the Krylov space of all b together, so that c of them cost far fewer
    products than c solves: the space soon holds the leading c eigenvectors. The products of a step
    are one `vmap`. Restarts from the true residuals until they are small or no longer halve.

    Args:
        matvec: A, symmetric, a callable pytree `v -> A v`; A + damping I positive definite.
        b: Right-hand sides, a pytree of arrays with a leading axis of at most the dimension of A.
        damping: Shift of the matrix, which biases the answer.
        tol: Wanted relative residual of each.
        max_steps: Products of each with A after which to give up.
        preconditioner: A `Preconditioner`, whose root enters on both sides of A.

    Returns:
        A `Solution` whose fields have one entry for each right-hand side.

    Raises:
        ValueError: A number out of range, a `b` that is not of one real floating-point type, more
            right-hand sides than dimensions, or a preconditioner without a root.

    Source: O'Leary (1980), in Dubrulle's form (2001) that keeps the residuals' factors by QR.
    """
    check_vector("b", b)
    check_limits(damping, tol, max_steps)
    leaves = jax.tree.leaves(b)
    columns, size = leaves[0].shape[0], sum(leaf.size for leaf in leaves)
    if columns * columns > size:
        raise ValueError(f"`b` must hold at most {size // columns} columns, got {columns}.")
    if preconditioner is not None and not hasattr(preconditioner, "power"):
        rule = "must have a root: a `Preconditioner`"
        raise ValueError(f"`preconditioner` {rule}, got {type(preconditioner).__name__}.")
    return _solve_block(as_pytree(matvec), b, damping, tol, max_steps, preconditioner)


class _Outer(NamedTuple):
    x: Array
    residual: Array
    norms: Array
    energies: Array
    num_steps: Array
    negative: Array
    reason: Array


class _Block(NamedTuple):
    x: Array
    q: Array
    c: Array
    s: Array
    curvature: Array
    num_steps: Array
    broken: Array


@jax.jit
def _solve_block(matvec, b, damping, tol, max_steps, preconditioner):
    """Loops over one product, as in `solve`: of the next block, or of x to recompute residuals."""
    product, (rows, unravel) = linearized(matvec), flat_rows(b)
    rows, scale = jax.vmap(normalised)(rows)
    root = back = lambda rows: rows
    if preconditioner is not None:  # then it is block CG on P A P, P the root
        root, back = jax.vmap(preconditioner.power(0.5)), jax.vmap(preconditioner.power(-0.5))

    @jax.vmap
    def damped(row):
        return (ravel_pytree(product(unravel(row)))[0] + damping * row).astype(row.dtype)

    def start(b):
        # The residuals are c^T q throughout, with orthonormal rows q.
        q, c = factor(root(b))
        none, no = jnp.asarray(0), jnp.asarray(False)
        return _Block(jnp.zeros_like(b), q, c, q, jnp.eye(len(b), dtype=b.dtype), none, no)

    def open_(state):
        if preconditioner is None:
            sizes = jnp.linalg.norm(state.c, axis=0)
        else:  # the residuals of A are P^-1 times these
            whole = back(state.q)
            squares = jnp.sum(state.c * ((whole @ whole.T) @ state.c), axis=0)
            sizes = jnp.sqrt(jnp.maximum(squares, 0))
        return jnp.any(sizes > tol) & ~state.broken

    def step(state, image):
        x, q, c, s, _, num_steps, _ = state
        image = root(image)
        curvature = s @ image.T
        lower = jnp.linalg.cholesky((curvature + curvature.T) / 2)
        broken = ~jnp.all(jnp.isfinite(lower))
        inverted = _inverse(lower)
        inverse = inverted.T @ inverted
        x = jnp.where(broken, x, x + (c.T @ inverse) @ s)
        q, turn = factor(q - inverse @ image)
        return _Block(x, q, turn @ c, q + turn @ s, curvature, num_steps + 1, broken)

    def judged(outer, state, x, image):
        residual = rows - image
        norms = jnp.linalg.norm(residual, axis=1)
        energies = -jnp.sum((rows + residual) * x, axis=1) / 2
        better = (norms < outer.norms) | (energies < (1 + FALLS) * outer.energies)
        x = jnp.where(better[:, None], x, outer.x)
        residual = jnp.where(better[:, None], residual, outer.residual)
        kept = jnp.where(better, norms, outer.norms)
        energies = jnp.where(better, energies, outer.energies)
        num_steps = outer.num_steps + state.num_steps + 1
        symmetric = (state.curvature + state.curvature.T) / 2
        negative = jax.lax.cond(
            state.broken, lambda: jnp.linalg.eigvalsh(symmetric)[0] <= 0, lambda: state.broken
        )
        # Of the columns that are still open, one that halves is reason enough to go on.
        stalled = jnp.all((kept <= tol) | (norms > outer.norms / 2))
        reason = jnp.select(
            (
                jnp.all(kept <= tol),
                ~jnp.all(jnp.isfinite(norms)),
                negative,
                num_steps + 1 >= max_steps,
                stalled,
            ),
            (CONVERGED, NOT_FINITE, INDEFINITE, OUT_OF_STEPS, STALLED),
            -1,
        )
        negative |= outer.negative
        return _Outer(x, residual, kept, energies, num_steps, negative, reason)

    def body(outer):
        def advance(carry):
            state, *_ = carry
            left = max_steps - outer.num_steps - 1 - state.num_steps
            going_on = open_(state) & (left > 0)
            v = root(jnp.where(going_on, state.s, state.x)) + jnp.where(going_on, 0, outer.x)
            image = damped(v)
            state = jax.lax.cond(going_on, lambda: step(state, image), lambda: state)
            return state, v, image, going_on

        carry = (
            start(outer.residual),
            jnp.zeros_like(rows),
            jnp.zeros_like(rows),
            jnp.asarray(True),
        )
        state, x, image, _ = jax.lax.while_loop(lambda carry: carry[-1], advance, carry)
        return judged(outer, state, x, image)

    norms = jnp.linalg.norm(rows, axis=1)
    zeros = jnp.zeros_like(norms)
    none, going_on = jnp.asarray(0), jnp.asarray(-1)
    first = _Outer(jnp.zeros_like(rows), rows, norms, zeros, none, jnp.asarray(False), going_on)
    end = jax.lax.while_loop(lambda outer: outer.reason < 0, body, first)
    converged = end.norms <= tol
    return Solution(
        jax.vmap(unravel)(end.x * scale[:, None]),
        end.norms,
        jnp.broadcast_to(end.num_steps, converged.shape),
        converged,
        jnp.broadcast_to(end.negative, converged.shape),
        jnp.where(converged, CONVERGED, end.reason),
    )


def factor(rows: Array) -> tuple[Array, Array]:
    """Orthonormal rows q and r with rows = r^T q: QR of the transpose, from Gram matrices.

    Passes of Cholesky, shifted until the rows are nearly orthonormal, which two mostly are, and one
    more; Householder reflections where the rows depend on each other too much for that. Not those
    alone: the threads of LAPACK wait for each other, and on a busy machine took 3 s for 1 ms.
    """
    eye, eps = jnp.eye(len(rows), dtype=rows.dtype), jnp.finfo(rows.dtype).eps

    def one_pass(carry):
        q, r, _, num_passes = carry
        gram = q @ q.T
        near = jnp.linalg.norm(gram - eye) < NEARLY
        lower = jnp.linalg.cholesky(gram + jnp.where(near, 0, 4 * eps) * jnp.trace(gram) * eye)
        q = _inverse(lower) @ q
        return q, lower.T @ r, near, num_passes + 1

    def by_reflections():
        q, r = jnp.linalg.qr(rows.T)
        return q.T, r

    def going_on(carry):
        _, _, near, num_passes = carry
        return ~near & (num_passes < MOST_PASSES)

    start = rows, eye, jnp.asarray(False), 0
    q, r, orthonormal, _ = jax.lax.while_loop(going_on, one_pass, start)
    return jax.lax.cond(orthonormal, lambda: (q, r), by_reflections)


def _inverse(lower):
    """The inverse of a lower triangle; on CPU by substitution.

    LAPACK's threads go on spinning after its solve, which halved the speed of the products.
    """
    eye = jnp.eye(len(lower), dtype=lower.dtype)

    def substitute(lower):
        def row(i, x):
            return x.at[i].set((eye[i] - lower[i] @ x) / lower[i, i])

        return jax.lax.fori_loop(0, len(lower), row, jnp.zeros_like(lower))

    solve = partial(jax.scipy.linalg.solve_triangular, b=eye, lower=True)
    return jax.lax.platform_dependent(lower, cpu=substitute, default=solve)
