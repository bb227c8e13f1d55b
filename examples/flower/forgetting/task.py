"""What server and clients agree on: the model, the data of each client, the keys."""

from typing import Any

import jax
import numpy as np
import optax

import famr_jax as fj
from famr_jax import federated
from famr_jax.types import Batch

BATCH_SIZE = 32
MODEL = fj.models.create("mlp_64", num_classes=10, image_shape=(8, 8, 1))
LEARNER = fj.train.Supervised(MODEL.apply, optax.sgd(0.1))


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The key of the first weights, and the one that every client makes its own of."""
    first, clients = jax.random.split(jax.random.key(seed))
    return first, clients


def parts(config: Any) -> list[np.ndarray]:
    """The rows of the training images that each client holds.

    On a real federation there is no such list: every client has its own images, and `client` below
    is what reads them.
    """
    labels = np.asarray(fj.data.load("digits").train.labels)
    clients, alpha, seed = (config[name] for name in ("clients", "alpha", "seed"))
    return federated.dirichlet(
        labels, int(clients), alpha=float(alpha), seed=int(seed), least=2 * BATCH_SIZE
    )


def client(config: Any, index: int) -> tuple[Batch, Batch]:
    """What a client trains on, and what it forgets: every second image if only a part."""
    rows, train = parts(config)[index], fj.data.load("digits").train.batch()
    if config["forget-part"] and index == config["forget"]:
        return train[rows[1::2]], train[rows[::2]]
    return train[rows], train[rows]
