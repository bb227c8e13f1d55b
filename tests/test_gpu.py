"""CPU and GPU agree: logits, gradients and curvature of a small ViT. Skipped without a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from jax.flatten_util import ravel_pytree

from famr_jax import curvature, losses, models
from famr_jax.types import Batch

pytestmark = pytest.mark.gpu
TOLERANCE = 1e-4
"""Relative; both sides in float32 with products of full precision."""


@pytest.fixture(scope="module")
def gpu():
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU here")


def test_cpu_and_gpu_agree(gpu):
    model = models.create("vit_mu/2", num_classes=10, image_shape=(8, 8, 1))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (64, 8, 8, 1)), jnp.float32)
    params, batch = drawn(model.init), Batch(x, jnp.arange(64) % 10)

    def loss_fn(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.labels)

    @jax.jit
    def everything(params, batch):
        hessian = curvature.Hessian(loss_fn, params, batch, 24)
        top = curvature.eigenvalues(hessian, params, k=2, key=jax.random.key(0))
        fisher = curvature.fisher(lambda p, b: model.apply(p, b.x), params, batch)
        solved = curvature.solve(fisher, params, damping=1.0, tol=1e-5, max_steps=300)
        with jax.default_matmul_precision("highest"):
            logits = model.apply(params, batch.x)

        def flat(tree):
            return ravel_pytree(tree)[0]

        return logits, flat(hessian(params)), top.values, flat(solved.value)

    cpu = jax.devices("cpu")[0]
    both = [everything(*jax.device_put((params, batch), device)) for device in (cpu, gpu)]
    for one, other in zip(*jax.device_get(both), strict=True):
        assert np.linalg.norm(one - other) < TOLERANCE * np.linalg.norm(one)
