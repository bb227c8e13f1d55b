"""Solve (A + damping I) x = b by conjugate gradients or MINRES, and say how well it went.

Differs from `jax.scipy.sparse.linalg.cg` in that the residual is recomputed from the solution, that
negative curvature is seen, and that the reason for stopping is part of the answer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import check_vector, linearized, power_of_two, precise
from famr_jax.curvature.algebra import norm as tree_norm
from famr_jax.types import as_pytree, check_count, check_number

CONVERGED, OUT_OF_STEPS, INDEFINITE, STALLED, NOT_FINITE, LEAST_SQUARES = range(6)
WORDS = (
    "converged",
    "ran out of steps: raise max_steps or damping, or precondition (CG's x is the best of its "
    "space in the A-norm, whatever its residual)",
    "met curvature <= 0, the matrix is indefinite or singular: raise damping, or use MINRES",
    "stalled above tol, at the floor of its floating point or of a singular matrix: raise tol or "
    "damping, or use float64",
    "met numbers that are not finite: look at A and b, or raise damping",
    "reached the least residual: what is left of b lies where the matrix is singular, or nearly so "
    "(|e| below 3 sqrt(eps) of the largest): raise damping, or use float64",
)
NULL = 3  # sqrt(eps) of the largest |e|: below it MINRES takes what is left for the null space
FALLS = 1e-3  # by which share the energy of a better x falls; less is rounding

dot: Any = optax.tree.vdot  # always an array, though its type allows Python's numbers


class Solution(NamedTuple):
    """A solution, and what a judge needs.

    Attributes:
        value: x, a pytree like b.
        residual: ||b - (A + damping I) x|| / ||b||, recomputed from x at the end.
        num_steps: Products with A, the recomputed residuals included.
        converged: Whether `residual` is at most tol.
        negative_curvature: Whether some v^T (A + damping I) v <= 0 was met.
        reason: Why it stopped, an index into `WORDS`.
    """

    value: Any
    residual: Array
    num_steps: Array
    converged: Array
    negative_curvature: Array
    reason: Array

    @property
    def why(self) -> str:
        """Why it stopped, and what to do, in words; every reason once for many solutions."""
        return "; ".join(WORDS[reason] for reason in np.unique(self.reason))


@precise
def solve(
    matvec: Callable,
    b: Any,
    *,
    damping: float | Array = 0.0,
    tol: float | Array = 1e-5,
    max_steps: int | Array = 100,
    method: Literal["cg", "minres"] = "cg",
    preconditioner: Callable | None = None,
) -> Solution:
    """Solves (A + damping I) x = b for a symmetric A.

    CG needs A + damping I positive definite, and stops where it meets a direction of negative
    curvature; its x minimises x^T A x / 2 - b^T x over its space, and is kept for that where its
    residual is still large. MINRES minimises the residual for any symmetric matrix, singular ones
    too. Either starts afresh from the true residual until that is small or no longer halves. Many
    right-hand sides: `vmap` over `b`. Damping, tol and data of equal shape are arguments of one
    compiled program.

    Args:
        matvec: A, a callable pytree `v -> A v`.
        b: Right-hand side, a pytree of arrays.
        damping: Shift of the matrix, which biases the answer.
        tol: Wanted relative residual.
        max_steps: Products with A after which to give up.
        method: "cg" or "minres".
        preconditioner: `r -> M^-1 r`, symmetric positive definite; CG only.

    Raises:
        ValueError: A number out of range, a `b` that is not of one real floating-point type, an
            unknown method, or MINRES with a preconditioner.
    """
    check_vector("b", b)
    check_limits(damping, tol, max_steps)
    if method not in ("cg", "minres"):
        raise ValueError(f"`method` must be 'cg' or 'minres', got {method!r}.")
    if method == "minres" and preconditioner is not None:
        raise ValueError("`preconditioner` must be None for MINRES, got one.")
    if preconditioner is not None:
        preconditioner = as_pytree(preconditioner)
    return _solve(as_pytree(matvec), b, damping, tol, max_steps, preconditioner, method=method)


def check_limits(damping: Any, tol: Any, max_steps: Any) -> None:
    """Raises a `ValueError` for a concrete number that no solver can work with."""
    check_number("damping", damping)
    check_number("tol", tol, above=0)
    if not isinstance(max_steps, Array):
        check_count("max_steps", max_steps)


class _Outer(NamedTuple):
    value: Any
    residual: Any
    norm: Array
    energy: Array
    num_steps: Array
    negative: Array
    reason: Array


class _Method(NamedTuple):
    """An iteration for A x = b from zero, of a state with `x`, `num_steps`, `negative` and `least`.

    Attributes:
        start: `b -> state`.
        open: `(state, tol) -> bool`: whether its residual is above tol, and a step can be taken.
        vector: `state -> v`, to which A is to be applied.
        step: `(state, v, A v) -> state`.
    """

    start: Callable
    open: Callable
    vector: Callable
    step: Callable


@partial(jax.jit, static_argnames="method")
def _solve(matvec, b, damping, tol, max_steps, preconditioner, *, method):
    """Loops whose one product is of the method's next vector, or of x to recompute r = b - A x.

    Programs with two products take twice as long to compile and to read.
    """
    product = linearized(matvec)
    inner = _minres() if method == "minres" else _cg(preconditioner or (lambda r: r))
    b, scale = normalised(b)

    def damped(v):
        def shifted(image, leaf):
            return (image + damping * leaf).astype(leaf.dtype)

        return jax.tree.map(shifted, product(v), v)

    def judged(outer, state, value, image):
        residual = optax.tree.sub(b, image)
        norm = optax.tree.norm(residual)
        energy = -dot(optax.tree.add(b, residual), value) / 2
        better = norm < outer.norm
        if method == "cg":
            better |= energy < (1 + FALLS) * outer.energy
        value, residual, norm_now, energy = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (value, residual, norm, energy),
            (outer.value, outer.residual, outer.norm, outer.energy),
        )
        num_steps = outer.num_steps + state.num_steps + 1
        reason = jnp.select(
            (
                norm <= tol,
                ~jnp.isfinite(norm),
                state.negative & (method == "cg"),
                state.least & (norm > outer.norm / 2),
                num_steps + 1 >= max_steps,
                norm > outer.norm / 2,
            ),
            (CONVERGED, NOT_FINITE, INDEFINITE, LEAST_SQUARES, OUT_OF_STEPS, STALLED),
            -1,
        )
        negative = outer.negative | state.negative
        return _Outer(value, residual, norm_now, energy, num_steps, negative, reason)

    def body(outer):
        def advance(carry):
            state, *_ = carry
            left = max_steps - outer.num_steps - 1 - state.num_steps
            going_on = inner.open(state, tol) & (left > 0)
            v = jax.lax.cond(
                going_on,
                lambda: inner.vector(state),
                lambda: optax.tree.add(outer.value, state.x),
            )
            image = damped(v)
            state = jax.lax.cond(going_on, lambda: inner.step(state, v, image), lambda: state)
            return state, v, image, going_on

        zeros = optax.tree.zeros_like(b)
        carry = (inner.start(outer.residual), zeros, zeros, jnp.asarray(True))
        state, value, image, _ = jax.lax.while_loop(lambda carry: carry[-1], advance, carry)
        return judged(outer, state, value, image)

    norm = optax.tree.norm(b)
    reason = jnp.select((norm > 0, norm == 0), (-1, CONVERGED), NOT_FINITE)
    zero = jnp.zeros_like(norm)
    none, met = jnp.asarray(0), jnp.asarray(False)
    start = _Outer(optax.tree.zeros_like(b), b, norm, zero, none, met, reason)
    end = jax.lax.while_loop(lambda outer: outer.reason < 0, body, start)
    value, converged = optax.tree.scale(scale, end.value), end.reason == CONVERGED
    return Solution(value, end.norm, end.num_steps, converged, end.negative, end.reason)


def normalised(b: Any) -> tuple[Any, Array]:
    """b / ||b|| and ||b||, zero for b = 0; no square overflows or vanishes."""
    largest = optax.tree.norm(b, ord="inf")
    b = jax.tree.map(lambda leaf: leaf / jnp.where(largest == 0, 1, largest), b)
    norm = optax.tree.norm(b)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm == 0, 1, norm), b), largest * norm


def flat_rows(b: Any) -> tuple[Array, Callable]:
    """Right-hand sides with a leading axis as rows, `[columns, dim]`; and what shapes one back."""
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], b))[1]
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(b), unravel


class _Cg(NamedTuple):
    x: Any
    r: Any
    p: Any
    rz: Array
    num_steps: Array
    negative: Array
    least: Array


def _cg(precondition: Callable) -> _Method:
    """Conjugate gradients, open until the recursive residual r is small or p^T A p <= 0."""

    def start(b):
        z = precondition(b)
        no = jnp.asarray(False)
        return _Cg(optax.tree.zeros_like(b), b, z, dot(b, z), jnp.asarray(0), no, no)

    def vector(s):
        # Direction and image of about unit size: squares and quotients of small ones would vanish.
        return optax.tree.scale(1 / power_of_two(s.p), s.p)

    def step(s, direction, image):
        unit, size = power_of_two(s.p), power_of_two(image)
        image = optax.tree.scale(1 / size, image)
        curvature = dot(direction, image)
        negative = curvature <= 0
        step = jnp.where(negative, 0, s.rz / unit / jnp.where(negative, 1, curvature))
        x = optax.tree.add_scale(s.x, step / size, direction)
        r = optax.tree.add_scale(s.r, -step, image)
        z = precondition(r)
        rz = dot(r, z)
        p = optax.tree.add_scale(z, rz / s.rz, s.p)
        return _Cg(x, r, p, rz, s.num_steps + 1, negative, s.least)

    return _Method(start, lambda s, tol: (optax.tree.norm(s.r) > tol) & ~s.negative, vector, step)


class _Minres(NamedTuple):
    x: Any
    v: Any
    v_old: Any
    beta: Array
    d: Any
    d_old: Any
    cos: Array
    sin: Array
    delta: Array
    epsilon: Array
    phi: Array
    size: Array
    num_steps: Array
    negative: Array
    least: Array


def _minres() -> _Method:
    """Paige and Saunders (1975), open until the recursive residual `phi` is small.

    The tridiagonal matrix is positive definite as long as cos gamma < 0, so that indefiniteness is
    seen when CG would see it (Liu and Roosta, arXiv 2206.05732). The residual r before a step has
    ||A r|| = |phi| ||(gamma, cos beta)||. Of a singular system that has no solution this vanishes
    at the least residual, and the step beyond would divide by rounding (Choi, Paige and Saunders,
    2011). Where r only lies among small eigenvalues, a start afresh from r goes on.
    """

    def start(b):
        zeros, norm = optax.tree.zeros_like(b), optax.tree.norm(b)
        one, zero = jnp.ones_like(norm), jnp.zeros_like(norm)
        # The first `beta` multiplies v_old = 0; one keeps the loop going.
        return _Minres(
            zeros, optax.tree.scale(1 / norm, b), zeros, one, zeros, zeros, -one, zero, zero, zero,
            norm, zero, jnp.asarray(0), jnp.asarray(False), jnp.asarray(False),
        )  # fmt: skip

    def open_(s, tol):
        return (jnp.abs(s.phi) > tol) & (s.beta > 0) & ~s.least

    def step(s, _, w):
        # Lanczos: beta' v' = A v - alpha v - beta v_old.
        alpha = dot(s.v, w)
        w = optax.tree.add_scale(w, -alpha, s.v)
        w = optax.tree.add_scale(w, -s.beta, s.v_old)
        beta = tree_norm(w)
        v = optax.tree.scale(1 / jnp.where(beta > 0, beta, 1), w)
        # The last two reflections act on the new column, then a new one clears its last entry.
        delta = s.cos * s.delta + s.sin * alpha
        gamma = s.sin * s.delta - s.cos * alpha
        norm = jnp.hypot(gamma, beta)
        size = jnp.maximum(s.size, jnp.maximum(jnp.abs(alpha), beta))
        rounding = NULL * jnp.sqrt(jnp.finfo(beta.dtype).eps)
        least = jnp.hypot(gamma, s.cos * beta) <= rounding * size
        # Zero where the space ends in a singular matrix: nothing is left to add.
        safe = jnp.where(norm > 0, norm, 1)
        cos, sin = gamma / safe, beta / safe
        d = optax.tree.add_scale(s.v, -delta, s.d)
        d = optax.tree.scale(1 / safe, optax.tree.add_scale(d, -s.epsilon, s.d_old))
        x = optax.tree.add_scale(s.x, jnp.where(least, 0, cos * s.phi), d)
        return _Minres(
            x, v, s.v, beta, d, s.d, cos, sin, -s.cos * beta, s.sin * beta, sin * s.phi,
            size, s.num_steps + 1, s.negative | (s.cos * gamma >= 0), least,
        )  # fmt: skip

    return _Method(start, open_, lambda s: s.v, step)
