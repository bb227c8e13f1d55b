"""DAMP by NumPy: the residual of prototypes, the probe's separability, the edit, and its laws."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import CLASSES, drawn, to_float64
from flax import linen as nn

from famr_jax import methods, models
from famr_jax.methods.damp import SHRINKAGE, Moments, layer_inputs, own_directions, separability
from famr_jax.types import Batch
from famr_jax.unlearn import begin

KEY = jax.random.key(0)
damp_file = importlib.import_module("famr_jax.methods.damp")  # its name is the function's
SHAPE = (4, 4, 1)


@pytest.fixture(autouse=True)
def _x64(x64):
    """Everything here is of float64."""


def sets(*, shape=SHAPE, seed=0):
    """Class 2 to forget, classes 0 and 1 to keep, their means apart."""
    rng = np.random.default_rng(seed)
    means = 0.5 * rng.normal(size=(CLASSES, *shape))

    def batch(labels):
        x = means[labels] + 0.3 * rng.normal(size=(len(labels), *shape))
        return Batch(jnp.asarray(x), jnp.asarray(labels, jnp.int32))

    return batch(np.full(12, 2)), batch(np.arange(31) % 2)


def by_hand(forget, retain, kernel, *, ramp, strength=1.0):
    """The edited kernel of one layer, from what enters it, `[n, dim]`, one class forgotten."""
    (f, _), (r, labels) = forget, retain
    span = np.stack([r[labels == c].mean(0) for c in (0, 1)])
    mu = f.mean(0)
    own = mu - span.T @ np.linalg.lstsq(span.T, mu, rcond=None)[0]
    q = own / np.linalg.norm(own)
    centred = np.concatenate([f - f.mean(0), r - r.mean(0)])
    within = centred.T @ centred / len(centred)
    variance = np.diag(within) + SHRINKAGE * np.diag(within).mean()
    apart = f.mean(0) - r.mean(0)
    w = apart / variance
    noise = (np.diag(within) / variance).sum() * (1 / len(f) + 1 / len(r))
    d = max(w @ apart - noise, 0) / np.sqrt(w @ within @ w)
    alpha = strength * (2 * scipy.stats.norm.cdf(d / 2) - 1) * ramp
    return kernel - alpha * np.outer(q, q @ kernel)


def entering(batch, x=None):
    return np.asarray(batch.x if x is None else x).reshape(len(batch), -1), np.asarray(batch.labels)


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.5])
def test_it_is_its_formula_in_every_layer_at_the_trained_weights(strength, model):
    params, (forget, retain) = to_float64(drawn(model.init)), sets()
    params["layer_0"]["bias"] += 0.5
    edited = begin(methods.damp(model.apply, strength=strength), params, forget, retain, key=KEY)
    first, second = params["layer_0"], params["head"]
    hidden = [
        np.tanh(entering(each)[0] @ np.asarray(first["kernel"]) + np.asarray(first["bias"]))
        for each in (forget, retain)
    ]
    wanted = [
        by_hand(
            entering(forget), entering(retain), np.asarray(first["kernel"]),
            ramp=1 / 2, strength=strength,
        ),
        by_hand(
            entering(forget, hidden[0]), entering(retain, hidden[1]), np.asarray(second["kernel"]),
            ramp=1, strength=strength,
        ),
    ]  # fmt: skip
    for name, kernel in zip(("layer_0", "head"), wanted, strict=True):
        np.testing.assert_allclose(edited.params[name]["kernel"], kernel, rtol=1e-9, atol=1e-11)
        np.testing.assert_array_equal(edited.params[name]["bias"], params[name]["bias"])


def test_what_is_sent_on_of_retained_means_does_not_change(logistic):
    params, (forget, retain) = to_float64(drawn(logistic.init)), sets()
    edited = begin(methods.damp(logistic.apply), params, forget, retain, key=KEY).params
    x, labels = entering(retain)
    before, after = (np.asarray(each["head"]["kernel"]) for each in (params, edited))
    for c in (0, 1):
        mean = x[labels == c].mean(0)
        np.testing.assert_allclose(mean @ after, mean @ before, rtol=1e-10, atol=1e-12)
    gone = entering(forget)[0].mean(0)
    assert np.abs(gone @ after - gone @ before).max() > 0.01


def test_several_classes_lose_their_whole_span_whatever_their_order():
    rng = np.random.default_rng(1)

    def made(prototypes):
        rows = np.asarray(prototypes)
        counts = (np.abs(rows).sum(1) > 0).astype(float)
        dim = rows.shape[1]
        return Moments(jnp.asarray(rows), jnp.asarray(counts), jnp.eye(dim), jnp.zeros(dim))

    lost, kept = rng.normal(size=(2, 6)), rng.normal(size=(2, 6))
    none = np.zeros((2, 6))
    gone, retain = made(np.vstack([lost, none])), made(np.vstack([none, kept]))
    projector = np.asarray(own_directions(gone, retain))
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
    np.testing.assert_allclose(np.trace(projector), 2, atol=1e-12)
    np.testing.assert_allclose(kept @ projector, 0, atol=1e-12)
    again = own_directions(made(np.vstack([lost[::-1], none])), retain)
    np.testing.assert_allclose(again, projector, atol=1e-12)
    same = own_directions(made(np.vstack([kept, none])), retain)  # nothing of their own
    np.testing.assert_array_equal(same, 0)


def test_retained_prototypes_of_a_vanishing_spectrum_leave_nothing_of_rounding():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(90, 48)) * 0.7 ** np.arange(48)).astype(np.float32)
    none = np.zeros_like(rows)

    def made(prototypes):
        counts = (np.abs(prototypes).sum(1) > 0).astype(np.float32)
        return Moments(jnp.asarray(prototypes), jnp.asarray(counts), jnp.eye(48), jnp.zeros(48))

    first, others = none.copy(), rows.copy()
    first[0], others[0] = rows[0], 0
    np.testing.assert_array_equal(own_directions(made(first), made(others)), 0)


@pytest.mark.parametrize("dim", [16, 64, 512])
def test_the_probe_tells_nothing_of_equal_distributions_and_closed_form_of_others(dim):
    rng = np.random.default_rng(dim)

    def both(shift, *, offset=0.0, counts=(200, 1300)):
        found = []
        for n, away in zip(counts, (shift, 0.0), strict=True):
            h = rng.normal(size=(n, dim)).astype(np.float32)
            h[:, 0] += away
            h += offset
            center = np.full(dim, offset, np.float32)
            squares = (h - center).T @ (h - center)
            own = jnp.asarray(h.sum(0)[None]), jnp.asarray([float(n)], jnp.float32)
            found.append(Moments(*own, jnp.asarray(squares), jnp.asarray(center)))
        return float(separability(*found))

    assert np.mean([both(0.0) for _ in range(8)]) < 0.15
    assert np.mean([both(0.0, counts=(20, 130)) for _ in range(8)]) < 0.3
    wanted = 2 * scipy.stats.norm.cdf(3 / 2) - 1
    tolerance = 0.03 if dim < 512 else 0.15  # the probe's own noise
    np.testing.assert_allclose(both(3.0), wanted, atol=tolerance)
    np.testing.assert_allclose(both(3.0, offset=300.0), wanted, atol=tolerance)


def test_depth_is_that_of_the_forward_pass_whatever_the_micro_batch(model, monkeypatch):
    params, (forget, retain) = to_float64(drawn(model.init)), sets()
    wanted = begin(methods.damp(model.apply), params, forget, retain, key=KEY).params
    monkeypatch.setattr(damp_file, "BATCH", 5)
    found = begin(methods.damp(lambda *a: model.apply(*a)), params, forget, retain, key=KEY).params
    for name in ("layer_0", "head"):
        np.testing.assert_allclose(
            found[name]["kernel"], wanted[name]["kernel"], rtol=1e-9, atol=1e-12
        )


def test_every_layer_of_a_vit_is_seen_in_order_with_the_mean_over_tokens():
    vit = models.create("vit_mu/2", num_classes=CLASSES, image_shape=SHAPE)
    params, (forget, _) = to_float64(drawn(vit.init)), sets()
    found = layer_inputs(vit.apply, params, forget.x)
    names = ["/".join(path) for path in found]
    assert names[:5] == ["patches", *(f"block_0/{n}" for n in ("qkv", "out", "up", "down"))]
    assert names[-1] == "head"
    x = np.asarray(forget.x)[..., 0].reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)
    np.testing.assert_allclose(found[("patches",)], x.mean(1), rtol=1e-12)
    logits = found[("head",)] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, vit.apply(params, forget.x), rtol=1e-6)


class Convolutions(nn.Module):
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=self.groups, name="second")(x))
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        same, x = nn.Dense(32, name="same"), x.reshape(len(x), -1)
        return nn.Dense(CLASSES, name="head")(same(same(x)))


def test_a_convolution_loses_the_direction_over_its_channels():
    module, (forget, retain) = Convolutions(), sets(shape=(4, 4, 2))
    params = to_float64(module.init(KEY, forget.x)["params"])

    def apply_fn(params, x):
        return module.apply({"params": params}, x)

    edited = begin(methods.damp(apply_fn), params, forget, retain, key=KEY).params
    inputs = [layer_inputs(apply_fn, params, each.x)[("second",)] for each in (forget, retain)]
    kernel = np.asarray(params["second"]["kernel"])
    wanted = by_hand(
        entering(forget, inputs[0]), entering(retain, inputs[1]),
        kernel.transpose(2, 0, 1, 3).reshape(4, -1), ramp=2 / 3,
    )  # fmt: skip
    wanted = wanted.reshape(4, 3, 3, 4).transpose(1, 2, 0, 3)
    np.testing.assert_allclose(edited["second"]["kernel"], wanted, rtol=1e-9, atol=1e-11)
    assert np.abs(wanted - kernel).max() > 1e-3


def test_weights_of_half_precision_are_edited_by_moments_in_float32(logistic):
    params, sets_of = drawn(logistic.init), sets()
    forget, retain = (Batch(each.x.astype(jnp.float32), each.labels) for each in sets_of)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    edited = begin(methods.damp(logistic.apply), half, forget, retain, key=KEY).params
    wanted = begin(methods.damp(logistic.apply), params, forget, retain, key=KEY).params
    assert edited["head"]["kernel"].dtype == jnp.bfloat16
    close = np.asarray(edited["head"]["kernel"], np.float32)
    np.testing.assert_allclose(close, wanted["head"]["kernel"], atol=0.02)


def test_models_that_it_cannot_edit_are_refused_in_words():
    forget, retain = sets(shape=(4, 4, 2))
    module = Convolutions(groups=2)
    params = to_float64(module.init(KEY, forget.x)["params"])
    grouped = methods.damp(lambda params, x: module.apply({"params": params}, x))
    with pytest.raises(ValueError, match=r"second must have the input's 4 channels, no groups"):
        begin(grouped, params, forget, retain, key=KEY)
    plain = methods.damp(lambda w, x: x.reshape(len(x), -1) @ w)
    with pytest.raises(ValueError, match=r"dense or convolutional layers of flax.linen"):
        begin(plain, jnp.ones((32, CLASSES)), forget, retain, key=KEY)
    shared = Shared()
    weights = to_float64(shared.init(KEY, forget.x)["params"])
    twice = methods.damp(lambda params, x: shared.apply({"params": params}, x))
    with pytest.raises(ValueError, match="must call every layer once, got same again"):
        begin(twice, weights, forget, retain, key=KEY)
    with pytest.raises(ValueError, match="strength"):
        methods.damp(lambda w, x: x, strength=-1.0)
