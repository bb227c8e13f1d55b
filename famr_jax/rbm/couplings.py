"""A machine as an Ising model: the effective pair couplings once hidden units are summed out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import softplus

from famr_jax.rbm.machine import Boltzmann

NODES = 16


class Ising(NamedTuple):
    """Terms of first and second order of log p(s), with spins s = 2v - 1.

    Attributes:
        fields: `[num_visible]`.
        couplings: `[num_visible, num_visible]`, symmetric, zero diagonal.
    """

    fields: Array
    couplings: Array


@jax.jit
def effective_couplings(params: Boltzmann) -> Ising:
    """The pair couplings and fields of the Ising model that a machine is, beside higher orders.

    The coefficient of s_i s_j in the expansion of -F in products of spins is, summed over hidden
    units with x = c + sum_k a_k (1 + s_k) and a = w/2,

        J_ij = 1/4 E[f(x + a_i + a_j) - f(x + a_i - a_j) - f(x - a_i + a_j) + f(x - a_i - a_j)]

    with f(x) = log(1 + e^x) and the mean over fair spins at the other pixels. Their sum is taken
    as normal (Gauss-Hermite nodes), which is exact for many weak weights, and not for few strong
    ones. For weak weights J_ij = sum_mu w_i w_j p (1 - p) / 4.

    Source: Decelle, Furtlehner, Navas and Seoane (SciPost Phys. 16, 095, 2024), whose expansion
        this is.
    """
    nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
    nodes = jnp.asarray(nodes, params.weights.dtype)
    shares = jnp.asarray(shares / shares.sum(), params.weights.dtype)
    size = params.visible.shape[0]

    def of_unit(total, xs):
        a, bias = xs[0] / 2, xs[1]
        middle, power = bias + jnp.sum(a), jnp.sum(a**2)
        one = jnp.sqrt(jnp.maximum(power - a**2, 0))
        two = jnp.sqrt(jnp.maximum(power - a[:, None] ** 2 - a**2, 0))
        plus, minus = a[:, None] + a, a[:, None] - a

        def at_node(total, node):
            at, share = node
            x = middle + at * one
            fields = share * (softplus(x + a) - softplus(x - a)) / 2
            x = middle + at * two
            same = softplus(x + plus) + softplus(x - plus)
            pairs = share * (same - softplus(x + minus) - softplus(x - minus)) / 4
            return Ising(total.fields + fields, total.couplings + pairs), None

        return jax.lax.scan(at_node, total, (nodes, shares))[0], None

    start = Ising(params.visible / 2, jnp.zeros((size, size), params.weights.dtype))
    found, _ = jax.lax.scan(of_unit, start, (params.weights.T, params.hidden))
    both = (found.couplings + found.couplings.T) / 2  # symmetric but for rounding
    return found._replace(couplings=both * (1 - jnp.eye(size)))
