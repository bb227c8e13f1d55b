"""A toy problem that compiles in no time, and what several test files compare with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from famr_jax import models
from famr_jax.types import Batch

settings.register_profile("suite", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("suite")

CLASSES, SHAPE = 3, (4, 4, 1)


def assert_same(tree, other):
    """Equal structures, dtypes and bits; NaN equals NaN."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == same.dtype
        np.testing.assert_array_equal(leaf, same)


def to_float64(tree):
    """A copy with float64 in place of float32; under the fixture `x64` only."""
    cast = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    return jax.tree.map(cast, tree)


def counting(apply_fn):
    """The function, and the list that grows by one at each of its traces."""
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply_fn(params, x)

    return counted, traces


def noisy(params, seed=7):
    """Params with noise on every leaf: the models start with a head of zeros, a special point."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def random_batch(size, seed):
    x_key, label_key = jax.random.split(jax.random.key(seed))
    labels = jax.random.randint(label_key, (size,), 0, CLASSES)
    return Batch(jax.random.normal(x_key, (size, *SHAPE)), labels)


@pytest.fixture(scope="session")
def model():
    return models.create("mlp_8", num_classes=CLASSES, image_shape=SHAPE)


@pytest.fixture(scope="session")
def logistic():
    return models.create("logistic", num_classes=CLASSES, image_shape=SHAPE)


@pytest.fixture(scope="session")
def params(model):
    return noisy(model.init(jax.random.key(0)))


@pytest.fixture(scope="session")
def forget():
    return random_batch(10, seed=1)


@pytest.fixture(scope="session")
def retain():
    return random_batch(14, seed=2)


@pytest.fixture
def x64():
    """Float64 for the length of one test."""
    with jax.enable_x64(True):
        yield
