"""Removal in function space against dense primal references, and retraining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special
from conftest import CLASSES, counting, drawn, random_batch
from jax.flatten_util import ravel_pytree

from famr_jax.influence import dual, kernels
from famr_jax.influence.dual import CROSS_ENTROPY, SQUARED

N, L2 = 12, 1e-2
LOSSES = {"cross_entropy": CROSS_ENTROPY, "squared": SQUARED}
FORMS = ("dense", "matrix-free")
FORGET = np.arange(N) % 3 == 0


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


class Problem:
    """A linearised net of 163 parameters on 12 examples, with its Jacobian written out."""

    def __init__(self, model):
        self.centre = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), drawn(model.init))
        batch = random_batch(N + 5, seed=3)
        x, self.labels = batch.x.astype(jnp.float64), batch.labels[:N]
        self.x, self.query, self.query_labels = x[:N], x[N:], batch.labels[N:]
        self.apply_fn = model.apply
        self.linear = kernels.linearize_model(model.apply, self.centre)
        self.flat, self.unravel = ravel_pytree(self.centre)
        self.kernel = kernels.TangentKernel(model.apply, self.centre)
        self.offset = model.apply(self.centre, self.x)

        rows = jax.jit(jax.jacobian(lambda flat, x: model.apply(self.unravel(flat), x)))
        self.jacobian = np.asarray(rows(self.flat, self.x)).reshape(-1, self.flat.size)
        self.query_jacobian = np.asarray(rows(self.flat, self.query)).reshape(-1, self.flat.size)

    def gradient_and_hessian(self, loss, move, rows, by):
        """Of the objective over some rows, divided by `by`, at centre + move; dense, by NumPy."""
        j = self.jacobian.reshape(N, CLASSES, -1)[rows].reshape(-1, self.flat.size)
        outputs = np.asarray(self.offset)[rows] + (j @ move).reshape(-1, CLASSES)
        hot = np.eye(CLASSES)[self.labels[rows]]
        if loss is SQUARED:
            slopes, curves = outputs - hot, [np.eye(CLASSES)] * len(outputs)
        else:
            p = scipy.special.softmax(outputs, axis=1)
            slopes, curves = p - hot, [np.diag(q) - np.outer(q, q) for q in p]
        gradient = j.T @ slopes.ravel() / by + L2 * move
        return gradient, j.T @ scipy.linalg.block_diag(*curves) @ j / by + L2 * np.eye(len(move))

    def minimum(self, loss, rows, by):
        """The move from the centre that minimises the objective, by dense Newton steps."""
        move = np.zeros(self.flat.size)
        for _ in range(8):
            gradient, hessian = self.gradient_and_hessian(loss, move, rows, by)
            move = move - np.linalg.solve(hessian, gradient)
        return move


@pytest.fixture(scope="module")
def problem(model):
    with jax.enable_x64(True):
        return Problem(model)


def relative(found, wanted):
    return np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted)


def test_linearised_model_touches_the_model_and_is_linear(problem):
    at_the_centre = problem.linear(problem.centre, problem.x)
    np.testing.assert_allclose(at_the_centre, problem.offset, rtol=1e-13, atol=1e-15)
    move = np.random.default_rng(0).normal(size=problem.flat.size)
    wanted = problem.offset + (problem.jacobian @ move).reshape(N, CLASSES)
    moved = problem.unravel(problem.flat + move)
    np.testing.assert_allclose(problem.linear(moved, problem.x), wanted, atol=1e-12)
    static = jax.jit(lambda f, params, x: f(params, x), static_argnums=0)
    argument = jax.jit(lambda f, params, x: f(params, x))
    for jitted in (static, argument):
        np.testing.assert_allclose(jitted(problem.linear, moved, problem.x), wanted, atol=1e-12)


def test_linearised_linear_model_is_itself(logistic):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), drawn(logistic.init))
    other = jax.tree.map(lambda leaf: leaf + 1.0, params)
    x = random_batch(4, seed=0).x
    linear = kernels.linearize_model(logistic.apply, params)
    np.testing.assert_allclose(linear(other, x), logistic.apply(other, x), atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_tangent_kernel_is_its_dense_matrix(problem, batch_size, monkeypatch):
    kernel = kernels.TangentKernel(problem.apply_fn, problem.centre, batch_size)
    j, j_query = problem.jacobian, problem.query_jacobian
    matrix = (j @ j.T).reshape(N, CLASSES, N, CLASSES)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 5 * CLASSES * problem.flat.nbytes)
    np.testing.assert_allclose(kernel.gram(problem.x, form="dense").matrix, matrix, atol=1e-12)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(N, CLASSES)))
    product = kernel.product(problem.query, problem.x, weights)
    np.testing.assert_allclose(np.ravel(product), j_query @ j.T @ weights.ravel(), atol=1e-11)
    back = ravel_pytree(kernel.to_params(problem.x, weights))[0]
    np.testing.assert_allclose(back, j.T @ weights.ravel(), atol=1e-12)
    for form in FORMS:
        gram = kernel.gram(problem.x, form=form)
        np.testing.assert_allclose(np.ravel(gram(weights)), j @ back, atol=1e-11)
        some = np.array([1, 4, 5])
        wanted = np.einsum("ncmd,md->nc", matrix[some][:, :, some], weights[some])
        np.testing.assert_allclose(gram.among(some)(weights[some]), wanted, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_fit_is_the_primal_minimum_and_its_weights_represent_it(problem, name):
    loss = LOSSES[name]
    move = problem.minimum(loss, np.arange(N), N)
    gram = problem.kernel.gram(problem.x, form="matrix-free")
    found = dual.fit(loss, gram, problem.labels, problem.offset, l2=L2, tol=1e-11)
    assert found.converged
    outputs = problem.linear(problem.unravel(problem.flat + move), problem.x)
    np.testing.assert_allclose(found.outputs, outputs, atol=1e-9)
    weights = dual.dual_weights(loss, outputs, problem.labels, l2=L2)
    np.testing.assert_allclose(found.weights, weights, atol=1e-8)
    back = ravel_pytree(problem.kernel.to_params(problem.x, weights))[0]
    assert relative(back, move) < 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normaliser", ["n", "n-m"])
@pytest.mark.parametrize("name", LOSSES)
def test_removal_is_one_primal_newton_step_and_for_squared_loss_retraining(
    problem, name, normaliser, form
):
    loss, rows = LOSSES[name], np.flatnonzero(~FORGET)
    by = N if normaliser == "n" else len(rows)
    move = problem.minimum(loss, np.arange(N), N)
    gradient, hessian = problem.gradient_and_hessian(loss, move, rows, by)
    step = -np.linalg.solve(hessian, gradient)
    outputs = problem.offset + (problem.jacobian @ move).reshape(N, CLASSES)
    gram = problem.kernel.gram(problem.x, form=form)
    how = {"l2": L2, "normaliser": normaliser, "tol": 1e-12}
    found = dual.remove(loss, gram, outputs, problem.labels, FORGET, **how)
    assert found.converged
    back = ravel_pytree(problem.kernel.to_params(problem.x, found.value))[0]
    assert relative(back, step) < 1e-8
    changes = problem.kernel.product(problem.query, problem.x, found.value)
    assert relative(np.ravel(changes), problem.query_jacobian @ step) < 1e-8
    weights = dual.dual_weights(loss, outputs, problem.labels, l2=L2)
    np.testing.assert_allclose((weights + found.value)[FORGET], 0, atol=1e-9)
    retrained = problem.minimum(loss, rows, by) - move
    error = relative(back, retrained)
    assert error < 1e-8 if loss is SQUARED else 1e-3 < error < 0.3


def test_float32_keeps_three_digits(problem):
    """Also at lambda_max / l2 of several thousand, by which the last difference may lose."""

    def cast(tree):
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)

    args = (problem.offset, problem.labels, FORGET)
    gram = problem.kernel.gram(problem.x, form="dense")
    assert np.linalg.eigvalsh(gram.matrix.reshape(36, 36))[-1] / N / 1e-3 > 1000
    wanted = dual.remove(SQUARED, gram, *args, l2=1e-3, tol=1e-10).value
    with jax.enable_x64(False):
        kernel = kernels.TangentKernel(problem.apply_fn, cast(problem.centre))
        gram = kernel.gram(cast(problem.x), form="matrix-free")
        found = dual.remove(
            SQUARED,
            gram,
            cast(problem.offset),
            np.asarray(problem.labels),
            FORGET,
            l2=1e-3,
            tol=1e-6,
        )
        assert found.value.dtype == jnp.float32
    assert relative(found.value, np.asarray(wanted)) < 1e-3


def test_normalisers_are_two_models(problem):
    gram = problem.kernel.gram(problem.x)
    outputs = dual.fit(SQUARED, gram, problem.labels, problem.offset, l2=1.0).outputs
    both = [
        dual.remove(SQUARED, gram, outputs, problem.labels, FORGET, l2=1.0, normaliser=which).value
        for which in ("n", "n-m")
    ]
    assert relative(both[0], both[1]) > 0.1


def test_loss_changes_are_the_first_order(problem):
    outputs = problem.apply_fn(problem.centre, problem.query)
    changes = 1e-5 * np.random.default_rng(0).normal(size=outputs.shape)
    for loss in LOSSES.values():

        def value(at, loss=loss):
            return loss.value(at, problem.query_labels)

        found = dual.loss_changes(loss, outputs, problem.query_labels, changes)
        np.testing.assert_allclose(found, value(outputs + changes) - value(outputs), atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_root_is_a_root_of_the_curvature(name):
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=CLASSES))

    def value(outputs):
        return LOSSES[name].value(outputs[None], jnp.zeros(1, int))[0]

    root = jax.vmap(lambda v: LOSSES[name].root(outputs[None], v[None])[0], out_axes=1)
    root = jax.jit(root)(jnp.eye(CLASSES))
    wanted = jax.jit(jax.hessian(value))(outputs)
    np.testing.assert_allclose(root @ root.T, wanted, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_function_space_solution_is_the_minimum_and_removal_follows_it(problem, name):
    loss, kernel = LOSSES[name], kernels.ReLUKernel(2, 2.0, 0.1)
    gram, zeros = kernel.gram(problem.x), jnp.zeros((N, CLASSES))
    found = dual.fit(loss, gram, problem.labels, zeros, l2=L2, tol=1e-11)
    weights, matrix = np.asarray(found.weights), np.asarray(kernel(problem.x, problem.x))
    hot = np.eye(CLASSES)[problem.labels]
    outputs = matrix @ weights
    predicted = outputs if loss is SQUARED else scipy.special.softmax(outputs, axis=1)
    gradient = (predicted - hot) / N + L2 * weights
    assert found.converged
    assert np.linalg.norm(gradient) < 1e-10 * np.linalg.norm(hot / N)
    np.testing.assert_allclose(gram(weights), outputs, atol=1e-11)
    np.testing.assert_allclose(
        kernel.product(problem.query, problem.x, weights),
        kernel(problem.query, problem.x) @ weights,
        atol=1e-12,
    )
    how = {"l2": L2, "normaliser": "n-m", "tol": 1e-12}
    change = dual.remove(loss, gram, found.outputs, problem.labels, FORGET, **how).value
    np.testing.assert_allclose((weights + change)[FORGET], 0, atol=1e-9)
    if loss is SQUARED:
        kept, m = matrix[np.ix_(~FORGET, ~FORGET)], (~FORGET).sum()
        retrained = np.linalg.solve(kept / m + L2 * np.eye(m), hot[~FORGET] / m)
        assert relative((weights + change)[~FORGET], retrained) < 1e-9


def test_an_answer_that_is_not_one_says_so(problem):
    gram = problem.kernel.gram(problem.x, form="matrix-free")
    args = (SQUARED, gram, problem.offset, problem.labels, FORGET)
    short = dual.remove(*args, l2=1e-6, tol=1e-10, max_steps=3)
    assert not short.converged
    assert "max_steps" in short.why
    broken = kernels.Dense(-problem.kernel.gram(problem.x, form="dense").matrix)
    failed = dual.remove(SQUARED, broken, *args[2:], l2=1e-6)
    assert not failed.converged
    assert "indefinite" in failed.why
    args = (CROSS_ENTROPY, gram, problem.labels, problem.offset)
    stopped = dual.fit(*args, l2=1e-6, tol=1e-12, max_steps=1)
    assert not stopped.converged


def test_form_is_the_cheaper_one(problem):
    few = problem.kernel.flops(problem.x)
    many = problem.kernel.flops(jax.ShapeDtypeStruct((10_000, 4, 4, 1), jnp.float64))
    assert few["dense"] < few["matrix-free"]
    assert many["dense"] > many["matrix-free"]
    assert isinstance(problem.kernel.gram(problem.x), kernels.Dense)
    for form, kind in zip(FORMS, (kernels.Dense, kernels.MatrixFree), strict=True):
        assert isinstance(problem.kernel.gram(problem.x, form=form), kind)


def test_equal_sizes_are_traced_once(problem):
    counted, traces = counting(problem.apply_fn)
    for seed in range(3):
        scale = 1.0 + seed
        centre = jax.tree.map(lambda leaf, scale=scale: scale * leaf, problem.centre)
        gram = kernels.TangentKernel(counted, centre).gram(problem.x, form="matrix-free")
        mask = np.roll(FORGET, seed)
        dual.remove(SQUARED, gram, problem.offset, problem.labels, mask, l2=L2 * scale)
        if seed == 0:
            once = len(traces)
    assert len(traces) == once


def test_bad_arguments(problem):
    gram = problem.kernel.gram(problem.x, form="matrix-free")
    args = (SQUARED, gram, problem.offset, problem.labels)
    for bad in ({"l2": 0.0}, {"l2": L2, "tol": 0.0}, {"l2": L2, "normaliser": "mean"}):
        with pytest.raises(ValueError, match=list(bad)[-1]):
            dual.remove(*args, FORGET, **bad)
    for mask in (np.zeros(N, bool), np.ones(N, bool), FORGET[:-1], FORGET.astype(int)):
        with pytest.raises(ValueError, match="forget"):
            dual.remove(*args, mask, l2=L2)
    with pytest.raises(ValueError, match="form"):
        problem.kernel.gram(problem.x, form="sparse")
    with pytest.raises(ValueError, match="l2"):
        dual.fit(SQUARED, gram, problem.labels, problem.offset, l2=-1.0)
    with pytest.raises(ValueError, match="depth"):
        kernels.ReLUKernel(0)
    for loss in LOSSES.values():
        for labels in (problem.labels.at[0].set(CLASSES), problem.labels.at[0].set(-1)):
            with pytest.raises(ValueError, match="`labels` must be classes of 3"):
                dual.fit(loss, gram, labels, problem.offset, l2=L2)
            with pytest.raises(ValueError, match="`labels` must be classes of 3"):
                dual.remove(loss, gram, problem.offset, labels, FORGET, l2=L2)
    summed = SQUARED._replace(value=lambda f, y: jnp.sum(SQUARED.value(f, y)))
    with pytest.raises(ValueError, match="one value per example"):
        dual.fit(summed, gram, problem.labels, problem.offset, l2=L2)
    with pytest.raises(ValueError, match="one value per example"):
        dual.dual_weights(summed, problem.offset, problem.labels, l2=L2)
    with pytest.raises(ValueError, match=r"must be \[n, C\] and \[n\]"):
        dual.fit(SQUARED, gram, problem.labels[1:], problem.offset, l2=L2)
