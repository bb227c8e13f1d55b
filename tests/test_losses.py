"""Losses: worked numbers, identities, precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import assert_same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from famr_jax.losses import cross_entropy, gram, gram_distance, l2_anchor, uniform_kl
from famr_jax.metrics import entropy

NUMBERS = st.one_of(st.floats(-1e4, 1e4), st.floats(-1e-5, 1e-5))
LOGITS = hnp.arrays(np.float64, (4, 3), elements=NUMBERS)  # one shape: jit compiles once
LABELS = jnp.array([0, 1, 2, 0])
LOG3 = math.log(3)
JITTED = {f.__name__: jax.jit(f) for f in (uniform_kl, cross_entropy, entropy)}
KL_GRAD = jax.jit(jax.grad(lambda z: jnp.sum(uniform_kl(z))))


@pytest.mark.parametrize(
    ("logits", "value"),
    [([0, 0], 0), ([LOG3, 0], math.log(4 / 3) / 2), ([1e4, 1e4, 1e4], 0), ([60, 0, 0], 40 - LOG3)],
)
def test_uniform_kl_worked(logits, value):
    np.testing.assert_allclose(uniform_kl(jnp.array(logits, float)), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "label", "smoothing", "value"),
    [
        ([0, 0, 0], 2, 0, LOG3),
        ([LOG3, 0], 0, 0, math.log(4 / 3)),
        ([LOG3, 0], 1, 0, math.log(4)),
        ([LOG3, 0], 0, 0.5, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ([LOG3, 0], 1, 1, (math.log(4 / 3) + math.log(4)) / 2),
    ],
)
def test_cross_entropy_worked(logits, label, smoothing, value):
    mine = cross_entropy(jnp.array(logits, float), jnp.array(label), label_smoothing=smoothing)
    np.testing.assert_allclose(mine, value, rtol=1e-6)


def test_a_class_that_is_ruled_out_costs_the_others_nothing():
    """A filter may give a class the logit -inf; 0 times the mean log p was NaN."""
    logits = jnp.array([[-jnp.inf, 0, 0], [0, -jnp.inf, 0]])
    value = cross_entropy(logits, jnp.array([1, 1]))
    np.testing.assert_allclose(value, [math.log(2), np.inf], rtol=1e-6)


@pytest.mark.parametrize("function", [cross_entropy, jax.jit(cross_entropy)])
@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([1.0, 2.0], r"float32 of shape \[2\]"),
        ([True, False], r"bool of shape \[2\]"),
        ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], r"float32 of shape \[2, 3\]"),
    ],
)
def test_labels_that_are_no_integers_are_refused(function, labels, got):
    with pytest.raises(ValueError, match="`labels` must be integers, a class each, got " + got):
        function(jnp.zeros((2, 3)), jnp.array(labels))


@pytest.mark.parametrize("label", [-1, -100, 3, 255])
def test_a_label_that_is_no_class_has_no_loss(label):
    """-1 was the last class; of others the gradient was 0, as if nothing were left to learn."""
    logits, labels = jnp.zeros((2, 3)), jnp.array([1, label])
    with pytest.raises(ValueError, match="`labels` must be classes of 3, 0 to 2, got "):
        cross_entropy(logits, labels)
    value, grad = jax.jit(jax.vmap(jax.value_and_grad(cross_entropy)))(logits, labels)
    np.testing.assert_allclose(value, [LOG3, np.nan], rtol=1e-6)
    assert np.isfinite(grad[0]).all()
    assert np.isnan(grad[1]).all()


@pytest.mark.parametrize("labels", [[1], [[1], [2]], [0, 1, 2]])
def test_labels_of_another_shape_are_refused(labels):
    """One label was every example's."""
    for function in (cross_entropy, jax.jit(cross_entropy)):
        with pytest.raises(ValueError, match=r"`labels` must be a class for each row, \[2\], got "):
            function(jnp.zeros((2, 3)), jnp.array(labels))
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, 3)), [1, 2]), [LOG3] * 2, rtol=1e-6)


def test_l2_anchor_worked():
    params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array(5.0)}
    anchor = {"a": jnp.array([[0.0, 4.0]]), "b": jnp.array(3.0)}
    assert float(l2_anchor(params, anchor)) == (1 + 4 + 4) / 2
    assert_same(jax.grad(l2_anchor)(params, anchor), jax.tree.map(jnp.subtract, params, anchor))


def test_l2_anchor_has_a_gradient_at_the_anchor():
    params = {"a": jnp.ones(3)}
    assert_same(jax.grad(l2_anchor)(params, params), {"a": jnp.zeros(3)})


@given(LOGITS)
def test_uniform_kl_gradient_is_p_minus_u(logits):
    with jax.enable_x64(True):
        grad = KL_GRAD(jnp.asarray(logits))
        np.testing.assert_allclose(grad, scipy.special.softmax(logits, axis=1) - 1 / 3, atol=1e-12)


@given(LOGITS)
def test_uniform_kl_is_the_mean_cross_entropy_over_labels_less_log_c(logits):
    with jax.enable_x64(True):
        z = jnp.asarray(logits)
        every = [JITTED["cross_entropy"](z, jnp.full(4, label)) for label in range(3)]
        wanted = np.mean(every, axis=0) - LOG3
        np.testing.assert_allclose(JITTED["uniform_kl"](z), wanted, rtol=1e-9, atol=1e-9)


@given(LOGITS)
def test_uniform_kl_is_zero_exactly_where_the_entropy_is_log_c(logits):
    with jax.enable_x64(True):
        z = jnp.asarray(logits)
        value = np.asarray(JITTED["uniform_kl"](z))
        lost = LOG3 - np.asarray(JITTED["entropy"](z))
        assert min(value.min(), lost.min()) >= -1e-12
        # Near zero they are equal to first order; the slack is for rounding and the next order.
        assert np.all(lost[value < 1e-12] < 1e-11)
        assert np.all(value[lost < 1e-12] < 1e-11)


@given(LOGITS, st.integers(-(2**20), 2**20))
def test_a_shift_of_all_logits_changes_no_loss(logits, shift):
    shifted = logits.astype(np.float32) + np.float32(shift)
    back = shifted - shifted.max(axis=1, keepdims=True)  # the shift's own rounding is not ours
    for loss in (JITTED["uniform_kl"], lambda z: JITTED["cross_entropy"](z, LABELS)):
        value, wanted = loss(jnp.asarray(shifted)), loss(jnp.asarray(back))
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_one_value_per_example_over_any_leading_axes():
    z = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    labels = np.array([[0, 1]] * 4)
    value, flat = (JITTED["uniform_kl"](each) for each in (z, z.reshape(8, 3)))
    np.testing.assert_allclose(value, np.reshape(flat, (4, 2)), rtol=1e-6)
    value = JITTED["cross_entropy"](z, labels)
    flat = JITTED["cross_entropy"](z.reshape(8, 3), labels.ravel())
    np.testing.assert_allclose(value, np.reshape(flat, (4, 2)), rtol=1e-6)


def test_uniform_kl_hessian_is_that_of_cross_entropy(x64):
    z = np.array([0.3, -1.0, 2.0])
    p = scipy.special.softmax(z)
    wanted = np.diag(p) - np.outer(p, p)
    for loss in (uniform_kl, lambda z: cross_entropy(z, jnp.array(1))):
        np.testing.assert_allclose(jax.jit(jax.hessian(loss))(z), wanted, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_have_the_dtype_of_the_logits(x64, dtype):
    z, labels = jax.ShapeDtypeStruct((2, 3), dtype), jax.ShapeDtypeStruct((2,), int)
    assert jax.eval_shape(uniform_kl, z).dtype == dtype
    assert jax.eval_shape(cross_entropy, z, labels).dtype == dtype
    assert jax.eval_shape(l2_anchor, {"w": z}, {"w": z}).dtype == dtype


FEATURES = np.random.default_rng(3).normal(size=(4, 5, 3))  # [n, tokens, channels]
GRAMS = np.stack([f.T @ f / 15 for f in FEATURES])


def test_gram_worked():
    features = jnp.array([[[1.0, 2.0], [3.0, 0.0]]])
    np.testing.assert_allclose(gram(features), [[[10 / 4, 2 / 4], [2 / 4, 4 / 4]]], rtol=1e-6)


def test_gram_against_numpy_over_any_axes_of_tokens(x64):
    np.testing.assert_allclose(gram(jnp.asarray(FEATURES)), GRAMS, atol=1e-14)
    maps = np.random.default_rng(4).normal(size=(2, 3, 4, 5))
    flat = gram(jnp.asarray(maps.reshape(2, 12, 5)))
    np.testing.assert_allclose(gram(jnp.asarray(maps)), flat, atol=1e-14)
    single = gram(jnp.asarray(FEATURES[:, 0]))
    wanted = [np.outer(row, row) / 3 for row in FEATURES[:, 0]]
    np.testing.assert_allclose(single, wanted, atol=1e-14)


def test_no_order_of_the_tokens_changes_a_gram_matrix_and_an_order_of_channels_does(x64):
    moved = np.random.default_rng(0).permutation(5)
    np.testing.assert_allclose(gram(jnp.asarray(FEATURES[:, moved])), GRAMS, atol=1e-14)
    assert np.abs(gram(jnp.asarray(FEATURES[..., ::-1])) - GRAMS).max() > 0.1


def test_gram_distance_against_numpy(x64):
    names = {"block_0": FEATURES, "block_1": 7 * FEATURES[:, :2]}
    grams = {k: np.stack([f.T @ f / f.size for f in v]) for k, v in names.items()}
    reference = {k: v.mean(0) for k, v in grams.items()}
    wanted = sum(
        np.array([np.linalg.norm(g - reference[k]) ** 2 for g in v])
        / np.linalg.norm(reference[k]) ** 2
        for k, v in grams.items()
    )
    mine = gram_distance(names | {"pre_logits": FEATURES[:, 0]}, reference)
    np.testing.assert_allclose(mine, wanted, rtol=1e-12)


def test_gram_distance_is_zero_at_the_reference_and_relative_to_it(x64):
    reference = {"block_0": jnp.asarray(GRAMS[0])}
    distance = gram_distance({"block_0": jnp.asarray(FEATURES)}, reference)
    assert float(distance[0]) == pytest.approx(0, abs=1e-20)
    assert float(distance[1:].min()) > 0.01
    twice = gram_distance(
        {"block_0": np.sqrt(2) * FEATURES}, {"block_0": 2 * jnp.asarray(GRAMS[0])}
    )
    np.testing.assert_allclose(twice, distance, atol=1e-14)
