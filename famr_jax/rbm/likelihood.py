"""Likelihood: exact for few hidden units, by annealed importance sampling, pseudo-likelihood."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, logsumexp, sigmoid, softplus

from famr_jax.rbm.machine import Boltzmann, bernoulli, free_energy
from famr_jax.types import check_key

MOST_EXACT = 20
"""Hidden units up to which all their 2^n states are summed."""
BLOCK = 10
"""Hidden units whose states are summed at once."""


@jax.jit
def log_partition(params: Boltzmann) -> Array:
    """The exact log Z, in nats, by the sum over all states of the hidden units.

        Z = sum_h exp(c^T h) prod_i (1 + exp(b_i + (W h)_i))

    Raises:
        ValueError: More than `MOST_EXACT` hidden units.
    """
    size = params.hidden.shape[0]
    if size > MOST_EXACT:
        rule = f"must be <= {MOST_EXACT} for the exact sum; `ais` estimates beyond"
        raise ValueError(f"`num_hidden` {rule}, got {size}.")
    low = min(size, BLOCK)
    states = _bits(jnp.arange(2**low), low)
    fields = params.visible + states @ params.weights[:, :low].T
    energies = states @ params.hidden[:low]

    def block(number):
        state = _bits(number, size - low)
        field = fields + params.weights[:, low:] @ state
        return logsumexp(energies + state @ params.hidden[low:] + jnp.sum(softplus(field), axis=-1))

    return logsumexp(jax.lax.map(block, jnp.arange(2 ** (size - low))))


def _bits(numbers, size):
    return ((jnp.asarray(numbers)[..., None] >> jnp.arange(size)) & 1).astype(float)


class Estimate(NamedTuple):
    """An estimate of log Z, in nats.

    Attributes:
        log_z: The logarithm of the mean weight, plus the base's log Z.
        low: Of the mean weight less three standard errors; -inf where that is not positive.
        high: Of the mean weight plus three standard errors.
        effective: Effective number of chains, (sum w)^2 / sum w^2; near 1 nothing is known.
    """

    log_z: Array
    low: Array
    high: Array
    effective: Array


@partial(jax.jit, static_argnames=("num_chains", "num_steps"))
def ais(
    params: Boltzmann,
    key: Array,
    *,
    base: Array | None = None,
    num_chains: int = 200,
    num_steps: int = 1000,
) -> Estimate:
    """Annealed importance sampling of log Z, from independent pixels to the machine.

        p_t(v) ~ exp((1 - t) a^T v + t b^T v) prod_j (1 + exp(t (c_j + (W^T v)_j))),  t from 0 to 1

    The mean weight is unbiased for Z, its logarithm is too low on average. The error bars are those
    of the weights seen: chains that all miss a mode do not show it.

    Args:
        params: The machine.
        key: PRNG key.
        base: a, visible biases at t = 0, `[num_visible]`; by default b. `logit` of the pixels'
            means is the better choice.
        num_chains: Independent chains.
        num_steps: Temperatures, evenly spaced.

    Source: Salakhutdinov and Murray (ICML 2008), sections 3.1 and 4.1.
    """
    check_key(key)
    base = params.visible if base is None else base
    start_key, chain_key = jax.random.split(key)
    shape = (num_chains, base.shape[0])
    v = bernoulli(start_key, jnp.broadcast_to(sigmoid(base), shape))

    def body(carry, xs):
        v, log_w = carry
        t, before, key = xs
        x, biases = params.hidden + v @ params.weights, v @ (params.visible - base)
        step = (t - before) * biases + jnp.sum(softplus(t * x) - softplus(before * x), axis=-1)
        hidden_key, visible_key = jax.random.split(key)
        h = bernoulli(hidden_key, sigmoid(t * x))
        field = (1 - t) * base + t * (params.visible + h @ params.weights.T)
        return (bernoulli(visible_key, sigmoid(field)), log_w + step), None

    ladder = jnp.linspace(0, 1, num_steps + 1, dtype=v.dtype)
    keys = jax.random.split(chain_key, num_steps)
    carry = (v, jnp.zeros(num_chains, v.dtype))
    (_, log_w), _ = jax.lax.scan(body, carry, (ladder[1:], ladder[:-1], keys))
    log_base = params.hidden.shape[0] * jnp.log(2.0) + jnp.sum(softplus(base))
    weights = jnp.exp(log_w - jnp.max(log_w))
    mean, error = jnp.mean(weights), jnp.std(weights, ddof=1) / num_chains**0.5
    ends = jnp.log(jnp.maximum(jnp.stack([mean, mean - 3 * error, mean + 3 * error]), 0.0))
    log_z, low, high = log_base + jnp.max(log_w) + ends
    return Estimate(log_z, low, high, jnp.sum(weights) ** 2 / jnp.sum(weights**2))


def log_likelihood(params: Boltzmann, v: Array, log_z: Array | float) -> Array:
    """Log-likelihood of visible states in nats, `[n]`, of a known or estimated log Z."""
    return -free_energy(params, v) - log_z


@jax.jit
def pseudo_likelihood(params: Boltzmann, v: Array) -> Array:
    """Sum over the pixels of the log-probability of each given all others, in nats, `[n]`.

    PL(v) = sum_i log sigmoid(F(v with pixel i flipped) - F(v))
    """
    here = free_energy(params, v)

    def of_pixel(i):
        flipped = v.at[:, i].set(1 - v[:, i])
        return log_sigmoid(free_energy(params, flipped) - here)

    return jnp.sum(jax.lax.map(of_pixel, jnp.arange(v.shape[1])), axis=0)
