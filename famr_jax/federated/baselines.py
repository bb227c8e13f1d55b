"""What PUF is compared with: projected gradient ascent at the client, and calibrated replay.

Retraining is `run_rounds` from fresh weights with the forgotten clients' weights at 0, and the
natural baseline the same from the trained ones; FAMR and others are `unlearning_update`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from famr_jax.federated.clients import Clients
from famr_jax.federated.rounds import Server, aggregate, leaf_norms, local_updates
from famr_jax.methods import gradient_ascent
from famr_jax.types import (
    ApplyFn,
    Batch,
    Pair,
    Params,
    Unlearner,
    check_count,
    check_key,
    check_number,
    pytree,
    static,
)
from famr_jax.unlearn import Descent, DescentState

TINY = 1e-30
"""What a length is divided by at least."""


@pytree
class AtClient:
    """An unlearning method as a learner of `local_updates`: what a client does in a round.

    All clients then run it at once, each on what it holds, and clients of all sizes share one
    program; `unlearning_update` compiles anew for every size. Only for methods whose epochs pass
    over the forget set and which compute nothing from whole sets beforehand: padding would count.

    Attributes:
        unlearner: The method.
    """

    unlearner: Unlearner

    def init(self, params: Params) -> Any:
        """The method's state.

        Raises:
            ValueError: The method passes over retained data, or computes something beforehand.
        """
        method = self.unlearner
        if method.epoch_over != "forget" or getattr(method, "prepare", None) is not None:
            raise ValueError(f"`unlearner` must need the forget set alone, got {method!r}.")
        unseen: Any = None  # neither set is read: see above
        return method.init(params, unseen, unseen, jax.random.key(0))

    def step(self, state: Any, batch: Batch, key: Array) -> tuple[Any, dict[str, Array]]:
        """A step on a minibatch of what the client holds."""
        return self.unlearner.step(state, Pair(batch, None), key)


def without_client(params: Params, update: Params, *, share: float) -> Params:
    """The mean of the other clients' weights, from the server's and one client's own.

        w_ref = (w - s w_u) / (1 - s) = w - s / (1 - s) Delta_u,    s = n_u / N

    It is what projected ascent starts from, and PUF-Special's round at the rate s / (1 - s).

    Args:
        params: The server's weights w.
        update: Delta_u of the client that is forgotten, without a client axis.
        share: s, in (0, 1); the paper's clients all count 1/K.

    Raises:
        ValueError: `share` out of range.

    Source: arXiv 2207.05521, section 3.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must be in (0, 1), got {share!r}.")
    return optax.tree.add_scale(params, -share / (1 - share), update)


@pytree
class Projected:
    """The unlearner behind `projected_ascent`; a new radius does not retrace."""

    ascent: Descent
    radius: float
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params: Params, forget: Any, retain: Any, key: Array) -> DescentState:
        return self.ascent.init(params, forget, retain, key)

    def step(
        self, state: DescentState, pair: Pair, key: Array
    ) -> tuple[DescentState, dict[str, Array]]:
        state, info = self.ascent.step(state, pair, key)
        moved = optax.tree.sub(state.params, state.context.anchor)
        scale = jnp.minimum(1, self.radius / jnp.maximum(optax.tree.norm(moved), TINY))
        params = optax.tree.add_scale(state.context.anchor, scale, moved)
        return state._replace(params=params), info


def projected_ascent(
    apply_fn: ApplyFn, *, optimizer: optax.GradientTransformation, radius: float
) -> Projected:
    """Ascends the client's loss within a ball about the weights that it starts from.

        params <- P(params + step),    P the projection on ||params - w_ref|| <= radius

    Args:
        apply_fn: The model.
        optimizer: Any optax transformation.
        radius: Of the ball; the paper takes a third of the distance of w_ref to fresh weights.

    Raises:
        ValueError: `radius` not positive.

    Source: arXiv 2207.05521, section 3; PUF's baseline stops it after 5 epochs at the step .01.
    """
    check_number("radius", radius, above=0)
    return Projected(gradient_ascent(apply_fn, optimizer=optimizer), radius)


def calibrated_replay(
    learner: Any,
    params: Params,
    clients: Clients,
    weights: np.ndarray,
    keys: Array,
    norms: Sequence[Array],
    *,
    interval: int = 2,
    epochs: int = 1,
    batch_size: int = 32,
) -> Iterator[tuple[int, Server, dict[str, Array]]]:
    """Retrains by the lengths of kept updates and the directions of new ones: as FedEraser does.

        w <- w + sum_k weights_k |Delta_k^old| Delta_k^new / |Delta_k^new|,    for each array

    Yields as `run_rounds`. The server needs of its history no updates, only their norms.

    Args:
        learner: As in `local_updates`.
        params: The fresh weights that training started from.
        clients: The data.
        weights: `fedavg` of those who stay.
        keys: A key for each client, `[clients]`.
        norms: Of the training's rounds, `info["norms"]`, `[clients, leaves]` each.
        interval: Every so many rounds are kept and replayed, from the first one on.
        epochs: Local epochs of a calibration. FedEraser's are fewer than those of training.
        batch_size: Examples a step.

    Raises:
        ValueError: No history, or `interval` below one.

    Source: FedEraser (IWQoS 2021), equation 3; by arrays, as its public code does.
    """
    check_key(keys, members=True)
    check_count("interval", interval)
    kept = list(norms)[::interval]
    if not kept:
        raise ValueError("`norms` must hold at least one round, got none.")
    for number, lengths in enumerate(kept, start=1):
        updates, info = local_updates(
            learner, params, clients, keys, number, epochs=epochs, batch_size=batch_size
        )
        params = _calibrated(params, updates, jnp.asarray(lengths), jnp.asarray(weights))
        yield number, Server(params), info


@jax.jit
def _calibrated(params, updates, lengths, weights):
    scale = lengths / jnp.maximum(leaf_norms(updates), TINY)
    leaves, structure = jax.tree.flatten(updates)
    scaled = [
        leaf * scale[:, i].astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        for i, leaf in enumerate(leaves)
    ]
    return aggregate(params, jax.tree.unflatten(structure, scaled), weights)
