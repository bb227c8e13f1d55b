"""A curvature kept for later: exact inside a few directions, smaller than the data it is of.

It is taken once, after training. A removal then needs the forget set alone:

    space = keep(matvec, params, k=400, size=n, key=key, path=path)
    left = space.without(curvature(forget), m, like=params)
    left.solve(b, damping=damping).value
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import ROUNDING, check_vector, operator, precise
from famr_jax.curvature.nystrom import Preconditioner, deflated, nystrom
from famr_jax.curvature.solve import CONVERGED, INDEFINITE, NOT_FINITE, STALLED, Solution
from famr_jax.curvature.spectrum import eigenvalues, flat_product
from famr_jax.types import as_pytree, check_number, pytree

EXACT = 1e-4
"""Largest residual of a solve that counts as converged: factors leave rounding."""


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
            ValueError: An m that is not below n, or a rest that is indefinite, because S is not
                exactly that of its rows (a sketch's own values), or the m are not among the n.
        """
        part = Eigenspace(self.rows, inside(matvec, self.rows, like), size, len(self.rows))
        return self.minus(part)

    def minus(self, part: "Eigenspace") -> "Eigenspace":
        """`without` some of the examples, whose mean curvature in the same directions is `part`."""
        _check_size(part.size, self.size)
        left = self.size - part.size
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
        x = unravel(((self.turn @ y) @ self.rows).astype(flat.dtype))
        none = jnp.zeros((), int)
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
def eigenspace(matvec: Callable, like: Any, *, k: int, size: float, key: Array) -> Eigenspace:
    """The store of the k leading eigenvectors, by `eigenvalues`; `keep` can be interrupted.

    With k of the dimension or more it is all of the operator, from a product for each dimension.

    Args:
        matvec: A, the mean curvature over a data set, a callable pytree `v -> A v`.
        like: A pytree of arrays of the shapes that A acts on.
        k: How many; enough are those whose eigenvalues exceed the damping of later solves.
        size: How many examples A is a mean over.
        key: PRNG key of the starts.

    Raises:
        ValueError: What `eigenvalues` refuses.
    """
    check_vector("like", like)
    check_number("size", size, above=0)
    dim = sum(leaf.size for leaf in jax.tree.leaves(like))
    if k >= dim:
        rows, spent = jnp.eye(dim, dtype=jax.tree.leaves(like)[0].dtype), 0
    else:
        found = eigenvalues(matvec, like, k=k, key=key)
        rows, spent = found.vectors, found.num_products
    return on_rows(matvec, like, rows, size=size, num_products=spent)


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
