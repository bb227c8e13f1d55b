"""A toy problem that compiles in no time, and what several test files compare with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from famr_jax import __main__ as commands
from famr_jax import models
from famr_jax.store import make_room_for_programs
from famr_jax.types import Batch

# Meshes of four devices in the suite; whatever does not ask for one runs on the first.
jax.config.update("jax_num_cpu_devices", 4)
# Forced devices share few threads: two programs in flight can wait for one another for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)

settings.register_profile("suite", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("suite")

CLASSES, SHAPE = 3, (4, 4, 1)


def assert_same(tree, other):
    """Equal structures, dtypes and bits; NaN equals NaN."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert getattr(leaf, "dtype", None) == getattr(same, "dtype", None)
        np.testing.assert_array_equal(leaf, same)


def to_float64(tree):
    """A copy with float64 in place of float32; under the fixture `x64` only."""

    def cast(leaf):
        return np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf

    return jax.tree.map(lambda leaf: jnp.asarray(cast(leaf)), tree)


def counting(apply_fn):
    """The function, and the list that grows by one at each of its traces."""
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply_fn(params, x)

    return counted, traces


def drawn(init_fn, seed=7):
    """Params of a model's structure, all leaves random: fresh ones have a head of zeros."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init_fn, jax.random.key(0))

    def draw(leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


def exit_status(*words):
    """What `python -m famr_jax` exits with after these words."""
    try:
        commands.main(words)
    except SystemExit as stop:
        return stop.code
    return 0


def random_batch(size, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(size, *SHAPE)), jnp.float32)
    return Batch(x, jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32))


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Frees compiled programs after a file of tests, where there are many of them."""
    yield
    make_room_for_programs()


@pytest.fixture(scope="session")
def model():
    return models.create("mlp_8", num_classes=CLASSES, image_shape=SHAPE)


@pytest.fixture(scope="session")
def logistic():
    return models.create("logistic", num_classes=CLASSES, image_shape=SHAPE)


@pytest.fixture(scope="session")
def params(model):
    return drawn(model.init)


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


@pytest.fixture(scope="module")
def double():
    """Float64 for the length of a file."""
    with jax.enable_x64(True):
        yield
