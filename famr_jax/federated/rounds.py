"""Rounds of federated averaging and of PUF, as pure functions of weights and clients.

A round is `aggregate(params, local_updates(...), weights)`: every client trains from the same
weights, and the server adds up what it sends, each update times a number. Those numbers are all
that tells FedAvg from PUF.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from famr_jax import unlearn
from famr_jax.federated.clients import Clients
from famr_jax.mesh import gather, spread
from famr_jax.models.checking import check
from famr_jax.types import (
    Batch,
    Params,
    Unlearner,
    check_count,
    check_key,
    check_labels,
    check_number,
)

ATTEMPTS = 3 / math.log(2**32 - 1)
"""`jax.random.permutation` of n sorts by random bits ceil(ATTEMPTS log n) times."""


class Server(NamedTuple):
    """What a federation keeps from round to round."""

    params: Params


def client_keys(key: Array, num_clients: int) -> Array:
    """A key for each client, `[clients]`: that of client k, which k can make alone, is k's fold."""
    check_key(key)
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_clients))


@partial(jax.jit, static_argnames=("epochs", "batch_size"))
def local_updates(
    learner: Any,
    params: Params,
    clients: Clients,
    keys: Array,
    server_round: Array | int,
    *,
    epochs: int = 1,
    batch_size: int = 32,
) -> tuple[Params, dict[str, Array]]:
    """What each client's training adds to the weights, its pseudo-gradient Delta_k = w_k - w.

    All clients run as one program, spread over the axis "data" of the mesh in use, if any. Round r
    is the epochs (r - 1) epochs + 1 to r epochs of each client's key, drawn as `loop` draws them.
    A client smaller than a batch, among larger ones, fills its batch with its examples again.

    Args:
        learner: As `train.Supervised`: `init(params) -> state`, `step(state, batch, key)`. Its
            optimizer starts afresh in every round.
        params: The server's weights w.
        clients: The data.
        keys: A key for each client, `[clients]`; the same in every round.
        server_round: r, counted from 1.
        epochs: Local epochs a round.
        batch_size: Examples a step.

    Returns:
        Updates with a leading client axis, and the mean over the steps of each entry of `info`,
        `[clients]`.
    """
    check_key(keys, members=True)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    train = partial(_train, learner, params, server_round, epochs=epochs, batch_size=batch_size)
    ended, info = jax.vmap(train)(spread(clients.data), spread(clients.sizes), spread(keys))
    return jax.tree.map(jnp.subtract, ended, params), gather(info)


def _train(learner, params, server_round, data, size, key, *, epochs, batch_size):
    """One client's weights after a round, and the means of `info`."""
    most = len(data)
    num_steps, width = math.ceil(most / batch_size), min(batch_size, most)
    taken = jnp.arange(num_steps) * batch_size < size

    def step(state, xs):
        taken, rows, key = xs
        after, info = learner.step(state, data[rows], key)
        state, info = (
            jax.tree.map(partial(jnp.where, taken), new, old)
            for new, old in ((after, state), (info, jax.tree.map(jnp.zeros_like, info)))
        )
        return state, info

    def epoch(state, number):
        order_key, step_key = jax.random.split(jax.random.fold_in(key, number))
        rows = _draw(jax.random.fold_in(order_key, 0), size, most, num_steps * width)
        keys = jax.random.split(step_key, num_steps)
        return jax.lax.scan(step, state, (taken, rows.reshape(num_steps, width), keys))

    numbers = (server_round - 1) * epochs + 1 + jnp.arange(epochs)
    state, info = jax.lax.scan(epoch, learner.init(params), numbers)
    return state.params, jax.tree.map(lambda leaf: leaf.sum() / (epochs * taken.sum()), info)


def _draw(key, size, most, count):
    """The first rows that `loop.draw` gives of a set of `size`, whatever it is padded to."""
    orders = jax.vmap(partial(_permutation, size=size, most=most))(jax.random.split(key))
    at = jnp.arange(count)
    # Only a set smaller than a batch is passed over more than twice: its second order comes again.
    return orders[jnp.minimum(at // size, 1), at % size]


def _permutation(key, *, size, most):
    """`jax.random.permutation(key, size)`, padded to `most`, for a size that is traced."""
    order = jnp.arange(most)
    for attempt in range(math.ceil(ATTEMPTS * math.log(most))):
        key, subkey = jax.random.split(key)
        bits = jax.random.bits(subkey, (most,), jnp.uint32)
        behind = (jnp.arange(most) >= size).astype(jnp.uint32)
        shuffled = jax.lax.sort((behind, bits, order), num_keys=2)[-1]
        needed = attempt < jnp.ceil(ATTEMPTS * jnp.log(size))
        order = jnp.where(needed, shuffled, order)
    return order


def aggregate(params: Params, updates: Params, weights: Array) -> Params:
    """The server's step, w + sum_k weights_k Delta_k; an update of weight 0 is not looked at.

    So a client that is left out may send anything, NaN too.
    """

    def add(leaf, update):
        by = jnp.reshape(weights, (-1, *[1] * leaf.ndim)).astype(leaf.dtype)
        return leaf + jnp.sum(jnp.where(by == 0, 0, by * update), axis=0)

    return jax.tree.map(add, params, updates)


def fedavg(sizes: np.ndarray, taking_part: np.ndarray | None = None) -> np.ndarray:
    """The weights of federated averaging, n_k / N over the clients that take part, else 0.

    Args:
        sizes: Examples of each client, `[clients]`.
        taking_part: Boolean, `[clients]`; None for all.

    Raises:
        ValueError: Nobody takes part, or the mask is not boolean or of another length.
    """
    sizes = np.asarray(sizes, np.float64)
    taking_part = np.ones(len(sizes), bool) if taking_part is None else taking_part
    taking_part = _mask("taking_part", taking_part, len(sizes))
    return np.where(taking_part, sizes, 0) / sizes[taking_part].sum()


def puf_special(sizes: np.ndarray, gone: np.ndarray, *, rate: float = 2.0) -> np.ndarray:
    """The weights of PUF-Special's round: the forgotten clients' updates alone, negated.

        w <- w - rate sum_{u in U} (n_u / n_U) Delta_u,    n_U the examples of all of U

    The rate 0 changes nothing; -1 is averaging over U. It is the paper's eta_u, 2.

    Args:
        sizes: Examples of each client, `[clients]`.
        gone: Boolean, `[clients]`: U, one client or several at once.
        rate: Multiplies the share-weighted mean of the forgotten clients' updates.

    Raises:
        ValueError: `rate` not finite, nobody is forgotten, or the mask is not one.

    Source: PUF (arXiv 2504.05822), its public code.
    """
    check_number("rate", rate)
    return -rate * fedavg(sizes, _mask("gone", gone, len(sizes)))


def puf_regular(sizes: np.ndarray, gone: np.ndarray, *, rate: float = 2.0) -> np.ndarray:
    """The weights of PUF-Regular's round: averaging of the others, and the negated updates of U.

        w <- w + sum_{k not in U} (n_k / N) Delta_k - rate sum_{u in U} (n_u / n_U) Delta_u

    N counts all clients, U too. The paper multiplies (n_u / N) Delta_u by its eta_u = 20: the rate
    here is eta_u n_U / N, which is 2 for one of ten equal clients, as in PUF-Special, and does not
    grow with the client's share. At the rate -n_U / N the round is FedAvg.

    Args:
        sizes: Examples of each client, `[clients]`.
        gone: Boolean, `[clients]`: U, one client or several at once.
        rate: Multiplies the share-weighted mean of the forgotten clients' updates.

    Raises:
        ValueError: As `puf_special`.

    Source: PUF (arXiv 2504.05822), its public code.
    """
    forgotten = puf_special(sizes, gone, rate=rate)
    return np.where(gone, forgotten, fedavg(sizes))


def run_round(
    learner: Any,
    params: Params,
    clients: Clients,
    weights: np.ndarray,
    keys: Array,
    server_round: int,
    *,
    epochs: int = 1,
    batch_size: int = 32,
) -> tuple[Params, dict[str, Array]]:
    """One whole round: the next weights, and `info`; arguments as in `local_updates`.

    `info` has the means of each client's steps, `[clients]`, the Euclidean norm of each array of
    each client's update in the order of the leaves, "norms" `[clients, leaves]`, and "finite":
    whether the weights are.

    Raises:
        ValueError: A label that is none of the learner's classes.
    """
    if (apply_fn := getattr(learner, "apply_fn", None)) is not None:
        x = jax.ShapeDtypeStruct((2, *clients.data.x.shape[2:]), clients.data.x.dtype)
        check_labels(clients.data.labels, jax.eval_shape(apply_fn, params, x).shape[-1])
    updates, info = local_updates(
        learner, params, clients, keys, server_round, epochs=epochs, batch_size=batch_size
    )
    params, norms, finite = _close(params, updates, jnp.asarray(weights))
    return params, {**info, "norms": norms, "finite": finite}


@jax.jit
def _close(params, updates, weights):
    params = gather(aggregate(params, updates, weights))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
    return params, gather(leaf_norms(updates)), finite


def leaf_norms(updates: Params) -> Array:
    """Euclidean norms of each array of each client's update, `[clients, leaves]`."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(updates)]
    return jnp.stack([jnp.linalg.norm(leaf, axis=1) for leaf in leaves], axis=1)


def run_rounds(
    learner: Any,
    params: Params,
    clients: Clients,
    weights: np.ndarray,
    keys: Array,
    *,
    rounds: int,
    start: int = 0,
    epochs: int = 1,
    batch_size: int = 32,
) -> Iterator[tuple[int, Server, dict[str, Array]]]:
    """Yields `(round, Server(params), info)` after each of the rounds `start + 1 .. rounds`.

    Going on from saved weights with `start` gives the uninterrupted run. Stops after the first
    round that is not finite. Other arguments as in `local_updates` and `aggregate`.

    Raises:
        ValueError: Not one weight and one key for each client, a model that `models.check` refuses,
            or a label that is none of its classes.
    """
    check_key(keys, members=True)
    if (apply_fn := getattr(learner, "apply_fn", None)) is not None:
        check(apply_fn, params, clients.data.x[0])
    for name, given in (("weights", weights), ("keys", keys)):
        if len(given) != len(clients):
            raise ValueError(f"`{name}` must be one for each of {len(clients)}, got {len(given)}.")
    for server_round in range(start + 1, rounds + 1):
        params, info = run_round(
            learner,
            params,
            clients,
            weights,
            keys,
            server_round,
            epochs=epochs,
            batch_size=batch_size,
        )
        yield server_round, Server(params), info
        if not info["finite"]:
            return


def unlearning_update(
    unlearner: Unlearner,
    params: Params,
    forget: Batch,
    retain: Batch | None = None,
    *,
    epochs: int = 1,
    batch_size: int = 32,
    key: Array,
) -> Params:
    """The update of a client that runs an unlearning method instead of training.

    Any `Unlearner` serves. Averaged over the forgotten clients it makes the unlearning round,
    `aggregate(params, update, puf_special(sizes, gone, rate=-1))`. Arguments as in `unlearn.run`;
    what the client wants forgotten is `forget`, the rest of its data, if any, `retain`.

    Returns:
        The update with a leading client axis of one, so that updates of several concatenate.
    """
    done = unlearn.run(
        unlearner, params, forget, retain, epochs=epochs, batch_size=batch_size, key=key
    )
    return jax.tree.map(lambda leaf: leaf[None], optax.tree.sub(done.params, params))


def _mask(name, mask, count):
    mask = np.asarray(mask)
    if mask.shape != (count,) or mask.dtype != bool or not mask.any():
        raise ValueError(f"`{name}` must be booleans, {count}, one of them true, got {mask}.")
    return mask
