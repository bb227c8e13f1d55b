"""Spectral densities of any symmetric operator by stochastic Lanczos quadrature, with errors."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import scipy.special
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import ROUNDING, check_vector, norm, precise
from famr_jax.curvature.spectrum import check_memory, lanczos_of
from famr_jax.types import as_pytree, check_count, check_key

LEVEL = 0.95  # of every interval


class Density(NamedTuple):
    """A spectral density as quadrature rules, one for each probe.

        mean of f over the spectrum = (1/dim) tr f(A) ~ sum_k weights[p, k] f(nodes[p, k])

    Attributes:
        nodes: Ascending, `[probes, num_steps]`.
        weights: `[probes, num_steps]`, each row sums to one.
        residuals: `[probes, num_steps]`: an eigenvalue lies this near to each node of some weight;
            at least 5 eps max|e|, which is what rounding leaves.
    """

    nodes: Array
    weights: Array
    residuals: Array

    def mean_of(self, function: Callable[[Array], Array]) -> tuple[Array, Array]:
        """(1/dim) tr f(A), and the half-width of its 95 % interval over the probes."""
        return _interval(jnp.sum(self.weights * function(self.nodes), axis=1))

    def count(self, low: float | Array, high: float | Array) -> tuple[Array, Array]:
        """Share of the eigenvalues in (low, high), and its error.

        The error is that of the mean over the probes plus the mass whose own residual reaches over
        a threshold: a count that the steps do not resolve has an error as large as itself.
        """
        # A node that is not a number makes a count that is none.
        inside = ((self.nodes > low) & (self.nodes < high)) + 0 * self.nodes
        near = [jnp.abs(self.nodes - threshold) < self.residuals for threshold in (low, high)]
        share, error = self.mean_of(lambda _: inside)
        doubtful, _ = self.mean_of(lambda _: near[0] | near[1])
        return share, error + doubtful

    def decided(self, lam: float | Array) -> tuple[Array, Array]:
        """Mean of max(e, 0) / (max(e, 0) + lam) over the spectrum, and its error.

        Where no node is negative the derivatives of the function alternate in sign: the nodes give
        an upper bound, and with one more at zero (Gauss-Radau) a lower one; the middle is the value
        and half the distance joins the error over the probes. Otherwise what joins it is how far
        the function moves as each node does by its residual, at most to the next node.

        Source: Golub and Meurant, Matrices, Moments and Quadrature (2010), section 6.
        """

        def of(e):
            return jnp.maximum(e, 0) / (jnp.maximum(e, 0) + lam)

        nodes, weights, residuals = self
        at = jnp.sum(weights * of(nodes), axis=1)
        largest = jnp.max(jnp.abs(nodes), axis=1, keepdims=True)
        rounding = ROUNDING * jnp.finfo(nodes.dtype).eps * largest
        more, shares = jax.vmap(_with_zero)(jnp.maximum(nodes, rounding), weights, residuals)
        # Nodes at zero already, as of an exact spectrum, leave the bound to rounding.
        least = jnp.minimum(jnp.sum(shares * of(more), axis=1), at)
        ends = jnp.full_like(nodes[:, :1], jnp.inf)
        low = jnp.maximum(nodes - residuals, jnp.concatenate((-ends, nodes[:, :-1]), axis=1))
        high = jnp.minimum(nodes + residuals, jnp.concatenate((nodes[:, 1:], ends), axis=1))
        moves = jnp.maximum(of(nodes) - of(low), of(high) - of(nodes))
        definite = jnp.all(nodes >= -2 * rounding)
        value, error = _interval(jnp.where(definite, (at + least) / 2, at))
        open_ = jnp.where(definite, (at - least) / 2, jnp.sum(weights * moves, axis=1))
        return value, error + jnp.mean(open_)

    def unseen(self, dim: int) -> tuple[Array, Array]:
        """Where an eigenvalue may lie at lowest, and at highest, that no probe has seen.

        An eigenvalue t outside the nodes has at most the weight 1 / sum_i l_i(t)^2 / w_i in a
        probe, l_i being Lagrange's polynomials of the nodes (Christoffel's function); a random
        probe hardly gives an eigenvector less than a share of 1/dim. Each bound holds with
        probability .95.

        Source: the bound of Van Dorsselaer, Hochstenbach and Van der Vorst (SIAM J. Matrix Anal.
        Appl. 22, 2000), in nodes and weights.
        """
        odds = (1 - LEVEL) / len(self.nodes)
        share = scipy.special.betaincinv(0.5, (dim - 1) / 2, odds) if dim > 1 else 1.0
        below = jax.vmap(partial(_unseen, share))(self.nodes, self.weights)
        above = jax.vmap(partial(_unseen, share))(-self.nodes[:, ::-1], self.weights[:, ::-1])
        rounding = ROUNDING * jnp.finfo(self.nodes.dtype).eps * jnp.max(jnp.abs(self.nodes))
        return jnp.max(below) - rounding, rounding - jnp.max(above)

    def smooth(self, grid: Array, *, width: float) -> tuple[Array, Array]:
        """The density on a grid, each node a Gaussian of `width`; with standard errors."""
        distance = (grid[:, None, None] - self.nodes) / width
        peaks = jnp.exp(-(distance**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
        return mean_and_error(jnp.sum(self.weights * peaks, axis=-1), axis=-1)


def _with_zero(nodes, weights, residuals):
    """The quadrature rule with a node at zero besides, from positive nodes."""
    # Lanczos' next diagonal entry is set so that zero is an eigenvalue; in Ritz vectors the matrix
    # is an arrow, and the signs of the residuals alternate.
    arrow = jnp.diag(jnp.append(nodes, jnp.sum(residuals**2 / nodes)))
    signed = residuals * (-1.0) ** jnp.arange(len(nodes))
    values, vectors = jnp.linalg.eigh(arrow.at[-1, :-1].set(signed).at[:-1, -1].set(signed))
    return values, (jnp.sqrt(weights) @ vectors[:-1]) ** 2


def _unseen(share, nodes, weights):
    """Where below ascending nodes an eigenvalue would have the weight `share`, by bisection."""
    dtype = nodes.dtype
    spread = nodes[-1] - nodes[0]
    spread = jnp.where(spread > 0, spread, 1)
    places = (nodes - nodes[0]) / spread
    eps = jnp.finfo(dtype).eps
    apart = jnp.abs(places[:, None] - places) + jnp.eye(len(nodes), dtype=dtype)
    apart = jnp.sum(jnp.log(jnp.maximum(apart, eps)), axis=1)
    # Weights below eps are rounding; larger ones exclude less.
    weights = jnp.log(jnp.maximum(weights, eps))

    def weight_at(distance):
        gaps = jnp.log(places + distance)
        return -jax.nn.logsumexp(2 * (jnp.sum(gaps) - gaps - apart) - weights)

    def body(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        excluded = weight_at(jnp.exp(middle)) <= jnp.log(share)
        return jnp.where(excluded, low, middle), jnp.where(excluded, middle, high)

    bracket = jnp.log(jnp.asarray(eps, dtype)), jnp.asarray(jnp.log(1e6), dtype)
    return nodes[0] - spread * jnp.exp(jax.lax.fori_loop(0, 40, body, bracket)[1])


@precise
def density(
    matvec: Callable, like: Any, *, num_steps: int = 80, num_probes: int = 10, key: Array
) -> Density:
    """Spectral density by stochastic Lanczos quadrature.

    Args:
        matvec: A, symmetric.
        like: A pytree of arrays of the shapes that A acts on.
        num_steps: Lanczos steps a probe; polynomials up to degree 2 num_steps - 1 are exact.
        num_probes: Gaussian probes, one after the other; at least 2 for an error.
        key: PRNG key.

    Raises:
        ValueError: A count below one, or a basis that does not fit in memory.

    Source: Ghorbani, Krishnan and Xiao (arXiv 1901.10159), section 2.
    """
    check_vector("like", like)
    check_key(key)
    check_count("num_steps", num_steps)
    check_count("num_probes", num_probes)
    check_memory(num_steps, like)
    return _density(as_pytree(matvec), like, jax.random.split(key, num_probes), num_steps=num_steps)


@partial(jax.jit, static_argnames="num_steps")
def _density(matvec, like, keys, *, num_steps):
    flat, unravel = ravel_pytree(like)

    def one(key):
        probe = unravel(jax.random.normal(key, flat.shape, flat.dtype))
        diagonal, offdiagonal, remainder, _ = lanczos_of(matvec, probe, num_steps=num_steps)
        matrix = jnp.diag(diagonal) + jnp.diag(offdiagonal, 1) + jnp.diag(offdiagonal, -1)
        nodes, vectors = jnp.linalg.eigh(matrix)
        rounding = ROUNDING * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(nodes))
        residuals = jnp.maximum(jnp.abs(remainder * vectors[-1]), rounding)
        return nodes, vectors[0] ** 2, residuals

    return Density(*jax.lax.map(one, keys))


def mean_and_error(values: Array, axis: int = -1) -> tuple[Array, Array]:
    """Mean and its standard error along an axis."""
    values = jnp.moveaxis(values, axis, -1)
    mean, count = jnp.mean(values, -1), values.shape[-1]
    gaps = values - mean[..., None]
    spread = jnp.vectorize(norm, signature="(n)->()")(gaps) / jnp.sqrt(count - 1)
    return mean, spread / jnp.sqrt(count)


def _interval(values: Array) -> tuple[Array, Array]:
    """Mean of one value a probe, and the half-width of its interval by Student's t."""
    mean, error = mean_and_error(values)
    return mean, scipy.special.stdtrit(max(len(values) - 1, 1), (1 + LEVEL) / 2) * error
