"""What the certificates measure: curvatures and Jacobian norms along the segment of two points."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax import curvature
from famr_jax.curvature.operators import OutputsFn
from famr_jax.types import Params, check_key


class Along(NamedTuple):
    """A number along a segment: least, mean and largest over the nodes, both ends among them."""

    low: float
    mean: float
    high: float


def along(
    function: Callable[[Params], Any], start: Params, end: Params, *, points: int = 5
) -> list[Along]:
    """What numbers do along the segment between two points, at Gauss-Lobatto nodes.

    The mean is the quadrature of the integral that the theorems speak of; least and largest are
    those of the nodes, not of the whole segment.

    Args:
        function: `params -> numbers`, one or a tuple.
        start: One end.
        end: The other.
        points: Nodes, at least 2.

    Returns:
        One `Along` for each number.

    Raises:
        ValueError: Fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"`points` must be >= 2, got {points}.")
    nodes, weights = _lobatto(points)

    def at(t):
        return function(jax.tree.map(lambda a, b: (1 - t) * a + t * b, start, end))

    values = np.array([np.atleast_1d(np.asarray(at(t))) for t in nodes], np.float64)
    return [Along(float(row.min()), float(weights @ row), float(row.max())) for row in values.T]


def curvature_range(
    matvec: Callable, like: Any, *, tol: float = 1e-3, key: Array
) -> tuple[float, float]:
    """Ends of a symmetric operator's spectrum, each moved outwards by its residual.

    An eigenvalue is that near; that none lies beyond is what Lanczos found, not a proof.
    """
    check_key(key)
    low = curvature.eigenvalues(matvec, like, k=1, which="smallest", tol=tol, key=key)
    high = curvature.eigenvalues(matvec, like, k=1, which="largest", tol=tol, key=key)
    return float(low.values[0] - low.residuals[0]), float(high.values[0] + high.residuals[0])


def output_slope(
    outputs_fn: OutputsFn,
    params: Params,
    data: Any,
    *,
    batch_size: int | None = None,
    tol: float = 1e-3,
    key: Array,
) -> float:
    """|J|/sqrt(N), the spectral norm of the Jacobian of all N outputs in the weights.

    Args:
        outputs_fn: `(params, data) -> [n, num_classes]`.
        params: The weights at which it is taken.
        data: N examples.
        batch_size: Micro-batch; None for all at once.
        tol: Relative error of the eigenvalue of J^T J.
        key: PRNG key of Lanczos.
    """
    check_key(key)
    gram = curvature.GaussNewton(outputs_fn, _half_square, params, data, batch_size)
    found = curvature.eigenvalues(gram, params, k=1, tol=tol, key=key)
    return math.sqrt(float(found.values[0] + found.residuals[0]))


def output_gap(outputs: Array, other: Array) -> float:
    """Root mean square over examples of the Euclidean distance of two models' outputs."""
    return float(jnp.sqrt(jnp.mean(jnp.sum((outputs - other) ** 2, axis=-1))))


def _half_square(outputs, data):
    del data
    return jnp.sum(outputs**2, axis=-1) / 2


def _lobatto(points):
    """Nodes and weights on [0, 1], exact for polynomials of degree 2 points - 3."""
    last = np.polynomial.Legendre.basis(points - 1)
    nodes = np.r_[-1.0, np.sort(last.deriv().roots().real), 1.0]
    return (nodes + 1) / 2, 1 / (points * (points - 1) * last(nodes) ** 2)
