"""FAMR on logistic regression in float64, where its theory is exact."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from conftest import drawn, random_batch, to_float64
from jax.flatten_util import ravel_pytree

from famr_jax.losses import uniform_kl
from famr_jax.methods import famr
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.minimise import minimise
from famr_jax.types import Context, Pair
from famr_jax.unlearn import run

KEY = jax.random.key(0)


class Exact(NamedTuple):
    """The forget loss of flat weights with its dense derivatives, and FAMR's end points."""

    pair: Pair
    anchor: np.ndarray
    grad: object
    hessian: object
    end: object

    def newton(self, lam, hessian):
        """The step of one damped Newton step with the given Hessian."""
        return np.linalg.solve(hessian + lam * np.eye(len(self.anchor)), -self.grad(self.anchor))


@pytest.fixture(scope="module")
def exact(logistic):
    with jax.enable_x64(True):
        params, forget = to_float64((drawn(logistic.init), random_batch(12, seed=3)))
        pair = Pair(forget, None)
        anchor, unravel = ravel_pytree(params)

        def loss(flat):
            return jnp.mean(uniform_kl(logistic.apply(unravel(flat), forget.x)))

        def end(lam, tol=1e-10):
            objective = AnchoredUniform(logistic.apply, jnp.asarray(lam))
            found = minimise(objective, params, Context(params), pair, key=KEY, tol=tol)
            assert found.converged, found
            return np.asarray(ravel_pytree(found.params)[0]), found

        grad, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
        yield Exact(pair, np.asarray(anchor), grad, hessian, end)


@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_the_end_is_stationary(exact, lam, x64):
    end, found = exact.end(lam)
    residual = np.linalg.norm(exact.grad(end) + lam * (end - exact.anchor))
    assert residual < 2e-10 * np.linalg.norm(exact.grad(exact.anchor))
    np.testing.assert_allclose(found.grad_norm, residual, atol=1e-12)
    assert 0 < found.num_steps < 1000


def test_the_end_is_scipys(exact, logistic, x64):
    """An independent objective in NumPy, minimised by scipy."""
    x = np.asarray(exact.pair.forget.x).reshape(12, -1)

    def objective(flat):
        # `ravel_pytree` sorts by name: bias, then kernel.
        z = x @ flat[3:].reshape(16, 3) + flat[:3]
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        pull = np.exp(log_p) - 1 / 3
        step = flat - exact.anchor
        value = -log_p.mean() - np.log(3) + 0.1 / 2 * step @ step
        return value, np.r_[pull.mean(0), (x.T @ pull / 12).ravel()] + 0.1 * step

    wanted = scipy.optimize.minimize(objective, exact.anchor, jac=True, tol=1e-12)
    end, found = exact.end(0.1)
    np.testing.assert_allclose(end, wanted.x, atol=1e-6)
    np.testing.assert_allclose(found.value, wanted.fun, rtol=1e-10)


@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_the_step_is_a_newton_step_with_the_hessian_averaged_on_its_path(exact, lam, x64):
    end, _ = exact.end(lam)
    step = end - exact.anchor
    nodes, weights = np.polynomial.legendre.leggauss(20)
    points = [exact.anchor + (1 + node) / 2 * step for node in nodes]
    path = sum(w / 2 * np.asarray(exact.hessian(p)) for w, p in zip(weights, points, strict=True))
    np.testing.assert_allclose(step, exact.newton(lam, path), rtol=1e-6, atol=1e-9)
    # The Hessian at the anchor alone does not do it: the test can tell.
    assert not np.allclose(step, exact.newton(lam, exact.hessian(exact.anchor)), rtol=1e-3)


def test_at_large_lam_the_end_stays_at_the_anchor(exact, x64):
    slope = np.linalg.norm(exact.grad(exact.anchor))
    for lam in (1.0, 1e2, 1e4):
        # The forget loss is convex here, so the bound is exact.
        assert np.linalg.norm(exact.end(lam)[0] - exact.anchor) <= slope / lam * (1 + 1e-9)


def test_the_step_tends_to_a_damped_newton_step_as_lam_to_minus_two(exact, x64):
    lams = [10.0, 100.0]
    hessian = np.asarray(exact.hessian(exact.anchor))
    to_newton, to_gradient = [], []
    for lam in lams:
        step = exact.end(lam, tol=1e-11)[0] - exact.anchor
        newton, gradient = exact.newton(lam, hessian), -exact.grad(exact.anchor) / lam
        to_newton.append(np.linalg.norm(step - newton) / np.linalg.norm(step))
        to_gradient.append(np.linalg.norm(step - gradient) / np.linalg.norm(step))

    def order(errors):
        return np.log10(errors[0] / errors[1])

    np.testing.assert_allclose(order(to_newton), 2, atol=0.1)
    np.testing.assert_allclose(order(to_gradient), 1, atol=0.1)


def test_gradient_descent_below_its_largest_step_reaches_the_same_end(exact, logistic, x64):
    lam = 1.0
    top = np.linalg.eigvalsh(exact.hessian(exact.anchor)).max()
    unravel = ravel_pytree(to_float64(drawn(logistic.init)))[1]
    unlearner = famr(logistic.apply, lam=lam, optimizer=optax.sgd(float(1 / (2 * top + lam))))
    settings = {"epochs": 300, "batch_size": 12, "key": KEY}
    done = run(unlearner, unravel(exact.anchor), exact.pair.forget, **settings)
    np.testing.assert_allclose(ravel_pytree(done.params)[0], exact.end(lam)[0], atol=1e-8)


def test_minimise_says_when_it_did_not_arrive(exact, logistic, x64):
    params = to_float64(drawn(logistic.init))
    objective = AnchoredUniform(logistic.apply, 0.1)
    stop = partial(minimise, objective, params, Context(params), exact.pair, key=KEY, tol=1e-10)
    found = stop(max_steps=2)
    assert not found.converged
    assert found.num_steps == 2
    assert found.value < objective(params, Context(params), exact.pair, KEY)[0]
