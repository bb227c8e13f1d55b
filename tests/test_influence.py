"""Removal and influence against dense float64 references and true retraining."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense import columns, hessian, jacobian, problem
from jax.flatten_util import ravel_pytree

from famr_jax import losses
from famr_jax.curvature import GaussNewton, Solution
from famr_jax.influence import influence, primal, remove
from famr_jax.types import Batch

KEY = jax.random.key(0)
N, M, L2 = 200, 20, 1e-2
EXACT = {"l2": L2, "tol": 1e-10, "key": KEY}


@pytest.fixture(autouse=True)
def _x64(x64):
    """Everything here is float64."""


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def softmax_loss(params, batch):
    return losses.cross_entropy(batch.x @ params["w"] + params["b"], batch.labels)


def squared_loss(params, batch):
    outputs = batch.x @ params["w"] + params["b"]
    return jnp.sum((outputs - jax.nn.one_hot(batch.labels, 5)) ** 2, axis=-1)


@pytest.fixture(scope="module")
def drawn():
    """A linear problem of 5 classes, which no loss fits exactly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 8))
    labels = np.argmax(x @ rng.normal(size=(8, 5)) + rng.gumbel(size=(N, 5)), axis=1)
    return x, labels


@pytest.fixture
def linear(drawn):
    return Batch(jnp.asarray(drawn[0]), jnp.asarray(drawn[1]))


@partial(jax.jit, static_argnames="loss_fn")
def fit(loss_fn, batch, weights):
    """Newton's method to the minimum of sum_i weights_i l_i + L2/2 ||params||^2."""
    start, unravel = ravel_pytree({"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)})

    def objective(vector):
        ridge = L2 / 2 * jnp.vdot(vector, vector)
        return jnp.vdot(weights, loss_fn(unravel(vector), batch)) + ridge

    def step(_, v):
        return v - jnp.linalg.solve(jax.hessian(objective)(v), jax.grad(objective)(v))

    return unravel(jax.lax.fori_loop(0, 12, step, start))


def retrained(loss_fn, batch, keep, normaliser):
    return fit(loss_fn, batch, keep / (N if normaliser == "n" else jnp.sum(keep)))


FORGET, RETAIN = slice(0, M), slice(M, N)
KEPT = jnp.arange(N) >= M


@pytest.mark.parametrize("normaliser", ["n", "n-m"])
def test_newton_on_the_retained_data_predicts_retraining_best(linear, normaliser):
    """The table of relative errors, in its order: each wrong turn costs what it should."""
    original = fit(softmax_loss, linear, jnp.full(N, 1 / N))
    true = flat(retrained(softmax_loss, linear, KEPT, normaliser)) - flat(original)
    sets = softmax_loss, original, linear[FORGET], linear[RETAIN]

    def error(normaliser=normaliser, sign=1, **settings):
        found = remove(*sets, normaliser=normaliser, **EXACT | settings)
        assert found.solution.converged
        return np.linalg.norm(sign * flat(found.solution.value) - true) / np.linalg.norm(true)

    newton = error()
    assert newton < 0.1
    other = "n-m" if normaliser == "n" else "n"
    assert 2 * newton < error(over="all") < 0.5
    assert 2 * newton < error(normaliser=other)
    assert error(sign=-1) > 1.9
    assert 2 * newton < error(l2=0.0, damping=1e-3)
    assert remove(*sets, normaliser=normaliser, **EXACT).leftover < 1e-10


@pytest.mark.parametrize("normaliser", ["n", "n-m"])
def test_removal_is_exact_for_a_quadratic_loss(linear, normaliser):
    original = fit(squared_loss, linear, jnp.full(N, 1 / N))
    settings = {"normaliser": normaliser, **EXACT}
    found = remove(squared_loss, original, linear[FORGET], linear[RETAIN], **settings)
    wanted = retrained(squared_loss, linear, KEPT, normaliser)
    np.testing.assert_allclose(flat(found.params), flat(wanted), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(flat(original) + flat(found.solution.value), flat(wanted), atol=1e-9)


TRACES = []


@cache
def net():
    """Generic weights of a net, 13 examples and 5 queries; the same functions for every test."""
    params, batch, plain_loss, outputs_fn, output_loss = problem("mlp_5", 18)

    def loss_fn(params, batch):
        TRACES.append(len(batch))
        return plain_loss(params, batch)

    def gauss_newton(data):
        return GaussNewton(outputs_fn, output_loss, params, data)

    return params, batch[:13], batch[13:], loss_fn, outputs_fn, gauss_newton


def dense_curvature(given, data):
    params, _, _, loss_fn, *_ = net()
    if given:
        return columns(given(data), params)
    return hessian(lambda p: jnp.mean(loss_fn(p, data)), params)


@pytest.mark.parametrize(
    ("kind", "over", "normaliser", "batch_size"),
    [
        ("hessian", "retain", "n", None),
        ("gauss-newton", "all", "n-m", 4),
    ],
)
def test_removal_is_the_dense_step(kind, over, normaliser, batch_size):
    params, batch, _, loss_fn, _, gauss_newton = net()
    forget, retain, n, m = batch[:3], batch[3:], 13, 3
    given = gauss_newton if kind == "gauss-newton" else None
    gradients = jacobian(lambda p: loss_fn(p, batch), params)
    kept = n if normaliser == "n" else n - m
    b = gradients.sum(0) / n - gradients[3:].sum(0) / kept
    if over == "all":
        matrix = dense_curvature(given, batch)
    else:
        matrix = (n - m) / kept * dense_curvature(given, retain)
    matrix = matrix + (L2 + 1.0) * np.eye(len(matrix))
    found = remove(
        *(loss_fn, params, forget, retain),
        **{"normaliser": normaliser, "curvature": given, "over": over, "batch_size": batch_size},
        **{"damping": 1.0, **EXACT},
    )
    np.testing.assert_allclose(
        flat(found.solution.value), np.linalg.solve(matrix, b), rtol=1e-7, atol=1e-11
    )
    np.testing.assert_allclose(
        flat(found.params), flat(params) + np.linalg.solve(matrix, b), rtol=1e-8
    )
    low, error = found.lambda_min
    assert abs(low - np.linalg.eigvalsh(matrix)[0]) <= error + 1e-9
    left = np.linalg.norm(gradients.mean(0) + L2 * flat(params)) / np.linalg.norm(b)
    np.testing.assert_allclose(found.leftover, left, rtol=1e-8)
    assert "converged" in found.why
    assert "definite" in found.why


@pytest.mark.parametrize(
    ("what", "kind", "normaliser", "grouped", "batch_size"),
    [
        ("loss", "hessian", "n", False, None),
        ("logits", "gauss-newton", "n-m", True, 4),
    ],
)
def test_influence_is_the_dense_one_from_either_side(what, kind, normaliser, grouped, batch_size):
    """Logits of 5 queries are 15 columns, more than 13 examples: the solves change sides."""
    params, batch, queries, loss_fn, outputs_fn, gauss_newton = net()
    query_fn = None if what == "loss" else outputs_fn
    given = gauss_newton if kind == "gauss-newton" else None
    groups = np.arange(26).reshape(2, 13) % 4 == 1 if grouped else np.eye(13, dtype=bool)
    found = influence(
        *(loss_fn, params, batch, queries),
        **{"normaliser": normaliser, "query_fn": query_fn, "curvature": given},
        **{"groups": jnp.asarray(groups) if grouped else None, "batch_size": batch_size},
        **{"damping": 1.0, **EXACT},
    )
    asked = jacobian(lambda p: (query_fn or loss_fn)(p, queries), params)
    gradients, n = jacobian(lambda p: loss_fn(p, batch), params), 13
    m = groups.sum(axis=1, keepdims=True)
    if normaliser == "n":
        b = groups @ gradients / n
    else:  # the change of the gradient, written out
        b = gradients.mean(0) - (~groups @ gradients) / (n - m)
    matrix = dense_curvature(given, batch) + (L2 + 1.0) * np.eye(gradients.shape[1])
    wanted = np.tensordot(np.linalg.solve(matrix, b.T).T, asked, axes=(1, asked.ndim - 1))
    assert found.values.shape == wanted.shape
    np.testing.assert_allclose(found.values, wanted, rtol=1e-6, atol=1e-10)
    assert found.solution.converged.shape == (5 if what == "loss" else 13,)
    low, error = found.lambda_min
    assert abs(low - np.linalg.eigvalsh(matrix)[0]) <= error + 1e-9
    assert found.why.startswith("converged")


@pytest.mark.parametrize("dense", [True, False])
def test_leave_one_out_is_predicted_on_a_convex_problem(linear, dense, monkeypatch):
    monkeypatch.setattr(primal, "DENSE_PER_COLUMN", 8 if dense else 0)
    original = fit(softmax_loss, linear, jnp.full(N, 1 / N))
    queries = linear[:150]  # two blocks of columns, where the matrix is not formed
    settings = {"normaliser": "n-m", **EXACT}
    found = influence(softmax_loss, original, linear, queries, **settings)
    assert found.why.startswith("converged")
    assert found.why.endswith(": definite")
    assert (found.solution.num_steps[0] == 45) == dense
    predicted = found.values[:40]
    keep = ~jnp.eye(N, dtype=bool)[:40]
    refit = jax.vmap(lambda keep: retrained(softmax_loss, linear, keep, "n-m"))(keep)
    after = jax.vmap(softmax_loss, in_axes=(0, None))(refit, queries)
    true = after - softmax_loss(original, queries)
    assert np.corrcoef(predicted.ravel(), true.ravel())[0, 1] > 0.99
    slope = np.vdot(predicted, true) / np.vdot(predicted, predicted)
    assert 1 < slope < 1.3  # first order leaves out the factor 1 / (1 - leverage)


def test_indefinite_hessian_is_said_so():
    params, batch, queries, loss_fn, *_ = net()
    settings = {"normaliser": "n", "l2": 0.0, "key": KEY}
    lows = [
        scale * np.linalg.eigvalsh(dense_curvature(None, data))[0]
        for data, scale in ((batch[3:], 10 / 13), (batch, 1))
    ]
    assert max(lows) < -1e-3
    answers = (
        remove(loss_fn, params, batch[:3], batch[3:], **settings),
        influence(loss_fn, params, batch, queries, **settings),
    )
    for found, low in zip(answers, lows, strict=True):
        np.testing.assert_allclose(found.lambda_min.value, low, atol=found.lambda_min.error)
        assert "indefinite" in found.why.split(";")[-1]
        assert not found.solution.converged.all() or found.solution.negative_curvature.any()


def test_a_singular_matrix_is_not_called_indefinite(linear):
    """A shift of all logits changes nothing, so without a ridge the smallest eigenvalue is 0."""
    params = {"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)}
    sets = softmax_loss, params, linear[FORGET], linear[RETAIN]
    found = remove(*sets, l2=0.0, normaliser="n", key=KEY)
    assert abs(found.lambda_min.value) < 1e-12
    assert found.why.endswith("not resolved")


@pytest.mark.parametrize("classes", [2, 5])
def test_without_ridge_influence_is_by_the_pseudo_inverse(linear, classes):
    """Also with a pixel that is always zero, in float32, where rounding must not be curvature."""
    x = linear.x.at[:, :2].set(0).astype(jnp.float32)
    data = Batch(x, linear.labels % classes)
    params = {"w": jnp.zeros((8, classes), x.dtype), "b": jnp.zeros(classes, x.dtype)}
    found = influence(softmax_loss, params, data, data[:20], l2=0.0, normaliser="n", key=KEY)
    assert found.why.startswith("converged")
    assert found.why.endswith("not resolved")
    data, params = Batch(x.astype(float), data.labels), jax.tree.map(jnp.float64, params)
    gradients = jacobian(lambda params: softmax_loss(params, data), params)
    matrix = hessian(lambda params: jnp.mean(softmax_loss(params, data)), params)
    wanted = gradients @ np.linalg.pinv(matrix, rcond=1e-9) @ gradients[:20].T / N
    np.testing.assert_allclose(found.values, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("count", "examples"), [(1, 4), (3, 12), (150, 512)])
def test_lanczos_takes_the_room_of_the_columns_and_no_more(linear, count, examples, monkeypatch):
    monkeypatch.setattr(primal, "DENSE_PER_COLUMN", 0)
    monkeypatch.setattr(primal, "_solve_all", lambda matrix, b, **_: Solution(b, *[0] * 5))
    seen = []
    monkeypatch.setattr(primal, "_smallest", lambda matrix, *_: seen.append(matrix))
    params = {"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)}
    settings = {"l2": L2, "normaliser": "n", "batch_size": 4, "key": KEY}
    influence(softmax_loss, params, linear, linear[:count], **settings)
    assert seen[0].terms[0].batch_size == examples


def test_new_numbers_do_not_retrace():
    params, batch, queries, loss_fn, *_ = net()

    def both(params, l2, damping):
        settings = {"l2": l2, "damping": damping, "normaliser": "n", "key": KEY}
        remove(loss_fn, params, batch[:3], batch[3:], **settings)
        influence(loss_fn, params, batch, queries, **settings)

    both(params, 1e-2, 1.0)
    seen = len(TRACES)
    both(jax.tree.map(lambda leaf: 2 * leaf, params), 2e-2, 3.0)
    # One abstract evaluation asks for the shape of the queries' outputs.
    assert len(TRACES) <= seen + 1


def test_influence_refuses_labels_that_are_no_integers_before_a_loss_of_ones_own(linear):
    params, rows = {"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)}, jnp.arange(4)

    def loss(params, batch):
        logits = batch.x @ params["w"] + params["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    wrong = linear[rows]
    wrong = type(wrong)(wrong.x, wrong.labels.astype(float))
    with pytest.raises(ValueError, match="`labels` must be integers, a class each"):
        influence(loss, params, wrong, linear[:3], l2=L2, normaliser="n", key=KEY)


@pytest.mark.parametrize("wrong", ["sum", "by class"])
def test_influence_is_of_examples_or_of_nothing(linear, wrong):
    """A loss of [N, C] gave N C influences on N examples, and a summed one none that was right."""
    params = {"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)}
    more = {"l2": L2, "normaliser": "n", "key": KEY}

    def loss(params, batch):
        losses = softmax_loss(params, batch)
        return jnp.sum(losses) if wrong == "sum" else jnp.tile(losses[:, None], 5)

    def curvature(data):
        return GaussNewton(lambda p, b: b.x @ p["w"] + p["b"], of_outputs, params, data)

    def of_outputs(outputs, batch):
        return losses.cross_entropy(outputs, batch.labels)

    for given in (None, curvature):
        with pytest.raises(ValueError, match="`loss_fn` must give one value per example"):
            influence(loss, params, linear, linear[:3], curvature=given, **more)
        with pytest.raises(ValueError, match="`loss_fn` must give one value per example"):
            remove(loss, params, linear[FORGET], linear[RETAIN], curvature=given, **more)
    ask = partial(influence, softmax_loss, params, linear, linear[:3], **more)
    with pytest.raises(ValueError, match="`query_fn` must give a row per example"):
        ask(query_fn=lambda p, b: jnp.sum(softmax_loss(p, b)))


@pytest.mark.parametrize("label", [-1, -100, 5, 255])
def test_labels_that_are_no_class_have_no_influence(linear, label):
    """They had an influence of 0, "converged" and "definite"; -1 had that of the last class."""
    params = {"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)}
    more = {"l2": L2, "normaliser": "n", "key": KEY}
    bad = Batch(linear.x, linear.labels.at[3].set(label))

    def own_loss(params, batch):
        log_p = jax.nn.log_softmax(batch.x @ params["w"] + params["b"])
        return -jnp.take_along_axis(log_p, batch.labels[:, None], axis=1)[:, 0]

    for loss in (softmax_loss, own_loss):
        for data, queries in ((bad, linear[:3]), (linear, bad[:5])):
            with pytest.raises(ValueError, match=r"`labels` must be >= 0|of label"):
                influence(loss, params, data, queries, **more)
        with pytest.raises(ValueError, match=r"`labels` must be >= 0|of label"):
            remove(loss, params, bad[FORGET], bad[RETAIN], **more)


def test_bad_arguments_are_named(linear):
    params = {"w": jnp.zeros((8, 5)), "b": jnp.zeros(5)}
    good = {"l2": L2, "normaliser": "n", "key": KEY}
    step = partial(remove, softmax_loss, params, linear[FORGET], linear[RETAIN])
    ask = partial(influence, softmax_loss, params, linear, linear[:3])
    for bad in ({"l2": -1.0}, {"damping": -1.0}, {"normaliser": "m"}, {"tol": 0.0}):
        for function in (step, ask):
            with pytest.raises(ValueError, match=next(iter(bad))):
                function(**good | bad)
    with pytest.raises(ValueError, match="over"):
        step(**good, over="forget")
    with pytest.raises(ValueError, match="`forget` must hold at least one"):
        remove(softmax_loss, params, linear[:0], linear, **good)
    with pytest.raises(ValueError, match="`queries` must hold at least one"):
        influence(softmax_loss, params, linear, linear[:0], **good)
    for groups in (jnp.ones((2, 3), bool), jnp.ones((2, N))):
        with pytest.raises(ValueError, match=r"bool of shape \[groups, 200\]"):
            ask(**good, groups=groups)
    for groups in (jnp.zeros((1, N), bool), jnp.ones((1, N), bool)):
        with pytest.raises(ValueError, match="leave some"):
            ask(**good, groups=groups)
    with pytest.raises(ValueError, match="leave some"):
        influence(softmax_loss, params, linear[:1], linear[:3], **good)
    for bad in ({"tol": 0.0}, {"max_steps": 0}, {"damping": float("nan")}):  # by factors
        with pytest.raises(ValueError, match=next(iter(bad))):
            influence(softmax_loss, params, linear, linear[:20], **good | bad)
