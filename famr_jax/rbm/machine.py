"""The Bernoulli machine: energies, conditional probabilities, Gibbs sampling, and cut weights."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid, softplus

from famr_jax.types import Batch, check_count, check_key, check_number


class Boltzmann(NamedTuple):
    """The weights of a restricted Boltzmann machine; a connection that is cut has weight 0.

        E(v, h) = -v^T W h - b^T v - c^T h,    v and h of zeros and ones

    Attributes:
        weights: W, `[num_visible, num_hidden]`.
        visible: b, `[num_visible]`.
        hidden: c, `[num_hidden]`.
    """

    weights: Array
    visible: Array
    hidden: Array


def init(
    key: Array,
    *,
    num_visible: int,
    num_hidden: int,
    means: Array | None = None,
    scale: float = 0.01,
) -> Boltzmann:
    """A fresh machine: small normal weights, visible biases that give each pixel its mean.

    Args:
        key: PRNG key.
        num_visible: Visible units, one a pixel.
        num_hidden: Hidden units.
        means: Mean of each pixel, `[num_visible]`, kept within [0.01, 0.99]; None for biases of 0.
        scale: Standard deviation of the weights.

    Raises:
        ValueError: A count below one; `scale` not positive.
    """
    check_key(key)
    check_count("num_visible", num_visible)
    check_count("num_hidden", num_hidden)
    check_number("scale", scale, above=0)
    weights = scale * jax.random.normal(key, (num_visible, num_hidden))
    visible = jnp.zeros(num_visible) if means is None else logit(means)
    return Boltzmann(weights, visible, jnp.zeros(num_hidden))


def logit(means: Array) -> Array:
    """The visible biases of independent pixels with these means, kept within [0.01, 0.99]."""
    means = jnp.clip(means, 0.01, 0.99)
    return jnp.log(means) - jnp.log1p(-means)


def binarise(images: Batch, *, threshold: float = 0.5) -> Batch:
    """The same examples with every pixel 0 or 1, one row an image.

    Args:
        images: Images scaled to [-1, 1], `[n, height, width, channels]`.
        threshold: Share of full brightness above which a pixel is 1.

    Raises:
        ValueError: `threshold` not strictly between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"`threshold` must be between 0 and 1, both excluded, got {threshold!r}.")
    x = images.x.reshape(len(images), -1)
    return Batch((x > 2 * threshold - 1).astype(x.dtype), images.labels)


def free_energy(params: Boltzmann, v: Array) -> Array:
    """Free energy of visible states, `[n]`: log p(v) = -F(v) - log Z.

    F(v) = -b^T v - sum_j log(1 + exp(c_j + (W^T v)_j))
    """
    return -v @ params.visible - jnp.sum(softplus(params.hidden + v @ params.weights), axis=-1)


def hidden_given(params: Boltzmann, v: Array) -> Array:
    """Probability that each hidden unit is 1, `[n, num_hidden]`."""
    return sigmoid(params.hidden + v @ params.weights)


def visible_given(params: Boltzmann, h: Array) -> Array:
    """Probability that each visible unit is 1, `[n, num_visible]`."""
    return sigmoid(params.visible + h @ params.weights.T)


def bernoulli(key: Array, probability: Array) -> Array:
    """Zeros and ones of these probabilities, in their dtype."""
    check_key(key)
    drawn = jax.random.uniform(key, probability.shape, probability.dtype)
    return (drawn < probability).astype(probability.dtype)


def gibbs(params: Boltzmann, v: Array, key: Array, *, num_steps: int) -> Array:
    """Visible states after some steps of block Gibbs sampling from `v`, `[n, num_visible]`."""
    check_key(key)

    def body(v, key):
        hidden_key, visible_key = jax.random.split(key)
        h = bernoulli(hidden_key, hidden_given(params, v))
        return bernoulli(visible_key, visible_given(params, h)), None

    return jax.lax.scan(body, v, jax.random.split(key, num_steps))[0]


@partial(jax.jit, static_argnames=("num_samples", "num_steps"))
def sample(params: Boltzmann, key: Array, *, num_samples: int, num_steps: int) -> Array:
    """Samples of a machine, `[num_samples, num_visible]`: the ends of chains from fair coins.

    Args:
        params: The machine.
        key: PRNG key.
        num_samples: Chains, which are independent of one another.
        num_steps: Steps of block Gibbs sampling. A machine trained by short chains may give good
            samples after few steps and others at equilibrium: report how many.
    """
    check_key(key)
    start_key, chain_key = jax.random.split(key)
    start = jnp.full((num_samples, params.visible.shape[0]), 0.5, params.weights.dtype)
    return gibbs(params, bernoulli(start_key, start), chain_key, num_steps=num_steps)


def cut(params: Boltzmann, mask: Array | None) -> Boltzmann:
    """The machine without the connections where `mask` is 0, `[num_visible, num_hidden]`."""
    return params if mask is None else params._replace(weights=mask * params.weights)


def random_mask(key: Array, shape: tuple[int, ...], dilution: float | Array) -> Array:
    """A mask that cuts a share of the connections at random: exactly round(dilution * size).

    Raises:
        ValueError: A concrete `dilution` outside [0, 1].
    """
    check_key(key)
    return _largest(jax.random.uniform(key, shape), dilution)


def magnitude_mask(weights: Array, dilution: float | Array) -> Array:
    """A mask that cuts the share of the connections whose weights are smallest.

    Raises:
        ValueError: A concrete `dilution` outside [0, 1].
    """
    return _largest(jnp.abs(weights), dilution)


def _largest(scores, dilution):
    if not isinstance(dilution, (Array, np.ndarray)) and not 0 <= dilution <= 1:
        raise ValueError(f"`dilution` must be in [0, 1], got {dilution!r}.")
    rank = jnp.argsort(jnp.argsort(scores.ravel())).reshape(scores.shape)
    return (rank >= jnp.round(dilution * scores.size)).astype(scores.dtype)
