"""GELU and standardisation with their derivatives written out, for curvature's second pass.

Differentiated step by step, each keeps an array for every product in its formula; written out, one
for every order of its derivative. Values and derivatives of all orders stay the same functions.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

SCALE, CUBIC = math.sqrt(2 / math.pi), 0.044715


def at_least_float32(x: Array) -> Array:
    """The array itself, or in float32 if its dtype is narrower."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inner(x: Array) -> Array:
    return jnp.tanh(SCALE * (x + CUBIC * x**3))


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x (1 + t) / 2 with t = tanh(sqrt(2 / pi) (x + 0.044715 x^3)): `jax.nn.gelu`'s default."""
    return x * (1 + _inner(x)) / 2


@jax.custom_jvp
def _gelu_slope(x):
    t, rate = _inner(x), SCALE * (1 + 3 * CUBIC * x**2)
    return (1 + t + x * (1 - t**2) * rate) / 2


def _gelu_curve(x):
    t, rate = _inner(x), SCALE * (1 + 3 * CUBIC * x**2)
    return (1 - t**2) * (rate * (1 - x * t * rate) + 3 * SCALE * CUBIC * x**2)


@gelu.defjvp
def _(primals, tangents):
    return gelu(*primals), _gelu_slope(*primals) * tangents[0]


@_gelu_slope.defjvp
def _(primals, tangents):
    return _gelu_slope(*primals), _gelu_curve(*primals) * tangents[0]


def standardise(x: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) over the last axis, the variance of centred values."""
    return _standardise(x, epsilon)[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardise(x, epsilon):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return x * rate, rate


@_standardise.defjvp
def _(epsilon, primals, tangents):
    y, rate = _standardise(*primals, epsilon)
    tangent = rate * tangents[0]
    along = jnp.mean(y * tangent, axis=-1, keepdims=True)
    centred = tangent - jnp.mean(tangent, axis=-1, keepdims=True)
    return (y, rate), (centred - along * y, -along * rate)
