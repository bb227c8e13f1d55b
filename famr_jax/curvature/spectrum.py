"""Eigenvalues of any symmetric operator by Lanczos, with residuals.

Lanczos re-orthogonalises against the whole basis, twice: without it the largest eigenvalues appear
many times over. Residuals are those of the images that were taken along the way: with all of their
coefficients, of which the tridiagonal matrix leaves out what rounding adds, they need no further
products, and hold in float32, where the recursive bound does not.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import ROUNDING, check_vector, linearized, norm, precise
from famr_jax.types import as_pytree, check_count, check_key, check_number

STEPS_BETWEEN_CHECKS = 5  # or an eighth of the steps so far
STEPS_OF_A_FRESH_START = 10  # in which a direction that was missed shows
MARGIN = 0.7  # of tol: room for what a fresh start cuts off
LARGEST_BASIS, NUMBERS_TO_SPARE = 128, 2**27  # for the smallest, which are crowded


class Lanczos(NamedTuple):
    """A Krylov basis and the operator in it: A V^T = V^T T up to the last vector.

    Attributes:
        diagonal: T's own, which is tridiagonal, `[k]`: `num_steps` or the dimension, if smaller.
        offdiagonal: `[k - 1]`; zero where a space was exhausted and a fresh direction follows.
        remainder: ||A v - ...||, what the last step left over: zero once the space is exhausted.
        basis: V, orthonormal rows, `[k, dim]`.
    """

    diagonal: Array
    offdiagonal: Array
    remainder: Array
    basis: Array


class Eigenvalues(NamedTuple):
    """Eigenpairs, and what a judge needs.

    Attributes:
        values: `[k]`, in the order asked for.
        vectors: Orthonormal rows, `[k, dim]`, flat; `unravel` of `ravel_pytree` shapes them.
        residuals: Bounds of ||A u - e u||, `[k]`: an eigenvalue of A lies this near to each e; at
            least 5 eps max|e|, which is what rounding leaves.
        num_products: Products with A.
        converged: Whether every residual is at most tol times the largest |e|, `[k]`.
    """

    values: Array
    vectors: Array
    residuals: Array
    num_products: Array
    converged: Array


@precise
def lanczos(matvec: Callable, start: Any, *, num_steps: int) -> Lanczos:
    """`num_steps` steps of Lanczos from `start`, a nonzero pytree, fully re-orthogonalised.

    At most as many steps as there are dimensions. Where the space that `start` spans is exhausted
    before, they go on from a fresh direction, the same at every call.

    Raises:
        ValueError: `num_steps` below one, a `start` that is not of one real floating-point type, or
            a basis that does not fit in memory.
    """
    check_count("num_steps", num_steps)
    check_vector("start", start)
    check_memory(num_steps, start)
    return lanczos_of(as_pytree(matvec), start, num_steps=num_steps)


@partial(jax.jit, static_argnames="num_steps")
def lanczos_of(matvec: Callable, start: Any, *, num_steps: int) -> Lanczos:
    """`lanczos`, unchecked."""
    product = flat_product(matvec, start)
    v = ravel_pytree(start)[0]
    num_steps = min(num_steps, v.size)
    basis = jnp.zeros((num_steps + 1, v.size), v.dtype).at[0].set(v / norm(v))

    def body(basis, i):
        basis, column, _ = _extend(basis, i, product(basis[i]), jax.random.key(i))
        return basis, (column[i], column[i + 1])

    basis, (alphas, betas) = jax.lax.scan(body, basis, jnp.arange(num_steps))
    return Lanczos(alphas, betas[:-1], betas[-1], basis[:-1])


def _extend(basis, i, image, key, anew: Array | bool = False):
    """Adds the image of v_i to the basis: with it, its coefficients, and what they leave out.

    Of an image in an exhausted space only rounding is left out, which would give the same vectors
    once more. The basis then goes on from a fresh direction, and after the last dimension from
    zero. With `anew` the basis stays, and all that it does not hold is left out.
    """
    w, column = orthogonalise(basis, image)
    beta = norm(w)
    ended = beta <= 2 * ROUNDING * jnp.finfo(w.dtype).eps * norm(column)
    w = jax.lax.cond(ended, lambda: _fresh(basis, key), lambda: w / beta)
    w = jnp.where(anew, basis[i + 1], jnp.where(i + 1 < w.size, w, 0))
    left_out = ended | anew
    column = column.at[i + 1].add(jnp.where(left_out, 0, beta))
    return put(basis, i + 1, w), column, jnp.where(left_out, beta, 0)


def _fresh(basis, key):
    """A random unit vector, orthogonal to the rows."""
    w, _ = orthogonalise(basis, jax.random.normal(key, basis.shape[1:], basis.dtype))
    return w / jnp.linalg.norm(w)


@precise
def eigenvalues(
    matvec: Callable,
    like: Any,
    *,
    k: int,
    which: Literal["largest", "smallest"] = "largest",
    tol: float = 1e-4,
    max_restarts: int = 50,
    key: Array,
) -> Eigenvalues:
    """The k largest or smallest (algebraically) eigenvalues by thick-restart Lanczos.

    The basis holds 2 k + 20 vectors; for the smallest, which in curvature are crowded, up to 128 or
    2^27 numbers, for fewer products. One start finds one copy of a multiple eigenvalue: for k > 1,
    what has converged is held against a fresh start of ten steps, until that changes nothing.

    Args:
        matvec: A, symmetric.
        like: A pytree of arrays of the shapes that A acts on.
        k: How many.
        which: Which end of the spectrum.
        tol: Wanted residual, relative to the largest |e| seen.
        max_restarts: After which to give up.
        key: PRNG key of the starts.

    Raises:
        ValueError: A number out of range, a `like` that is not of one real floating-point type,
            another `which`, or a basis that does not fit in memory.
    """
    check_vector("like", like)
    check_key(key)
    check_count("k", k)
    check_number("tol", tol, above=0)
    check_number("max_restarts", max_restarts, least=0)
    dim = sum(leaf.size for leaf in jax.tree.leaves(like))
    if k > dim:
        raise ValueError(f"`k` must be at most the dimension {dim}, got {k}.")
    if which not in ("largest", "smallest"):
        raise ValueError(f"`which` must be 'largest' or 'smallest', got {which!r}.")
    more = min(LARGEST_BASIS, NUMBERS_TO_SPARE // dim) if which == "smallest" else 0
    size = min(dim, max(2 * k + 20, more))
    check_memory(size, like)
    sign = 1.0 if which == "largest" else -1.0
    draws = _draws(like, key)
    return _eigenvalues(as_pytree(matvec), like, draws, sign, tol, max_restarts, k=k, size=size)


@jax.jit
def _draws(like, key):
    """A direction to begin with, and keys to go on by, from one program for every operator."""
    start_key, again_key, extend_key = jax.random.split(key, 3)
    return direction(ravel_pytree(like)[0], start_key), again_key, extend_key


class Basis(NamedTuple):
    """Vectors to which A has been applied, and their images among them.

    Attributes:
        rows: Orthonormal vectors, `[size + 1, dim]`; A is yet to be applied to the last that is
            there.
        matrix: Coefficients of the images by Gram-Schmidt, a column each, `[size + 1, size]`.
        lost: Norms of what these leave out of each image, `[size]`: rounding, and what a restart
            with a fresh direction cut off.
        filled: To how many rows A has been applied.
        num_products: Products with A so far.
    """

    rows: Array
    matrix: Array
    lost: Array
    filled: Array
    num_products: Array


def direction(flat: Array, key: Array) -> Array:
    """A random unit vector like `flat`."""
    v = jax.random.normal(key, flat.shape, flat.dtype)
    return v / jnp.linalg.norm(v)


def new_basis(first: Array, size: int) -> Basis:
    """A basis for `size` vectors, of which the first, of norm one, is given."""
    rows = jnp.zeros((size + 1, first.size), first.dtype).at[0].set(first)
    matrix, lost = jnp.zeros((size + 1, size), first.dtype), jnp.zeros(size, first.dtype)
    return Basis(rows, matrix, lost, jnp.asarray(0), jnp.asarray(0))


def extend(
    basis: Basis, product: Callable, until: Array, key: Array, *, anew: Array | bool = False
) -> Basis:
    """Applies A to row after row, `until` so many have been; `anew` to those it was applied to."""

    def body(i, basis):
        draw = jax.random.fold_in(key, basis.num_products)
        rows, column, left = _extend(basis.rows, i, product(basis.rows[i]), draw, anew)
        matrix, lost = basis.matrix.at[:, i].set(column), basis.lost.at[i].set(left)
        return Basis(rows, matrix, lost, basis.filled, basis.num_products + 1)

    first = jnp.where(anew, 0, basis.filled)
    return jax.lax.fori_loop(first, until, body, basis)._replace(filled=until)


def ritz(basis: Basis, sign: Array | float, k: int) -> tuple[Array, Array]:
    """Eigenvalues of A in the basis, and the vectors as columns; the largest of sign A first."""
    size = basis.matrix.shape[1]
    sizes = [n for n in (32, 64) if k < n <= size // 2] + [size]
    smallest = sum(basis.filled > n for n in sizes[:-1])
    branches = [partial(_ritz, n) for n in sizes]
    return jax.lax.switch(smallest, branches, basis.matrix, basis.filled, sign)


def _ritz(n, matrix, filled, sign):
    """Ritz pairs of the first n rows; those of rows that are not filled come last."""
    upper = sign * jnp.triu(matrix[:n, :n])
    size = norm(upper)
    last = jnp.where(jnp.arange(n) < filled, 0, -3 * jnp.where(size > 0, size, 1))
    values, vectors = jnp.linalg.eigh(upper + jnp.triu(upper, 1).T + jnp.diag(last))
    values, vectors = sign * values[::-1], vectors[:, ::-1]
    rest = matrix.shape[1] - n
    return jnp.pad(values, (0, rest)), jnp.pad(vectors, (0, rest))


def coupling(basis: Basis, vectors: Array) -> Array:
    """How much of A u points along the vector to go on from, of Ritz vectors u, a column each."""
    return jnp.abs(basis.matrix[basis.filled] @ vectors)


def restart(basis: Basis, vectors: Array, count: int, key: Array | None = None) -> Basis:
    """A basis of the best `count` Ritz vectors, which goes on as a full one did; or afresh."""
    size, kept = basis.matrix.shape[1], vectors[:, :count]
    images = basis.matrix @ kept
    inside, following = kept.T @ images[:size], images[size]
    outside = images.at[:size].add(-(kept @ inside))
    best = kept.T @ basis.rows[:size]
    rows = jnp.zeros_like(basis.rows).at[:count].set(best)
    if key is None:
        rows, outside = put(rows, count, basis.rows[size]), outside[:size]
    else:
        following = jnp.zeros_like(following)
        if count < rows.shape[1]:  # beyond the last dimension only zero is orthogonal
            rows = put(rows, count, _fresh(rows, key))
    matrix = jnp.zeros_like(basis.matrix).at[:count, :count].set(inside)
    matrix = matrix.at[count, :count].set(following)
    lost = jnp.abs(kept).T @ basis.lost + jax.vmap(norm, in_axes=1)(outside)
    lost = jnp.zeros_like(basis.lost).at[:count].set(lost)
    return Basis(rows, matrix, lost, jnp.asarray(count), basis.num_products)


class _Search(NamedTuple):
    """A search; `kept`, `values` and `residuals` are of the basis before its last restart."""

    basis: Basis
    kept: Array
    values: Array
    residuals: Array
    restarts: Array
    scale: Array
    settled: Array
    until: Array
    anew: Array
    going_on: Array


@partial(jax.jit, static_argnames=("k", "size"))
def _eigenvalues(matvec, like, draws, sign, tol, max_restarts, *, k, size):
    product = flat_product(matvec, like)
    flat = ravel_pytree(like)[0]
    first, again_key, extend_key = draws

    def body(s):
        filled = s.basis.filled
        steps = jnp.maximum(STEPS_BETWEEN_CHECKS, filled // 8)
        stop = jnp.minimum(jnp.maximum(filled, k) + steps, size)
        stop = jnp.where(s.anew, filled, stop)
        basis = extend(s.basis, product, stop, extend_key, anew=s.anew)
        values, vectors = ritz(basis, sign, k)
        kept = vectors[:, :k]
        there = jnp.arange(size) < stop
        scale = jnp.maximum(s.scale, jnp.max(jnp.abs(values), where=there, initial=0))
        open_ = jnp.max(coupling(basis, kept)) > MARGIN * tol * scale
        # For k = 1 one copy is enough.
        moved = jnp.max(jnp.abs(values[:k] - s.settled)) > tol * scale
        check, full = ~open_ & moved & (k > 1) & (stop < flat.size) & ~s.anew, stop == size
        until = jnp.where(check, basis.num_products + STEPS_OF_A_FRESH_START, s.until)
        settled, restarts = jnp.where(check, values[:k], s.settled), s.restarts + (full | check)
        going_on = (open_ | (basis.num_products < until)) & (restarts <= max_restarts) & ~s.anew
        quotients, residuals = _pairs(basis, kept, s.anew)
        loose = jnp.max(residuals) > tol * scale
        anew = ~going_on & loose & ~s.anew
        draw = jax.random.fold_in(again_key, basis.num_products)
        basis = jax.lax.switch(
            jnp.where(anew | check & going_on, 2, going_on & full),
            (
                lambda: basis,
                lambda: restart(basis, vectors, k + (size - k) // 2),
                lambda: restart(basis, vectors, k, draw),
            ),
        )
        done = (basis, kept, quotients, residuals, restarts, scale, settled, until)
        return _Search(*done, s.anew | anew, going_on | anew)

    none, zero, no = jnp.asarray(0), jnp.zeros((), flat.dtype), jnp.asarray(False)
    unknown = jnp.full(k, jnp.inf, flat.dtype)
    basis, kept = new_basis(first, size), jnp.zeros((size, k), flat.dtype)
    search = _Search(basis, kept, unknown, unknown, none, zero, unknown, none, no, ~no)
    found = jax.lax.while_loop(lambda s: s.going_on, body, search)
    converged = found.residuals <= tol * found.scale
    least = ROUNDING * jnp.finfo(flat.dtype).eps * found.scale
    vectors = found.kept.T @ found.basis.rows[:size]
    num_products = found.basis.num_products
    residuals = jnp.maximum(found.residuals, least)
    return Eigenvalues(found.values, vectors, residuals, num_products, converged)


def _pairs(basis, vectors, apart):
    """Rayleigh quotients of Ritz vectors, a column each, and bounds of their residuals.

    Those of images taken anew are exact: what is left out of them lies `apart` from the rows.
    """
    images, size = basis.matrix @ vectors, len(vectors)
    values = jnp.sum(vectors * images[:size], axis=0)
    inside = jax.vmap(norm, in_axes=1)(images.at[:size].add(-values * vectors))
    lost = jnp.abs(vectors).T @ basis.lost
    return values, jnp.where(apart, jnp.hypot(inside, lost), inside + lost)


def flat_product(matvec: Callable, like: Any) -> Callable:
    """`v -> A v` on flat vectors, linearised."""
    unravel, product = ravel_pytree(like)[1], linearized(matvec)
    return lambda v: ravel_pytree(product(unravel(v)))[0].astype(v.dtype)


def orthogonalise(basis: Array, w: Array) -> tuple[Array, Array]:
    """w without its part in the span of the rows, by two passes; and the coefficients of that."""
    first = basis @ w
    w = w - first @ basis
    second = basis @ w
    return w - second @ basis, first + second


def put(basis: Array, i: Array | int, v: Array) -> Array:
    """The basis with row i replaced, in place under jit."""
    return jax.lax.dynamic_update_index_in_dim(basis, v, i, 0)


def check_memory(num_vectors: int, like: Any) -> None:
    """Raises a `ValueError` with the bytes if so many vectors like `like` cannot fit."""
    needed = num_vectors * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    stats = jax.local_devices()[0].memory_stats() or {}
    there = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(f"`basis` must fit in {there} bytes, got {num_vectors} vectors: {needed}.")
