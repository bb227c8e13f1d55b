"""Trace and diagonal of any symmetric operator from random probes, with standard errors."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import check_vector, precise
from famr_jax.curvature.quadrature import mean_and_error
from famr_jax.curvature.spectrum import check_memory, flat_product, orthogonalise
from famr_jax.types import as_pytree, check_count, check_key


@precise
def trace(
    matvec: Callable,
    like: Any,
    *,
    num_probes: int = 100,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    key: Array,
) -> tuple[Array, Array]:
    """tr A from products with Rademacher vectors, and the standard error.

    The error of Hutchinson's mean of z^T A z falls as the root of the number of probes. Hutch++
    spends a third of them on the range where A is large, a third on tracing it exactly there, and
    probes the rest: its error falls as their number. It holds num_probes / 3 vectors.

    Args:
        matvec: A, symmetric.
        like: A pytree of arrays of the shapes that A acts on.
        num_probes: Products with A; at least 2, or 6 for Hutch++.
        method: "hutchinson" or "hutch++".
        key: PRNG key.

    Raises:
        ValueError: Too few probes, another method, or a range that does not fit in memory.

    Source: Meyer, Musco, Musco and Woodruff (arXiv 2010.09649), algorithm 1.
    """
    check_vector("like", like)
    check_key(key)
    if method not in ("hutchinson", "hutch++"):
        raise ValueError(f"`method` must be 'hutchinson' or 'hutch++', got {method!r}.")
    if method == "hutchinson":
        _check_probes(num_probes)
        keys = jax.random.split(key, num_probes)
        return mean_and_error(_hutchinson(as_pytree(matvec), like, keys))
    _check_probes(num_probes, least=6)
    check_memory(num_probes // 3, like)
    return _hutch_plus_plus(as_pytree(matvec), like, key, count=num_probes // 3)


@partial(jax.jit, static_argnames="count")
def _hutch_plus_plus(matvec, like, key, *, count):
    product, flat = flat_product(matvec, like), ravel_pytree(like)[0]
    sketch, probes = jax.random.rademacher(key, (2, count, flat.size), flat.dtype)
    sketch = sketch[: flat.size]
    basis = jnp.linalg.qr(jax.lax.map(product, sketch).T)[0].T
    large = jnp.sum(basis * jax.lax.map(product, basis))

    def one(probe):
        rest, _ = orthogonalise(basis, probe)
        return jnp.vdot(rest, product(rest))

    mean, error = mean_and_error(jax.lax.map(one, probes))
    return large + mean, error


@precise
def diagonal(matvec: Callable, like: Any, *, num_probes: int = 100, key: Array) -> tuple[Any, Any]:
    """Hutchinson's estimate of diag A, E[z * A z], and its standard errors: pytrees like `like`.

    Raises:
        ValueError: `num_probes` below two.
    """
    check_vector("like", like)
    check_key(key)
    _check_probes(num_probes)
    return _diagonal(as_pytree(matvec), like, jax.random.split(key, num_probes))


@jax.jit
def _hutchinson(matvec, like, keys):
    one = _probe(matvec, like)
    return jax.lax.map(lambda key: jnp.sum(one(key)), keys)


@jax.jit
def _diagonal(matvec, like, keys):
    """Mean and standard error by Welford's recursion, which holds two vectors."""
    one, (flat, unravel) = _probe(matvec, like), ravel_pytree(like)

    def body(carry, key):
        mean, squares, count = carry
        gap = one(key) - mean
        mean = mean + gap / (count + 1)
        return (mean, squares + gap**2 * count / (count + 1), count + 1), None

    start = (jnp.zeros_like(flat), jnp.zeros_like(flat), 0)
    (mean, squares, count), _ = jax.lax.scan(body, start, keys)
    return unravel(mean), unravel(jnp.sqrt(squares / (count - 1) / count))


def _probe(matvec, like):
    """A function `key -> z * A z` of a Rademacher vector z, flat."""
    product, flat = flat_product(matvec, like), ravel_pytree(like)[0]

    def one(key):
        z = jax.random.rademacher(key, flat.shape, flat.dtype)
        return z * product(z)

    return one


def _check_probes(num_probes: int, least: int = 2) -> None:
    check_count("num_probes", num_probes)
    if num_probes < least:
        raise ValueError(f"`num_probes` must be >= {least} for an error, got {num_probes}.")
