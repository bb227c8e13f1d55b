"""K-FAC and EK-FAC of the benchmark against dense float64: factors, diagonal, inverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import KEY, jacobian, problem, small_model
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree

from experiments.benchmarks import kronecker
from famr_jax import curvature, models
from famr_jax.models.vit import Variant, ViT
from famr_jax.types import Batch

PATCH = 4  # the whole image of a small model: one token


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


@functools.cache
def case(name, n=9):
    """A model at generic weights, its images, and the dense Gauss-Newton matrix by blocks."""
    with jax.enable_x64(True):
        if name == "one token":
            module = ViT(3, PATCH, Variant(4, 1, 1))
            model = models.Model(name, 3, (4, 4, 1), module)
            flat, unravel = ravel_pytree(model.init(KEY))
            params = unravel(flat + 0.3 * jax.random.normal(KEY, flat.shape, flat.dtype))
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
            batch = Batch(jax.random.normal(KEY, (n, 4, 4, 1), jnp.float64), jnp.arange(n) % 3)
        else:
            model = small_model(name)
            params, batch, *_ = problem(name, n)
        return model.apply, params, batch


def dense(apply_fn, params, batch):
    """The Gauss-Newton matrix and the positions in it of each dense layer's kernel and bias."""
    j = jacobian(lambda params: apply_fn(params, batch.x), params)
    p = np.asarray(jax.nn.softmax(apply_fn(params, batch.x)))
    inner = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    matrix = np.einsum("nci,ncd,ndj->ij", j, inner, j, optimize=True) / len(p)
    flat, unravel = ravel_pytree(params)
    return matrix, flatten_dict(unravel(jnp.arange(flat.size)))


def block(matrix, places, path):
    at = np.r_[np.ravel(places[*path, "kernel"]), np.ravel(places[*path, "bias"])].astype(int)
    return matrix[np.ix_(at, at)]


@pytest.mark.parametrize("name", ["logistic", "mlp_5", "one token"])
@pytest.mark.parametrize("copies", [1, 4])
def test_factors_are_the_block_where_every_example_is_the_same(name, copies):
    apply_fn, params, batch = case(name)
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], copies, axis=0), batch)
    matrix, places = dense(apply_fn, params, batch)
    found = kronecker.factors(apply_fn, params, batch)
    count = {"logistic": 1, "mlp_5": 2, "one token": 6}
    assert len(found) == count[name]
    for path, (a, g) in found.items():
        np.testing.assert_allclose(np.kron(a, g), block(matrix, places, path), atol=1e-12)


def test_factors_are_means_over_images_of_inputs_and_of_gradients_at_all_labels():
    apply_fn, params, batch = case("mlp_5")
    found = kronecker.factors(apply_fn, params, batch)
    hidden, head = (flatten_dict(params)[name, "kernel"] for name in ("layer_0", "head"))
    x = np.asarray(batch.x).reshape(9, -1)
    middle = np.tanh(x @ hidden + params["layer_0"]["bias"])
    p = np.asarray(jax.nn.softmax(apply_fn(params, batch.x)))
    g = np.eye(3) - p[:, None]  # of label c, with respect to the logits; the sign does not matter
    g_hidden = (g @ head.T) * (1 - middle**2)[:, None]
    for path, inputs, slopes in (("layer_0", x, g_hidden), ("head", middle, g)):
        a = np.c_[inputs, np.ones(9)]
        left, right = found[path,]
        np.testing.assert_allclose(left, a.T @ a / 9, atol=1e-12)
        wanted = np.einsum("nc,nci,ncj->ij", p, slopes, slopes) / 9
        np.testing.assert_allclose(right, wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp_5", "vit"])
def test_rescaling_takes_the_diagonal_of_the_block_in_the_eigenvectors(name):
    apply_fn, params, batch = case(name)
    matrix, places = dense(apply_fn, params, batch)
    _, make = kronecker.preconditioner(apply_fn, params, batch, rescaled=True)
    made = make(0.1)
    for path, layer in made.layers.items():
        basis = np.kron(layer.left, layer.right)
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-10)
        wanted = np.diag(basis.T @ block(matrix, places, path) @ basis)
        np.testing.assert_allclose(layer.values.ravel(), wanted, atol=1e-12)
    for path, leaf in made.diagonal.items():
        wanted = np.diag(matrix)[np.asarray(places[path]).astype(int)]
        np.testing.assert_allclose(leaf, wanted, atol=1e-12)
    assert {path[-1] for path in made.diagonal} == (
        {"scale", "bias", "position"} if name == "vit" else set()
    )


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("name", ["mlp_5", "vit"])
def test_it_is_the_inverse_of_the_dense_kronecker_matrix_and_positive_definite(name, rescaled):
    apply_fn, params, batch = case(name)
    passes, make = kronecker.preconditioner(apply_fn, params, batch, rescaled=rescaled)
    assert passes == 3 * (1 + (name == "vit") + rescaled)
    made, damping = make(1e-3), 1e-3
    flat, unravel = ravel_pytree(params)
    places = flatten_dict(unravel(jnp.arange(flat.size)))
    form = np.asarray(jax.vmap(lambda e: ravel_pytree(made(unravel(e)))[0])(jnp.eye(flat.size)))
    np.testing.assert_allclose(form, form.T, atol=1e-8)
    assert np.linalg.eigvalsh(form)[0] > 0
    wanted, factors = np.zeros_like(form), kronecker.factors(apply_fn, params, batch)
    for path, layer in made.layers.items():
        matrix = np.kron(*factors[path])
        if rescaled:
            basis = np.kron(layer.left, layer.right)
            matrix = (basis * np.ravel(layer.values)) @ basis.T
        at = np.r_[np.ravel(places[*path, "kernel"]), np.ravel(places[*path, "bias"])].astype(int)
        wanted[np.ix_(at, at)] = np.linalg.inv(matrix + damping * np.eye(len(at)))
    for path, leaf in made.diagonal.items():
        at = np.ravel(places[path]).astype(int)
        wanted[at, at] = 1 / (np.ravel(leaf) + damping)
    np.testing.assert_allclose(form, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rescaled", [False, True])
def test_solutions_are_those_without_it_and_take_two_products_where_it_is_the_inverse(rescaled):
    apply_fn, params, batch = case("logistic")

    def outputs(params, batch):
        return apply_fn(params, batch.x)

    def solutions(batch):
        matrix = curvature.fisher(outputs, params, batch)
        _, make = kronecker.preconditioner(apply_fn, params, batch, rescaled=rescaled)
        for made in (None, make(1e-3)):
            yield curvature.solve(
                matrix, params, damping=1e-3, tol=1e-9, max_steps=300, preconditioner=made
            )

    plain, found = solutions(batch)
    assert plain.converged
    assert found.converged
    first, second = (ravel_pytree(each.value)[0] for each in (plain, found))
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-6)
    one = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 4, axis=0), batch)
    _, found = solutions(one)
    assert found.converged
    assert found.num_steps == 2  # a step, and the residual anew
