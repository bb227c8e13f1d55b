"""How well conditioned A + lam I is: both ends of the spectrum, and what lies near zero."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.curvature.algebra import ROUNDING, check_vector, precise
from famr_jax.curvature.dense import matrix_of
from famr_jax.curvature.quadrature import Density, density
from famr_jax.curvature.spectrum import check_memory, eigenvalues
from famr_jax.types import check_count, check_key, check_number


class Estimate(NamedTuple):
    """A number and its estimated error."""

    value: Array
    error: Array


class Condition(NamedTuple):
    """The conditioning of A + lam I, each number with its estimated error.

    Attributes:
        lambda_min: Smallest eigenvalue of A.
        lambda_max: Largest eigenvalue of A.
        shifted_min: lambda_min + lam.
        ratio: (lambda_max + lam) / (lambda_min + lam), the condition number; infinite where
            A + lam I is not positive definite.
        near_zero: Number of eigenvalues of A with |e| < lam.
        under_floor: Number with |e| < `floor`.
        negative: Number with e < -`floor`.
        effective_dimension: sum max(e, 0) / (max(e, 0) + lam): directions that the data decide and
            not the ridge, for a Gauss-Newton matrix.
        floor: 10 eps max|e|: smaller eigenvalues are rounding in this precision.
        exact: Whether the whole spectrum was computed. If not, counts come from quadrature.
    """

    lambda_min: Estimate
    lambda_max: Estimate
    shifted_min: Estimate
    ratio: Estimate
    near_zero: Estimate
    under_floor: Estimate
    negative: Estimate
    effective_dimension: Estimate
    floor: Array
    exact: bool


@precise
def condition(
    matvec: Callable,
    like: Any,
    *,
    lam: float,
    num_steps: int = 80,
    num_probes: int = 10,
    tol: float = 1e-4,
    key: Array,
) -> Condition:
    """Conditioning of A + lam I.

    Where the dimension is at most num_steps num_probes, the whole spectrum costs no more than its
    quadrature and is computed. Otherwise both ends come from thick-restart Lanczos, and the rest
    from stochastic Lanczos quadrature. Errors are half-widths of 95 % intervals: of an end its
    residual or, if larger, how far beyond it the probes leave room for an eigenvalue; of the others
    the spread over the probes plus what the steps do not resolve.

    Args:
        matvec: A, symmetric.
        like: A pytree of arrays of the shapes that A acts on.
        lam: Shift, > 0.
        num_steps: Lanczos steps a probe.
        num_probes: Probes, at least 2.
        tol: Wanted residual of both ends, relative to the largest |e|.
        key: PRNG key.

    Raises:
        ValueError: A number out of range, or a basis that does not fit in memory.
    """
    check_key(key)
    check_vector("like", like)
    check_number("lam", lam, above=0)
    check_count("num_steps", num_steps)
    if num_probes < 2:
        raise ValueError(f"`num_probes` must be >= 2 for an error, got {num_probes}.")
    dim = sum(leaf.size for leaf in jax.tree.leaves(like))
    eps = jnp.finfo(jnp.result_type(*jax.tree.leaves(like))).eps
    exact = dim <= num_steps * num_probes
    if exact:
        check_memory(dim, like)
        spectrum = jnp.linalg.eigvalsh(matrix_of(matvec, like, at_once=1).array)
        floor = 2 * ROUNDING * eps * jnp.max(jnp.abs(spectrum))
        ends = Estimate(spectrum[0], floor), Estimate(spectrum[-1], floor)
        whole = jnp.broadcast_to(spectrum, (2, dim))
        quadrature = Density(whole, jnp.full_like(whole, 1 / dim), jnp.full_like(whole, floor / 2))
    else:
        low_key, high_key, probe_key = jax.random.split(key, 3)
        small = eigenvalues(matvec, like, k=1, which="smallest", tol=tol, key=low_key)
        large = eigenvalues(matvec, like, k=1, which="largest", tol=tol, key=high_key)
        quadrature = density(
            matvec, like, num_steps=num_steps, num_probes=num_probes, key=probe_key
        )
        low, high = small.values[0], large.values[0]
        lowest, highest = quadrature.unseen(dim)
        ends = (
            Estimate(low, jnp.maximum(small.residuals[0], low - lowest)),
            Estimate(high, jnp.maximum(large.residuals[0], highest - high)),
        )
        floor = 2 * ROUNDING * eps * jnp.maximum(jnp.abs(low), jnp.abs(high))

    def in_dimensions(mean, error):
        return Estimate(dim * mean, dim * error)

    smallest = Estimate(ends[0].value + lam, ends[0].error)
    return Condition(
        *ends,
        smallest,
        _ratio(Estimate(ends[1].value + lam, ends[1].error), smallest),
        near_zero=in_dimensions(*quadrature.count(-lam, lam)),
        under_floor=in_dimensions(*quadrature.count(-floor, floor)),
        negative=in_dimensions(*quadrature.count(-jnp.inf, -floor)),
        effective_dimension=in_dimensions(*quadrature.decided(lam)),
        floor=floor,
        exact=exact,
    )


def _ratio(top: Estimate, bottom: Estimate) -> Estimate:
    value = top.value / bottom.value
    error = value * (top.error / top.value + bottom.error / bottom.value)
    indefinite = bottom.value <= 0
    return Estimate(jnp.where(indefinite, jnp.inf, value), jnp.where(indefinite, jnp.inf, error))
