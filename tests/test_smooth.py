"""Smooth functions with derivatives of their own: those of the formulas, up to the third."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famr_jax.models import smooth


def _gelu_plain(x):
    return jax.nn.gelu(x, approximate=True)


def _standardise_plain(x):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize(
    ("ours", "plain"),
    [(smooth.gelu, _gelu_plain), (partial(smooth.standardise, epsilon=1e-6), _standardise_plain)],
)
@pytest.mark.usefixtures("x64")
def test_written_out_derivatives_are_those_of_the_formula(ours, plain):
    x, u, v, w = jax.random.normal(jax.random.key(0), (4, 3, 7), jnp.float64)

    def derivatives(function):
        """Value, gradient, and mixed second and third derivatives, forward over reverse."""
        first = jax.grad(lambda x: jnp.vdot(w, jnp.sin(function(2 * x))))

        def second(x):
            return jax.jvp(first, (x,), (u,))[1]

        return function(x), first(x), second(x), jax.jvp(second, (x,), (v,))[1]

    for found, wanted in zip(derivatives(ours), derivatives(plain), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)
