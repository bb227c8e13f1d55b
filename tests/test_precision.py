"""Computing in bfloat16: what is narrow, what stays wide, and that training comes to the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, drawn

from famr_jax import loop, models
from famr_jax.losses import cross_entropy
from famr_jax.models.vit import Variant, ViT
from famr_jax.train import Supervised
from famr_jax.types import Batch

MODEL = models.Model("vit", 3, (4, 4, 1), ViT(3, 2, Variant(16, 1, 2)))
NARROW = models.computing_in(MODEL.apply, "bfloat16")
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def weights():
    return drawn(MODEL.init)


@pytest.fixture(scope="module")
def batch():
    """Three classes that differ in brightness, with noise."""
    rng = np.random.default_rng(0)
    labels = jnp.arange(24) % 3
    x = 0.3 * rng.normal(size=(24, 4, 4, 1)) + (np.asarray(labels) - 1.0)[:, None, None, None]
    return Batch(jnp.asarray(x, jnp.float32), labels)


def test_logits_agree_to_the_precision_of_bfloat16(weights, batch):
    wide, narrow = (jax.jit(f)(weights, batch.x) for f in (MODEL.apply, NARROW))
    assert narrow.dtype == jnp.float32
    gap = np.abs(wide - narrow).max() / np.abs(wide).max()
    assert 1e-5 < gap < 2**-6  # 2^-9 a rounding


def test_products_are_narrow_and_statistics_wide(weights, batch):
    text = jax.jit(NARROW).lower(weights, batch.x).as_text()
    products = re.findall(r"dot_general.*: \((\S+), (\S+)\) -> ", text)
    narrow = [all("bf16" in shape for shape in pair) for pair in products]
    # Patches, four layers and two products of attention; the head is wide.
    assert (sum(narrow), len(narrow)) == (7, 8)
    for operation in ("exponential", "rsqrt"):
        found = re.findall(rf"stablehlo\.{operation} .* : tensor<\S*x(\w+)>", text)
        assert found
        assert set(found) == {"f32"}


def test_gradients_and_optimizer_have_the_dtype_of_the_weights(weights, batch):
    def loss(params):
        return jnp.mean(cross_entropy(NARROW(params, batch.x), batch.labels))

    grads = jax.eval_shape(jax.grad(loss), weights)
    learner = Supervised(NARROW, optax.adam(1e-3), accumulate=2, ema=0.9)
    state, _ = jax.eval_shape(lambda: learner.step(learner.init(weights), batch, KEY))
    for leaf in jax.tree.leaves((grads, state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_training_reaches_the_same_loss(model, batch):
    ends = []
    for apply_fn in (model.apply, models.computing_in(model.apply, "bfloat16")):
        learner = Supervised(apply_fn, optax.adam(3e-2))
        state = learner.init(model.init(KEY))
        *_, (_, _, info) = loop.run_epochs(
            learner, state, batch, size=24, epochs=10, batch_size=8, key=KEY
        )
        ends.append(float(info["loss"]))
    assert ends[0] < 0.5 * np.log(3)
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_the_same_dtype_changes_no_bit(weights, batch):
    same = models.computing_in(MODEL.apply, "float32")
    assert_same(jax.jit(same)(weights, batch.x), jax.jit(MODEL.apply)(weights, batch.x))


def test_the_same_arguments_give_an_equal_function():
    same = models.computing_in(MODEL.apply, jnp.bfloat16)
    assert (same, hash(same)) == (NARROW, hash(NARROW))
    assert models.computing_in(MODEL.apply, "float16") != NARROW


@pytest.mark.parametrize("dtype", ["int8", "half a float"])
def test_refuses_what_is_not_floating_point(dtype):
    with pytest.raises(ValueError, match=f"`dtype` must be one of floating point, got '{dtype}'"):
        models.computing_in(MODEL.apply, dtype)
