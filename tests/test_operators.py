"""Curvature operators against dense float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import KEY, OPERATORS, columns, hessian, jacobian, problem, small_model
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from famr_jax import curvature, losses
from famr_jax.data.stream import OnDisk
from famr_jax.types import Batch

MODELS = ["logistic", "mlp_5", "vit"]


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


@pytest.fixture(scope="module")
def references():
    """Every operator's dense matrix, by model."""
    found = {}
    with jax.enable_x64(True):
        for name in MODELS:
            params, batch, loss_fn, outputs_fn, _ = problem(name)
            n = len(batch)
            j = jacobian(lambda p: outputs_fn(p, batch), params)  # noqa: B023
            p = np.asarray(jax.nn.softmax(outputs_fn(params, batch)))
            inner = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
            g = jacobian(lambda p: loss_fn(p, batch), params)  # noqa: B023
            flat = j.reshape(n * 3, -1)
            gauss_newton = np.einsum("nci,ncd,ndj->ij", j, inner, j, optimize=True) / n
            found[name] = {
                "hessian": hessian(lambda p: jnp.mean(loss_fn(p, batch)), params),  # noqa: B023
                "gauss_newton": gauss_newton,
                "fisher": gauss_newton,
                "empirical": g.T @ g / n,
                "jacobian": flat,
                "transpose": flat.T,
                "ntk": flat @ flat.T,
            }
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [None, 5, 1])
def test_operators_are_their_dense_matrices_whatever_the_micro_batch(name, batch_size, references):
    params, batch, loss_fn, outputs_fn, output_loss = problem(name)
    reference, data = references[name], (params, batch, batch_size)
    jacobian = curvature.Jacobian(outputs_fn, *data)
    operators = {
        "hessian": curvature.Hessian(loss_fn, *data),
        "gauss_newton": curvature.GaussNewton(outputs_fn, output_loss, *data),
        "fisher": curvature.fisher(outputs_fn, params, batch, batch_size=batch_size),
        "empirical": curvature.EmpiricalFisher(loss_fn, *data),
        "jacobian": jacobian,
        "transpose": jacobian.transpose(),
        "ntk": curvature.NTK(outputs_fn, *data),
    }
    flat, unravel = ravel_pytree(params)
    v = jax.random.normal(KEY, flat.shape)
    u = jax.random.normal(KEY, (len(batch), 3))
    like = {name: u if name in ("transpose", "ntk") else unravel(v) for name in operators}

    @jax.jit
    def products(operators):
        direct = {name: matvec(like[name]) for name, matvec in operators.items()}
        ahead = {name: curvature.linearized(m)(like[name]) for name, m in operators.items()}
        return direct, ahead if batch_size is None else direct

    for found in products(operators):
        for name, product in found.items():
            matrix = reference[name]
            wanted = matrix @ (u.ravel() if like[name] is u else v)
            np.testing.assert_allclose(ravel_pytree(product)[0], wanted, atol=1e-10)


def test_product_through_layer_norm_is_the_difference_of_gradients():
    """Where fused LayerNorm made a peer's products wrong by 2e-3."""
    params, batch, loss_fn, *_ = problem("vit")
    flat, unravel = ravel_pytree(params)
    v = jax.random.normal(KEY, flat.shape)
    grad = jax.jit(jax.grad(lambda flat: jnp.mean(loss_fn(unravel(flat), batch))))
    step = 1e-6
    wanted = (grad(flat + step * v) - grad(flat - step * v)) / (2 * step)
    product = jax.jit(lambda matvec, v: matvec(v))
    found = ravel_pytree(product(curvature.Hessian(loss_fn, params, batch), unravel(v)))[0]
    assert jnp.linalg.norm(found - wanted) < 1e-8 * jnp.linalg.norm(wanted)


@pytest.mark.parametrize("batch_size", [256, 300])
def test_a_thousand_examples_in_batches_even_and_ragged(batch_size):
    """A peer that weights batches equally is wrong by 7.6e-3 here."""
    params, batch, loss_fn, *_ = problem("mlp_5", n=1000)
    v = jax.tree.map(jnp.ones_like, params)
    product = jax.jit(lambda matvec, v: matvec(v))
    whole = product(curvature.Hessian(loss_fn, params, batch), v)
    parts = product(curvature.Hessian(loss_fn, params, batch, batch_size), v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), whole, parts)


def test_algebra_and_restriction(references):
    params, batch, loss_fn, *_ = problem("mlp_5")
    hessian, matrix = curvature.Hessian(loss_fn, params, batch), references["mlp_5"]["hessian"]
    both = 2.0 * hessian + 0.5 * curvature.Identity()
    wanted = 2 * matrix + 0.5 * np.eye(len(matrix))
    np.testing.assert_allclose(columns(both, params), wanted, atol=1e-12)
    head = curvature.Restricted(hessian, params, lambda path: path.startswith("head"))

    def mark(path, leaf):
        return jnp.full(leaf.shape, path[0].key == "head", float)

    marks = jax.tree_util.tree_map_with_path(mark, params)
    rows = np.flatnonzero(ravel_pytree(marks)[0])
    wanted = matrix[np.ix_(rows, rows)]
    np.testing.assert_allclose(columns(head, head.select(params)), wanted, atol=1e-12)


def test_linearised_sums_are_operators_too():
    """In micro-batches as well: their terms hold arrays, which are not hashable."""
    params, batch, loss_fn, outputs_fn, _ = problem("logistic")
    kernel = curvature.NTK(outputs_fn, params, batch)
    u = jnp.ones((len(batch), 3))
    hessian = curvature.Hessian(loss_fn, params, batch, 5)
    for matvec, v in ((hessian, params), (kernel, u)):
        whole = 2.0 * matvec + curvature.Identity() + (lambda v: v)
        first = curvature.solve(curvature.linearized(whole), v, max_steps=3)
        second = curvature.solve(whole, v, max_steps=3)
        np.testing.assert_allclose(first.residual, second.residual, rtol=1e-8)


@pytest.mark.parametrize("name", ["hessian", "fisher"])
def test_data_may_be_numpy_arrays(name):
    """In micro-batches outside jit they were indexed by a tracer."""
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    params = {"w": jnp.ones(3)}

    def loss_fn(params, x):
        return (x @ params["w"]) ** 2

    kind = {"hessian": curvature.Hessian, "fisher": curvature.EmpiricalFisher}[name]
    whole = kind(loss_fn, params, jnp.asarray(x))(params)["w"]
    np.testing.assert_allclose(kind(loss_fn, params, x, 2)(params)["w"], whole, rtol=1e-4)


def test_hessian_is_gauss_newton_for_a_linear_model():
    params, batch, loss_fn, outputs_fn, output_loss = problem("logistic")
    first = columns(curvature.Hessian(loss_fn, params, batch), params)
    second = columns(curvature.GaussNewton(outputs_fn, output_loss, params, batch), params)
    np.testing.assert_allclose(first, second, atol=1e-13)


def test_sampled_fisher_has_the_exact_one_as_its_mean(references):
    params, batch, _, outputs_fn, _ = problem("logistic")
    exact = references["logistic"]["gauss_newton"]
    one = jax.jit(lambda matvec, v: matvec(v))
    v = jax.tree.map(jnp.ones_like, params)
    exact = exact @ np.ones(len(exact))
    keys = jax.random.split(KEY, 400)
    build = functools.partial(curvature.sampled_fisher, outputs_fn, params, batch)
    draws = np.stack([ravel_pytree(one(build(key=key), v))[0] for key in keys])
    error = draws.std(0, ddof=1) / 20
    assert np.mean(np.abs(draws.mean(0) - exact) < 3 * error + 1e-12) > 0.95
    matrix = columns(build(key=keys[0]), params)
    assert np.linalg.matrix_rank(matrix) <= len(batch)
    np.testing.assert_allclose(
        columns(build(key=keys[0], batch_size=4), params), matrix, atol=1e-12
    )


def test_new_weights_and_data_of_equal_shape_do_not_retrace():
    params, batch, loss_fn, *_ = problem("mlp_5")
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    product = jax.jit(lambda matvec, v: matvec(v))
    product(curvature.Hessian(counted, params, batch, 5), params)
    count = len(traces)
    moved, other = jax.tree.map(lambda leaf: leaf + 1, params), Batch(batch.x + 1, batch.labels)
    product(curvature.Hessian(counted, moved, other, 5), moved)
    assert len(traces) == count > 0


def test_matrix_products_are_precise_unless_the_user_chose():
    params, batch, loss_fn, *_ = problem("mlp_5")

    def text():
        return str(jax.make_jaxpr(curvature.Hessian(loss_fn, params, batch))(params))

    assert "Precision.HIGHEST" in text()
    assert "precision=None" not in text()
    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in text()


@pytest.mark.parametrize("batch_size", [None, 8])
def test_sharded_data_and_weights_give_the_same_products(batch_size):
    params, batch, loss_fn, outputs_fn, _ = problem("mlp_5", n=24)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    sharded = jax.device_put(batch, rows), jax.device_put(params, everywhere)
    product = jax.jit(lambda matvec, v: matvec(v))
    for build in (
        lambda params, batch: curvature.Hessian(loss_fn, params, batch, batch_size),
        lambda params, batch: curvature.fisher(outputs_fn, params, batch, batch_size=batch_size),
    ):
        one = product(build(params, batch), params)
        many = product(build(sharded[1], sharded[0]), sharded[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, many)
    found = curvature.eigenvalues(build(sharded[1], sharded[0]), sharded[1], k=2, key=KEY)
    wanted = curvature.eigenvalues(build(params, batch), params, k=2, key=KEY)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-10)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_images_on_disk_give_the_products_solutions_and_spectra_of_memory(batch_size):
    model = small_model("logistic")
    pixels = np.random.default_rng(0).integers(0, 256, (13, 4, 4, 1), np.uint8)
    labels = (np.arange(13) % 3).astype(np.int32)
    reads = []

    def read(row):
        reads.append(row)
        return pixels[row]

    digests = np.zeros((13, 16), np.uint8)
    disk = OnDisk(read, (4, 4, 1), labels, digests, np.arange(13))
    memory = disk.batch()
    params = model.init(KEY)
    flat, unravel = ravel_pytree(params)
    params = unravel(flat + jnp.cos(jnp.arange(flat.size)))

    def loss_fn(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.labels)

    def outputs_fn(params, batch):
        return model.apply(params, batch.x)

    def of_outputs(outputs, batch):
        return losses.cross_entropy(outputs, batch.labels)

    def same(ask):
        first, second = (ravel_pytree(ask(data))[0] for data in (disk, memory))
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)

    apply = jax.jit(lambda matvec, v: matvec(v))
    for build in OPERATORS.values():
        whole = functools.partial(build, loss_fn, outputs_fn, of_outputs, params)
        reads.clear()
        same(lambda data: apply(whole(data, batch_size), params))  # noqa: B023
        assert set(reads) == set(range(13))

    def matrix(data):
        return curvature.fisher(outputs_fn, params, data, batch_size=batch_size)

    same(lambda data: curvature.Jacobian(outputs_fn, params, data, batch_size)(params))
    same(lambda data: curvature.solve(matrix(data), params, damping=0.1, tol=1e-6).value)
    same(lambda data: curvature.eigenvalues(matrix(data), params, k=2, tol=1e-5, key=KEY).values)
    same(lambda data: curvature.inside(matrix(data), jnp.eye(3, len(flat)), params))
