"""The kernel of infinitely wide networks: Gaussian expectations, and wide random networks."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special

from famr_jax.influence import kernels


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def expectation(function, covariance):
    """E f(u, v) of a Gaussian pair, in polar coordinates, where the kink is on a ray."""
    root = np.linalg.cholesky(covariance)

    def on_circle(angle):
        return function(*(root @ [math.cos(angle), math.sin(angle)]))

    kinks = [math.atan2(-row[0], row[1]) % math.pi for row in root]
    points = sorted({0.0, *kinks, *(kink + math.pi for kink in kinks), 2 * math.pi})
    parts = itertools.pairwise(points)
    return sum(scipy.integrate.quad(on_circle, a, b)[0] for a, b in parts) / (2 * math.pi)


def reference_kernel(x, other, depth, weight_std, bias_std):
    """The tangent kernel of one pair by numerical expectations, without the arc cosine."""
    both = np.stack([x, other])
    covariance = weight_std**2 * both @ both.T / len(x) + bias_std**2
    tangent = covariance[0, 1]

    def relu(u):
        return max(u, 0.0)

    for _ in range(depth):
        # A radius r contributes E r^2 = 2 to products and 1 to signs.

        def product(u, v):
            return 2 * relu(u) * relu(v)

        slope = expectation(lambda u, v: float(u > 0 and v > 0), covariance)
        off = expectation(product, covariance)
        covariance = np.diag(np.diag(covariance)) / 2 + off * (1 - np.eye(2))
        covariance = weight_std**2 * covariance + bias_std**2
        tangent = covariance[0, 1] + weight_std**2 * slope * tangent
    return tangent


@pytest.mark.parametrize(("depth", "weight_std", "bias_std"), [(1, 1.5, 0.3), (3, 2.0, 0.1)])
def test_infinite_kernel_is_the_recursion_of_gaussian_expectations(depth, weight_std, bias_std):
    x = np.random.default_rng(0).normal(size=(3, 4))
    kernel = kernels.ReLUKernel(depth, weight_std, bias_std)
    found = kernel(jnp.asarray(x[:2]), jnp.asarray(x[1:]))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        wanted = reference_kernel(x[i], x[1 + j], depth, weight_std, bias_std)
        np.testing.assert_allclose(found[i, j], wanted, rtol=1e-9)
    np.testing.assert_allclose(kernel(x, x), kernel(x, x).T, rtol=1e-14)
    # On the diagonal the angle is 0: each layer adds the covariance once more.
    covariance = weight_std**2 * (x**2).mean(1) + bias_std**2
    tangent = covariance
    for _ in range(depth):
        covariance = weight_std**2 * covariance / 2 + bias_std**2
        tangent = covariance + weight_std**2 * tangent / 2
    np.testing.assert_allclose(np.diag(kernel(jnp.asarray(x), jnp.asarray(x))), tangent, rtol=1e-14)


def test_infinite_kernel_is_the_mean_of_wide_random_networks():
    depth, weight_std, bias_std, width = 2, 1.5, 0.3, 300
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    sizes = [x.shape[1], *[width] * depth, 1]

    def apply_fn(params, x):
        for i, (matrix, bias) in enumerate(params):
            x = jax.nn.relu(x) if i else x
            x = weight_std * x @ matrix / math.sqrt(len(matrix)) + bias_std * bias
        return x

    @jax.jit
    def sample(key):
        keys = jax.random.split(key, (depth + 1, 2))
        params = [
            (jax.random.normal(k[0], (fan, out)), jax.random.normal(k[1], (out,)))
            for k, fan, out in zip(keys, sizes, sizes[1:], strict=False)
        ]
        return kernels.TangentKernel(apply_fn, params).gram(x, form="dense").matrix[:, 0, :, 0]

    samples = np.stack([sample(key) for key in jax.random.split(jax.random.key(0), 40)])
    wanted = kernels.ReLUKernel(depth, weight_std, bias_std)(x, x)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(0) - wanted) < 4 * error)
    assert np.all(error < 0.05 * np.abs(np.diag(wanted)).mean())


def test_an_input_of_zeros_has_a_finite_kernel():
    x = jnp.zeros((2, 4))
    assert np.isfinite(kernels.ReLUKernel()(x, x)).all()
