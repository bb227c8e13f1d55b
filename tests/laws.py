"""The world of methods' laws: logistic regression in float64, beside it in NumPy.

There the gradient of any loss of the logits is known: X^T (d loss / d logits).
"""

from typing import NamedTuple

import jax
import numpy as np
import optax
from conftest import drawn, random_batch, to_float64

from famr_jax.types import Context, Pair

KEY = jax.random.key(5)
SGD = optax.sgd(0.1)


class Half(NamedTuple):
    """One set as NumPy sees it: flat images, labels, and the logits of both weights."""

    x: np.ndarray
    labels: np.ndarray
    trained: np.ndarray
    logits: np.ndarray

    @property
    def own(self):
        return np.eye(3)[self.labels]

    def pull(self, slopes):
        """The gradient in the weights of a loss whose mean has these slopes in the logits."""
        slopes = slopes / len(self.x)
        return {"head": {"bias": slopes.sum(0), "kernel": self.x.T @ slopes}}


class World(NamedTuple):
    """A model at trained weights and at others, and the two sets; methods' steps on them."""

    apply: object
    anchor: dict
    params: dict
    pair: Pair
    gone: Half
    kept: Half

    def begun(self, method, params=None):
        return INIT(method, params or self.anchor, self.pair.forget, self.pair.retain, KEY)

    def slope(self, method, params=None, prepared=None, step=0):
        context = Context(self.anchor, prepared, step)
        return SLOPE(method.objective, params or self.params, context, self.pair, KEY)

    def stepped(self, method, count=1):
        state = self.begun(method)
        for _ in range(count):
            state, info = STEP(method, state, self.pair, KEY)
        return state.params, info


INIT = jax.jit(lambda method, *args: method.init(*args))
STEP = jax.jit(lambda method, *args: method.step(*args))


@jax.jit
def SLOPE(objective, params, context, pair, key):
    return jax.grad(lambda params: objective(params, context, pair, key)[0])(params)


def logistic_world(model):
    """That of logistic regression at random weights; under float64 only."""
    anchor = to_float64(drawn(model.init))
    params = jax.tree.map(lambda a, b: a + 0.2 * b, anchor, to_float64(drawn(model.init, 8)))
    pair = to_float64(Pair(random_batch(10, seed=1), random_batch(14, seed=2)))

    def half(batch):
        x, labels = np.asarray(batch.x).reshape(len(batch), -1), np.asarray(batch.labels)
        logits = (x @ w["head"]["kernel"] + w["head"]["bias"] for w in (anchor, params))
        return Half(x, labels, *map(np.asarray, logits))

    return World(model.apply, anchor, params, pair, half(pair.forget), half(pair.retain))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def close(tree, other, *, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


def plus(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def times(factor, tree):
    return jax.tree.map(lambda leaf: factor * leaf, tree)
