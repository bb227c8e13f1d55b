"""Position embeddings at another resolution: lines, the stretched kernel, and PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, drawn
from weight_files import token_model

from famr_jax import models
from famr_jax.models import pretrained


def test_resize_to_the_same_size_is_the_identity():
    model, params = token_model()
    same, kept = pretrained.resize(model, params, (8, 8, 2))
    assert same is model
    assert_same(kept, params)


def test_resize_keeps_the_class_token_a_constant_and_a_ramp():
    model = models.create("vit_mu/4_token", num_classes=3, image_shape=(16, 24, 2))
    ramp = np.add.outer(2 * np.arange(4.0), np.arange(6.0))[..., None] * np.ones(32)
    params = drawn(model.init)
    token = params["position"][:1]
    params["position"] = jnp.concatenate([token, ramp.reshape(-1, 32).astype(np.float32)])
    larger, resized = pretrained.resize(model, params, (32, 48, 2))
    assert larger is models.create(model.name, num_classes=3, image_shape=(32, 48, 2))
    assert_same({**resized, "position": 0}, {**params, "position": 0})
    np.testing.assert_array_equal(resized["position"][:1], token)
    # A cubic kernel reproduces lines: pixel i of 2n stands at (i + 1/2) / 2 - 1/2. Borders differ.
    wanted = np.add.outer(2 * ((np.arange(8) + 0.5) / 2 - 0.5), (np.arange(12) + 0.5) / 2 - 0.5)
    grid = np.asarray(resized["position"][1:]).reshape(8, 12, 32)
    inside = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(grid[..., 5][inside], wanted[inside], atol=1e-5)
    constant = {**params, "position": jnp.full_like(params["position"], 0.7)}
    for shape in ((8, 12, 2), (20, 28, 2)):
        _, resized = pretrained.resize(model, constant, shape)
        np.testing.assert_allclose(resized["position"], 0.7, rtol=1e-6)


def test_downsampling_averages_with_the_stretched_kernel():
    model = models.create("vit_mu/4", num_classes=3, image_shape=(4, 16, 1))
    params = drawn(model.init)
    _, resized = pretrained.resize(model, params, (4, 8, 1))
    t = abs(np.subtract.outer([0.5, 2.5], np.arange(4))) / 2
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0))
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(
        resized["position"], weights @ params["position"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 24, 2), (4, 8, 2), (12, 20, 2)])
def test_resize_agrees_with_pytorch(shape):
    torch = pytest.importorskip("torch")
    model = models.create("vit_mu/2", num_classes=3, image_shape=(8, 12, 2))
    params = drawn(model.init)
    _, resized = pretrained.resize(model, params, shape)
    grid = torch.tensor(np.asarray(params["position"])).reshape(1, 4, 6, 32).permute(0, 3, 1, 2)
    sides = (shape[0] // 2, shape[1] // 2)
    wanted = torch.nn.functional.interpolate(grid, sides, mode="bicubic", antialias=True)
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 32)
    np.testing.assert_allclose(resized["position"], wanted, rtol=1e-4, atol=1e-5)
