"""Preconditioners of any operator: by Nystrom's sketch of it, or by eigenvectors that are at hand.

sketch = nystrom(matvec, like, rank=200, key=key)          # 200 products, once
solve(matvec, b, damping=damping, preconditioner=deflated(sketch.rows, sketch.values, damping))
found = eigenvalues(matvec, like, k=200, key=key)          # more products, fewer afterwards
deflated(found.vectors, found.values, damping)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import ROUNDING, check_vector, operator, power_of_two, precise
from famr_jax.curvature.block import factor
from famr_jax.curvature.spectrum import check_memory, flat_product
from famr_jax.types import as_pytree, check_count, check_key, check_number

NEGATIVE = 100  # times eps of the largest image: an eigenvalue below minus this is no rounding


@operator
class Preconditioner:
    """r -> r + U^T (F - I) U r: the identity but for a few directions, which it weighs.

    Symmetric positive definite whatever the operator, because U is orthonormal and F positive.

    Attributes:
        rows: U, orthonormal, `[k, dim]`.
        factors: The diagonal of F, positive, `[k]`.
    """

    rows: Array
    factors: Array

    def __call__(self, r: Any) -> Any:
        flat, unravel = ravel_pytree(r)
        return unravel(flat + ((self.factors - 1) * (self.rows @ flat)) @ self.rows)

    def power(self, exponent: float) -> "Preconditioner":
        """A power of it: 1/2 for its root, -1 for its inverse."""
        return Preconditioner(self.rows, self.factors**exponent)


class Sketch(NamedTuple):
    """An operator of low rank near another one, U^T diag(values) U, and what a judge needs.

    Attributes:
        rows: U, orthonormal, `[rank, dim]`, flat; `unravel` of `ravel_pytree` shapes them.
        values: Estimates of the largest eigenvalues from below, falling, >= 0, `[rank]`.
        num_products: Products with the operator.
        negative_curvature: Whether it is indefinite, as far as the sketch saw it.
    """

    rows: Array
    values: Array
    num_products: Array
    negative_curvature: Array

    @property
    def why(self) -> str:
        """Whether the sketch is one of the operator, in words."""
        if self.negative_curvature:
            return "met curvature < 0, the matrix is indefinite: its sketch leaves that part out"
        return "positive semidefinite on the sketch"


@precise
def nystrom(matvec: Callable, like: Any, *, rank: int, key: Array) -> Sketch:
    """Sketches a positive semidefinite operator from its products with random vectors.

        A ~ (A W) (W^T A W)^+ (A W)^T,    W random orthonormal [dim, rank]

    It lies below A, and is near it where the eigenvalues beyond the rank are small.

    Args:
        matvec: A, symmetric, a callable pytree `v -> A v`.
        like: A pytree of arrays of the shapes that A acts on.
        rank: Products, and directions that are kept.
        key: PRNG key of the random vectors.

    Raises:
        ValueError: A rank below one or above the dimension, a `like` that is not of one real
            floating-point type, or vectors that do not fit in memory.

    Source: Frangella, Tropp and Udell (arXiv 2110.02820), algorithm 2.1, with its small shift.
    """
    check_vector("like", like)
    check_key(key)
    check_count("rank", rank)
    dim = sum(leaf.size for leaf in jax.tree.leaves(like))
    if rank > dim:
        raise ValueError(f"`rank` must be at most the dimension {dim}, got {rank}.")
    check_memory(3 * rank, like)
    return _nystrom(as_pytree(matvec), like, key, rank=rank)


@partial(jax.jit, static_argnames="rank")
def _nystrom(matvec, like, key, *, rank):
    flat = ravel_pytree(like)[0]
    probes, _ = factor(jax.random.normal(key, (rank, flat.size), flat.dtype))
    images = jax.lax.map(flat_product(matvec, like), probes)
    unit = power_of_two(images)
    images = images / unit
    core = probes @ images.T
    values, turn = jnp.linalg.eigh((core + core.T) / 2)
    rounding = jnp.finfo(flat.dtype).eps * jnp.max(jnp.linalg.norm(images, axis=1))
    shift = jnp.where(rounding > 0, 2 * ROUNDING * rounding, 1)
    roots = jnp.sqrt(jnp.maximum(values + shift, shift))
    directions, r = factor((turn / roots).T @ (images + shift * probes))
    left, sizes, _ = jnp.linalg.svd(r)
    found = jnp.where(rounding > 0, unit * jnp.maximum(sizes**2 - shift, 0), 0)
    return Sketch(left.T @ directions, found, rank, values[0] < -NEGATIVE * rounding)


def deflated(rows: Array, values: Array, damping: float | Array) -> Preconditioner:
    """The preconditioner that makes known directions of A + damping I like the least of them.

        I + U^T ((e_k + damping) / |E + damping| - I) U,    e_k the least |e|

    With exact eigenvectors the largest eigenvalue that CG then sees is about that of the next one.

    Args:
        rows: U, orthonormal, `[k, dim]`: eigenvectors, or the rows of a `Sketch`.
        values: E, their eigenvalues, `[k]`.
        damping: The solver's shift; positive where A is singular on the rows.

    Raises:
        ValueError: A damping below zero, or as many values as there are no rows.
    """
    check_number("damping", damping, least=0)
    if jnp.shape(values) != rows.shape[:1]:
        got = f"{list(jnp.shape(values))} for {list(rows.shape)}"
        raise ValueError(f"`values` must be one for each of `rows`, got {got}.")
    sizes = jnp.abs(values + damping)
    rounding = ROUNDING * jnp.finfo(rows.dtype).eps * jnp.max(sizes)
    sizes = jnp.maximum(sizes, jnp.where(rounding > 0, rounding, 1))
    return Preconditioner(rows, (jnp.min(sizes) / sizes).astype(rows.dtype))
