"""Supervised training: one step by hand, augmentation, the recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, random_batch

from famr_jax import loop
from famr_jax.losses import cross_entropy
from famr_jax.train import Supervised, recipe
from famr_jax.types import Batch

KEY = jax.random.key(0)
SGD = optax.sgd(0.5)


@pytest.fixture(scope="module")
def batch():
    return random_batch(10, seed=4)


def step(learner, state, batch, key=KEY):
    return jax.jit(type(learner).step)(learner, state, batch, key)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_descends_the_mean_cross_entropy(logistic, batch, smoothing):
    params = {"head": {"kernel": jnp.ones((16, 3)) / 9, "bias": jnp.arange(3.0)}}
    learner = Supervised(logistic.apply, SGD, label_smoothing=smoothing)
    state, info = step(learner, learner.init(params), batch)

    x, labels = np.asarray(batch.x).reshape(10, -1), np.asarray(batch.labels)
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    q = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    np.testing.assert_allclose(info["loss"], -(q * np.log(p)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(info["accuracy"], (p.argmax(1) == labels).mean(), rtol=1e-6)
    bias = params["head"]["bias"] - 0.5 * (p - q).mean(0)
    kernel = params["head"]["kernel"] - 0.5 * x.T @ (p - q) / 10
    np.testing.assert_allclose(state.params["head"]["bias"], bias, rtol=1e-5)
    np.testing.assert_allclose(state.params["head"]["kernel"], kernel, rtol=1e-4, atol=1e-6)


def test_augmentation_sees_the_steps_key_and_changes_the_batch(logistic, batch):
    params = {"head": {"kernel": jnp.ones((16, 3)), "bias": jnp.zeros(3)}}
    augment = lambda key, x: x + jax.random.normal(key, x.shape)  # noqa: E731
    mine = Supervised(logistic.apply, SGD, augment=augment)
    plain = Supervised(logistic.apply, SGD)
    state, _ = step(mine, mine.init(params), batch)
    noise = jax.random.normal(KEY, batch.x.shape)
    wanted, _ = step(plain, plain.init(params), Batch(batch.x + noise, batch.labels))
    other, _ = step(mine, mine.init(params), batch, jax.random.key(1))
    kernels = [each.params["head"]["kernel"] for each in (state, wanted, other)]
    np.testing.assert_allclose(*kernels[:2], rtol=1e-5)
    assert not np.allclose(kernels[0], kernels[2])


def test_training_fits_separable_data(logistic):
    labels = jnp.arange(12) % 3
    train = Batch(3.0 * jax.nn.one_hot(labels, 16).reshape(12, 4, 4, 1), labels)
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(logistic.init, KEY))
    learner = Supervised(logistic.apply, recipe(num_steps=60, lr=0.1, weight_decay=0.0))
    start = float(jnp.mean(cross_entropy(logistic.apply(params, train.x), labels)))
    sizes = {"size": 12, "epochs": 20, "batch_size": 4}
    *_, (_, _, info) = loop.run_epochs(learner, learner.init(params), train, **sizes, key=KEY)
    assert float(info["loss"]) < start / 10
    assert float(info["accuracy"]) == 1


def test_the_recipe_warms_up_and_decays_to_zero():
    tree = {"w": jnp.ones((2, 2))}
    optimizer = recipe(num_steps=10, lr=1.0, weight_decay=0.0, warmup=0.2)

    @jax.jit
    def sizes():
        state, steps = optimizer.init(tree), []
        for _ in range(11):
            updates, state = optimizer.update(tree, state, tree)
            steps.append(-updates["w"][0, 0])
        return jnp.stack(steps)

    # Adam of a constant gradient steps by the learning rate.
    lr = sizes()
    np.testing.assert_allclose(lr[:3], [0, 0.5, 1], atol=1e-3)
    assert np.all(np.diff(lr[2:]) < 0)
    np.testing.assert_allclose(lr[-1], 0, atol=1e-6)


def test_only_matrices_decay():
    tree = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = recipe(num_steps=10, lr=1.0, weight_decay=0.1, warmup=0.1)

    @jax.jit
    def twice(zeros):
        _, state = optimizer.update(zeros, optimizer.init(tree), tree)
        return optimizer.update(zeros, state, tree)[0]

    updates = twice(jax.tree.map(jnp.zeros_like, tree))
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
    assert_same(updates["bias"], jnp.zeros(2))


def test_the_recipe_clips_the_gradient():
    tree = {"w": jnp.ones((2, 2))}
    _, state = recipe(num_steps=10).update(jax.tree.map(lambda w: 50 * w, tree),
                                           recipe(num_steps=10).init(tree), tree)  # fmt: skip
    # Norm 100 clipped to 1, so each of the four entries is 1/2; first moment (1 - 0.9) of it.
    np.testing.assert_allclose(optax.tree.get(state, "mu")["w"], 0.05, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be an integer >= 1, got 0"),
        ({"lr": 0.0}, "`lr` must be finite and > 0, got 0.0"),
        ({"lr": float("nan")}, "`lr` must be finite and > 0, got nan"),
        ({"weight_decay": -0.1}, "`weight_decay` must be finite and >= 0, got -0.1"),
    ],
)
def test_the_recipe_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        recipe(**{"num_steps": 10, **values})
