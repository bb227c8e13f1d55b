"""Metrics: worked numbers, identities, and the statistics of a comparison."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from conftest import counting
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from famr_jax import metrics, statistics

LOG3 = math.log(3)
LOGITS = hnp.arrays(np.float64, (4, 3), elements=st.floats(-1e4, 1e4))
FUNCTIONS = ("votes", "accuracy", "confidence", "entropy", "kl", "total_variation")
JITTED = {name: jax.jit(getattr(metrics, name)) for name in FUNCTIONS}
LABELS = np.array([0, 1, 2, 0])
ORACLES = [0.1, 0.3, 0.2, 0.4, 0.1, 0.2, 0.3, 0.2]


def rows(*logits):
    return jnp.array(logits, jnp.float32)


@pytest.mark.parametrize(
    ("logits", "labels", "share"),
    [
        ([[0, 0, 0]], [1], 1 / 3),
        ([[2, 2, 0]], [1], 1 / 2),
        ([[2, 2, 0]], [2], 0),
        ([[5, 2, 0], [0, 1, 0], [1, 1, 1], [9, 9, 0]], [0, 2, 0, 1], (1 + 0 + 1 / 3 + 1 / 2) / 4),
    ],
)
def test_a_tie_of_k_classes_counts_one_kth(logits, labels, share):
    value = JITTED["accuracy"](rows(*logits), jnp.array(labels))
    np.testing.assert_allclose(value, share, rtol=1e-6)


@pytest.mark.parametrize("label", [-1, -100, 3, 255])
@pytest.mark.parametrize("name", ["accuracy", "confidence"])
def test_a_label_that_is_no_class_is_refused(name, label):
    logits, labels = rows([0, 0, 9], [9, 0, 0]), jnp.array([label, 0])
    with pytest.raises(ValueError, match="`labels` must be classes of 3, 0 to 2, got "):
        getattr(metrics, name)(logits, labels)
    assert np.isnan(JITTED[name](logits, labels)).any()


def test_a_class_that_is_ruled_out_has_no_part_in_entropy_and_divergence():
    """0 log 0 is 0; a NaN stays one."""
    logits, other = rows([-np.inf, 0, 0], [np.nan, 0, 0]), rows([0, 0, 0], [0, 0, 0])
    np.testing.assert_allclose(metrics.entropy(logits), [np.log(2), np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.kl(logits, other), [np.log(3 / 2), np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.kl(logits, logits)[0], 0, atol=1e-7)
    np.testing.assert_allclose(metrics.kl(other, logits), [np.inf, np.nan])


@pytest.mark.parametrize("bad", [[0, np.nan, 9], [np.nan] * 3])
def test_a_model_that_gives_nan_has_no_accuracy(bad):
    logits, labels = rows(bad, [9, 0, 0]), jnp.array([1, 0])
    for function in (metrics.hits, jax.jit(metrics.hits)):
        np.testing.assert_array_equal(function(logits, labels), [np.nan, 1])
    for name in ("accuracy", "confidence"):
        assert np.isnan(JITTED[name](logits, labels)).any()
    assert np.isnan(JITTED["entropy"](logits)[0])
    infinite = rows([np.inf, 0, 0], [-np.inf, 0, 0])
    np.testing.assert_allclose(metrics.hits(infinite, jnp.array([0, 0])), [1, 0])
    overflown = rows([np.inf] * 3, [np.inf, np.inf, 0], [-np.inf] * 3)
    np.testing.assert_array_equal(metrics.hits(overflown, jnp.array([0, 2, 0])), [np.nan] * 3)


def test_worked_numbers():
    z, labels = rows([LOG3, 0], [0, 0]), jnp.array([1, 0])
    log2 = math.log(2)

    def of(name, *args):
        return np.asarray(JITTED[name](*args))

    np.testing.assert_allclose(of("votes", z), [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(of("confidence", z, labels), [1 / 4, 1 / 2], rtol=1e-6)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    np.testing.assert_allclose(of("entropy", z), [entropy, log2], rtol=1e-6)
    np.testing.assert_allclose(of("kl", z, 0 * z), [log2 - entropy, 0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(of("kl", 0 * z, z)[0], math.log(4 / 3) / 2, rtol=1e-6)
    np.testing.assert_allclose(of("total_variation", z, 0 * z), [1 / 4, 0], rtol=1e-6)
    opposite = of("total_variation", rows([99, 0]), rows([0, 99]))
    np.testing.assert_allclose(opposite, [1], rtol=1e-6)


@given(LOGITS)
def test_entropy_lies_between_zero_and_log_c(logits):
    with jax.enable_x64(True):
        value = np.asarray(JITTED["entropy"](logits))
        assert value.min() >= 0
        assert value.max() <= LOG3 + 1e-12
        p = scipy.special.softmax(logits, axis=1)
        np.testing.assert_allclose(value, scipy.special.entr(p).sum(1), atol=1e-9)


@given(LOGITS, LOGITS)
def test_kl_and_total_variation_obey_pinsker(logits, other):
    with jax.enable_x64(True):
        kl = np.asarray(JITTED["kl"](logits, other))
        distance = np.asarray(JITTED["total_variation"](logits, other))
        assert np.all(np.isfinite(kl))
        assert np.all((distance >= 0) & (distance <= 1 + 1e-12))
        assert np.all(kl >= 2 * distance**2 - 1e-9)
        assert np.all(JITTED["kl"](logits, logits) == 0)


@given(LOGITS)
def test_votes_sum_to_one_and_accuracy_is_their_mean_at_the_label(logits):
    votes = np.asarray(JITTED["votes"](logits))
    np.testing.assert_allclose(votes.sum(1), 1, rtol=1e-6)
    share = votes[np.arange(4), LABELS].mean()
    np.testing.assert_allclose(JITTED["accuracy"](logits, LABELS), share, rtol=1e-6)


def test_float64_in_float64_out(x64):
    z = np.random.default_rng(0).normal(size=(4, 3))
    values = [JITTED[name](z) for name in ("votes", "entropy")]
    values += [JITTED[name](z, LABELS) for name in ("accuracy", "confidence")]
    values += [JITTED[name](z, 2 * z) for name in ("kl", "total_variation")]
    assert {value.dtype for value in values} == {np.dtype(np.float64)}


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8])
def test_predict_in_batches_is_predict_in_one(size):
    def apply_fn(params, x):
        return x.reshape(len(x), -1) @ params

    x = np.random.default_rng(size).normal(size=(size, 2, 2)).astype(np.float32)
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    logits = metrics.predict(apply_fn, w, x, batch_size=4)
    assert logits.shape == (size, 3)
    np.testing.assert_allclose(logits, apply_fn(w, x), rtol=1e-5, atol=1e-6)


def test_predict_with_other_params_does_not_retrace():
    apply_fn, traces = counting(lambda params, x: x @ params)
    x, w = np.ones((5, 4), np.float32), np.ones((4, 3), np.float32)
    first = metrics.predict(apply_fn, w, x)
    seen = len(traces)
    np.testing.assert_allclose(metrics.predict(apply_fn, 2 * w, x), 2 * first)
    assert len(traces) == seen


def t_density(x, freedom):
    gamma = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return (
        math.exp(gamma)
        / math.sqrt(freedom * math.pi)
        * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
    )


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("values", [[1.0, 3.0], [0.2, 0.5, 0.6], ORACLES])
def test_prediction_interval_holds_its_level_under_students_density(values, level):
    low, high = statistics.prediction_interval(values, level=level)
    mean, n = sum(values) / len(values), len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) * (1 + 1 / n))
    assert math.isclose((low + high) / 2, mean, abs_tol=1e-12)
    bound = (high - mean) / spread
    inside, _ = scipy.integrate.quad(t_density, -bound, bound, args=(n - 1,))
    assert math.isclose(inside, level, abs_tol=1e-7)


def test_prediction_interval_by_the_printed_table():
    # t(1, .975) = 12.7062, s = sqrt 2, sqrt(1 + 1/2).
    low, high = statistics.prediction_interval([1, 3])
    assert math.isclose(high - 2, 12.7062 * math.sqrt(3), rel_tol=1e-5)
    assert math.isclose(2 - low, high - 2)


def test_an_interval_is_no_narrower_than_n_examples_can_show():
    assert statistics.resolution_of("share", 200) == 0.005
    assert statistics.resolution_of("nats", 200) == statistics.resolution_of("share", None) == 0
    # Three accuracies of 2000 images that coincide: .0455 is not known to more than .0005.
    same = statistics.spread([0.0455] * 3)["interval"]
    np.testing.assert_allclose(same, 0.0455)
    low, high = statistics.widened(same, 1 / 2000)
    assert math.isclose(low, 0.045)
    assert math.isclose(high, 0.046)
    assert statistics.widened(None, 0.1) is None
    assert statistics.prediction_interval([0.0] * 8, resolution=1 / 50) == (-0.02, 0.02)
    plain, wide = (statistics.prediction_interval([1, 3], resolution=r) for r in (0.0, 0.5))
    np.testing.assert_allclose(wide, np.add(plain, (-0.5, 0.5)))


def test_a_sign_within_the_resolution_is_none():
    same = statistics.spread([0.004] * 3)
    assert statistics.sign(same) == statistics.sign(same, resolution=1 / 500) == 1
    assert statistics.sign(same, resolution=1 / 200) == 0
    assert statistics.sign(statistics.spread([-0.004] * 3), resolution=1 / 500) == -1


@pytest.mark.parametrize(("k", "n"), [(0, 500), (13, 500), (13, 146), (29, 200), (8, 8), (0, 1)])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_share_interval_is_scipys_exact_one(k, n, level):
    wanted = scipy.stats.binomtest(k, n).proportion_ci(level, method="exact")
    found = statistics.share_interval(k / n, n, level=level)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_share_interval_by_hand_and_between_whole_counts():
    # None of n: the upper end solves (1 - high)^n = .025.
    assert statistics.share_interval(0.0, 500) == (0.0, pytest.approx(1 - 0.025 ** (1 / 500)))
    ends = [statistics.share_interval(k / 10, 10) for k in (2, 2.5, 3)]
    assert ends == sorted(ends)
    for share, n, name in ((1.1, 9, "share"), (float("nan"), 9, "share"), (0.5, 0, "n")):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            statistics.share_interval(share, n)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_prediction_interval_needs_two_oracles(values):
    with pytest.raises(ValueError, match=f"at least 2 oracles, got {len(values)}"):
        statistics.prediction_interval(values)


def test_gap_and_null_gap_by_hand():
    assert statistics.gap(1.0, [2.0, 5.0]) == 2.5
    assert statistics.null_gap([1.0]) is None
    assert statistics.null_gap([1.0, 2.0]) == 1.0
    # 1 against 3.5, 2 against 3, 5 against 1.5.
    assert math.isclose(statistics.null_gap([1.0, 2.0, 5.0]), (2.5 + 1 + 3.5) / 3)


@pytest.mark.parametrize(
    ("value", "original", "oracles", "words"),
    [
        (0.22, 0.9, ORACLES, "inside band"),
        (0.9, 0.95, ORACLES, "outside band"),
        (0.9, 0.22, ORACLES, "outside band"),
        (0.22, 0.25, ORACLES, "not resolved"),
        (0.22, 0.9, ORACLES[:7], "too few oracles"),
    ],
)
def test_verdict(value, original, oracles, words):
    assert statistics.verdict(value, original, oracles) == words


def test_logits_that_are_nan_are_neither_right_nor_wrong():
    logits = jnp.array([[jnp.nan, jnp.nan], [1.0, jnp.nan], [0.0, 1.0]])
    np.testing.assert_array_equal(metrics.hits(logits, jnp.array([0, 0, 1])), [np.nan, np.nan, 1])
