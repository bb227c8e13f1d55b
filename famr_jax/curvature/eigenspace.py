"""A curvature kept for later: exact inside a few directions, smaller than the data it is of.

It is taken once, after training. A removal then needs the forget set alone:

    space = keep(matvec, params, k=400, size=n, key=key, path=path)
    left = space.without(curvature(forget), m, like=params)
    left.solve(b, damping=damping).value
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import ROUNDING, check_vector, operator, precise
from famr_jax.curvature.block import factor
from famr_jax.curvature.nystrom import Preconditioner, deflated, nystrom
from famr_jax.curvature.solve import CONVERGED, INDEFINITE, NOT_FINITE, STALLED, Solution
from famr_jax.curvature.spectrum import (
    STEPS_BETWEEN_CHECKS,
    Basis,
    check_memory,
    coupling,
    direction,
    extend,
    flat_product,
    new_basis,
    restart,
    ritz,
)
from famr_jax.types import as_pytree, check_count, check_key, check_number, pytree

EXACT = 1e-4
"""Largest residual of a solve that counts as converged: factors leave rounding."""
MOST_RESTARTS = 50
"""After which the vectors are taken as they are."""


@operator
class Eigenspace:
    """v -> U^T S U v, a mean curvature over a data set inside some directions: S = U A U^T exactly.

    Outside of the directions it is zero. What other data add or take away is exact inside them.

    Attributes:
        rows: U, orthonormal, `[k, dim]`.
        matrix: S, `[k, k]`.
        size: How many examples it is a mean over.
        num_products: Products with A that it cost.
    """

    rows: Array
    matrix: Array
    size: float
    num_products: float | Array = 0.0

    def __call__(self, v: Any) -> Any:
        flat, unravel = ravel_pytree(v)
        return unravel((self.matrix @ (self.rows @ flat)) @ self.rows)

    @property
    def cost(self) -> str:
        """Its size and what it cost, in words."""
        k, dim = self.rows.shape
        megabytes = (self.rows.nbytes + self.matrix.nbytes) / 2**20
        return f"{k} directions of {dim}, {megabytes:.1f} MB, {float(self.num_products):g} products"

    def outside(self, tree: Any) -> Array:
        """The share of a vector's norm that lies outside, of which the store knows nothing."""
        flat = ravel_pytree(tree)[0]
        rest = flat - (self.rows @ flat) @ self.rows
        return jnp.linalg.norm(rest) / jnp.linalg.norm(flat)

    def without(self, matvec: Callable, size: float, *, like: Any) -> "Eigenspace":
        """The mean curvature of the other examples inside the same directions, exactly.

            n / (n - m) (S - m / n U A_m U^T)

        Args:
            matvec: A_m, the mean curvature of those that go, as the forget set; k products.
            size: m, how many they are.
            like: A pytree of arrays of the shapes that A acts on.

        Raises:
            ValueError: A `like` of another size or of half precision, an m that is not below n, or
                a rest that is indefinite, because S is not exactly that of its rows (a sketch's own
                values), or the m are not among the n. Under jit the last two give NaN and what is
                indefinite.
        """
        check_vector("like", like)
        num_weights, dim = sum(leaf.size for leaf in jax.tree.leaves(like)), self.rows.shape[1]
        if num_weights != dim:
            raise ValueError(f"`like` must have the store's {dim} weights, got {num_weights}.")
        part = Eigenspace(self.rows, inside(matvec, self.rows, like), size, len(self.rows))
        return self.minus(part)

    def minus(self, part: "Eigenspace") -> "Eigenspace":
        """`without` some of the examples, whose mean curvature in the same directions is `part`."""
        _check_size(part.size, self.size)
        left: Any = self.size - part.size
        if isinstance(left, Tracer):
            left = jnp.where(left > 0, left, jnp.nan)
        matrix = (self.size * self.matrix - part.size * part.matrix) / left
        if not isinstance(matrix, Tracer):
            _check_semidefinite(matrix, self.size / left * self.matrix)
        return Eigenspace(self.rows, matrix, left, self.num_products + part.num_products)

    def steps(self, b: Any) -> "Steps":
        """`damping -> solution` of (U^T S U + damping I) x = b inside, S's spectrum taken once."""
        values, turn = jnp.linalg.eigh(self.matrix)
        return Steps(self.rows, values, turn, b)

    def solve(self, b: Any, *, damping: float | Array) -> Solution:
        """Solves (S + damping I) y = U b, x = U^T y: the part of b outside is left out.

        Its residual is that inside, and it takes no products. A matrix that is not positive
        definite with the damping is said to be indefinite, and x is zero.
        """
        check_number("damping", damping, least=0)
        return _solve_inside(self, b, damping)

    def preconditioner(self, damping: float | Array) -> Preconditioner:
        """What preconditions the whole operator by it; see `deflated`."""
        values, turn = jnp.linalg.eigh(self.matrix)
        return deflated(turn.T @ self.rows, values, damping)


@pytree
class Steps:
    """`damping -> solution` inside a store; built by `Eigenspace.steps`."""

    rows: Array
    values: Array
    turn: Array
    b: Any

    @precise
    def __call__(self, damping: float | Array) -> Solution:
        flat, unravel = ravel_pytree(self.b)
        wanted = self.turn.T @ (self.rows @ flat)
        shifted = self.values + damping
        rounding = ROUNDING * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(self.values))
        negative = ~(shifted[0] > rounding)
        y = jnp.where(negative, 0, wanted / jnp.where(negative, 1, shifted))
        size = jnp.linalg.norm(wanted)
        error = jnp.linalg.norm(wanted - shifted * y) / jnp.where(size > 0, size, 1)
        reason = jnp.select(
            (~jnp.isfinite(error), negative & (size > 0), error <= EXACT),
            (NOT_FINITE, INDEFINITE, CONVERGED),
            STALLED,
        )
        x = jnp.where(negative, 0, (self.turn @ y) @ self.rows)  # the vectors may be NaN
        none = jnp.zeros((), int)
        x = unravel(x.astype(flat.dtype))
        return Solution(x, error, none, reason == CONVERGED, negative, reason)


@jax.jit
@precise
def _solve_inside(space, b, damping):
    return space.steps(b)(damping)


@precise
def inside(matvec: Callable, rows: Array, like: Any) -> Array:
    """U A U^T, symmetric, `[k, k]`, from k products."""
    return _inside(as_pytree(matvec), rows, like)


@jax.jit
def _inside(matvec, rows, like):
    matrix = rows @ jax.lax.map(flat_product(matvec, like), rows).T
    return (matrix + matrix.T) / 2


@precise
def eigenspace(
    matvec: Callable,
    like: Any,
    *,
    k: int,
    size: float,
    key: Array,
    tol: float = 1e-4,
) -> Eigenspace:
    """The store of the k leading eigenvectors, by thick-restart Lanczos; `keep` can be interrupted.

    Its matrix is exact whatever is left of the vectors' residuals. Of a multiple eigenvalue one
    copy is found, unlike by `eigenvalues`, which looks for others at the cost of that exactness.
    With k of the dimension or more it is all of the operator, from a product for each dimension.

    Args:
        matvec: A, the mean curvature over a data set, a callable pytree `v -> A v`.
        like: A pytree of arrays of the shapes that A acts on.
        k: How many; enough are those whose eigenvalues exceed the damping of later solves.
        size: How many examples A is a mean over.
        key: PRNG key of the start.
        tol: Wanted residual, relative to the largest |e|.

    Raises:
        ValueError: A number out of range, a `like` that is not of one real floating-point type, or
            vectors that do not fit in memory.
    """
    check_build(like, k, size, tol, key)
    dim = sum(leaf.size for leaf in jax.tree.leaves(like))
    if k >= dim:
        eye = jnp.eye(dim, dtype=jax.tree.leaves(like)[0].dtype)
        return on_rows(matvec, like, eye, size=size)
    return compressed(_lead(as_pytree(matvec), like, tol, key, k=k), k=k, size=size)


def check_build(like: Any, k: int, size: float, tol: float, key: Array) -> None:
    """Raises a `ValueError` for what no store can be made of."""
    check_vector("like", like)
    check_key(key)
    check_count("k", k)
    check_number("size", size, above=0)
    check_number("tol", tol, above=0)
    dim = sum(leaf.size for leaf in jax.tree.leaves(like))
    check_memory(min(dim, 2 * k + 20), like)


class Leading(NamedTuple):
    """A search for the leading eigenvectors, in pieces.

    Attributes:
        basis: As far as it is.
        restarts: How many there were.
        left: The largest residual, relative to the largest |e|; one until there are k.
        going_on: Whether it has not ended.
    """

    basis: Basis
    restarts: Array
    left: Array
    going_on: Array


def started(like: Any, key: Array, *, k: int) -> Leading:
    """A search before its first product."""
    flat = ravel_pytree(like)[0]
    first = direction(flat, jax.random.split(key)[0])
    basis = new_basis(first, min(flat.size, 2 * k + 20))
    return Leading(basis, jnp.asarray(0), jnp.ones((), flat.dtype), jnp.asarray(True))


def advanced(
    matvec: Callable, like: Any, found: Leading, tol: Any, key: Array, *, k: int
) -> Leading:
    """A search after an eighth of k products more, and a restart of a full basis."""
    basis, restarts, *_ = found
    length = basis.matrix.shape[1]
    stop = jnp.minimum(basis.filled + max(STEPS_BETWEEN_CHECKS, k // 8), length)
    basis = extend(basis, flat_product(matvec, like), stop, jax.random.split(key)[1])
    values, vectors = ritz(basis, 1.0, k)
    scale = jnp.max(jnp.abs(values), where=jnp.arange(length) < stop, initial=0)
    left = jnp.max(coupling(basis, vectors[:, :k])) / jnp.where(scale > 0, scale, 1)
    left = jnp.where(stop < k, 1, left).astype(found.left.dtype)
    full = stop == length
    going_on = (left > tol) & ~(full & (restarts >= MOST_RESTARTS))
    again = going_on & full
    basis = jax.lax.cond(
        again, lambda: restart(basis, vectors, k + (length - k) // 2), lambda: basis
    )
    return Leading(basis, restarts + again, left, going_on)


@partial(jax.jit, static_argnames="k")
def _lead(matvec, like, tol, key, *, k):
    def body(found):
        return advanced(matvec, like, found, tol, key, k=k)

    start = started(like, key, k=k)
    return jax.lax.while_loop(lambda found: found.going_on, body, start).basis


def compressed(basis: Basis, *, k: int, size: float) -> Eigenspace:
    """The store of the k leading Ritz vectors, from the images that the basis holds."""
    rows, matrix = _compressed(basis, k=k)
    return Eigenspace(rows, matrix, float(size), basis.num_products)


@partial(jax.jit, static_argnames="k")
@precise
def _compressed(basis, *, k):
    kept = ritz(basis, 1.0, k)[1][:, :k]
    rows, turn = factor(kept.T @ basis.rows[:-1])  # which rounding has turned a little
    matrix = kept.T @ (basis.matrix[:-1] @ kept)
    half = jax.scipy.linalg.solve_triangular(turn, matrix, trans=1)
    matrix = jax.scipy.linalg.solve_triangular(turn, half.T, trans=1)
    return rows, (matrix + matrix.T) / 2


@precise
def sketched(matvec: Callable, like: Any, *, rank: int, size: float, key: Array) -> Eigenspace:
    """A cheaper store, of the directions of a Nystrom sketch: 2 rank products.

    The sketch's own values would not do: minus the forget part they are indefinite.
    """
    check_number("size", size, above=0)
    found = nystrom(matvec, like, rank=rank, key=key)
    return on_rows(matvec, like, found.rows, size=size, num_products=rank)


def on_rows(
    matvec: Callable, like: Any, rows: Array, *, size: float, num_products: float | Array = 0.0
) -> Eigenspace:
    """The store of any orthonormal directions, from k more products.

    Args:
        matvec: A, the mean curvature.
        like: A pytree of arrays of the shapes that A acts on.
        rows: U, `[k, dim]`.
        size: How many examples A is a mean over.
        num_products: Those that the rows cost.
    """
    matrix = inside(matvec, rows, like)
    return Eigenspace(rows, matrix, float(size), num_products + len(rows))


def _check_size(size, whole):
    check_number("size", size, above=0)
    if not isinstance(whole, Tracer) and not isinstance(size, Array) and size >= whole:
        raise ValueError(f"`size` must be below {float(whole):g}, that of the store, got {size:g}.")


def _check_semidefinite(matrix, before):
    """Raises where what is left has an eigenvalue below zero that is no rounding."""
    least = float(jnp.linalg.eigvalsh(matrix)[0])
    largest = float(jnp.linalg.norm(before))
    if least < -100 * float(jnp.finfo(matrix.dtype).eps) * largest:
        raise ValueError(
            f"`matrix` without a part must stay positive semidefinite, got eigenvalue {least:.2g}: "
            "it must be exactly U A U^T of its rows (`on_rows`), and the part one of its examples'."
        )
