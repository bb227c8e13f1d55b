"""PUF on a real federation, by Flower: a strategy for the server, an app for the clients.

Needs the extra `[flower]`; nothing else of the library imports it. The rounds are those of
`federated.rounds`: the same functions make the weights of a simulation and of a federation.
"""

# Flower is an extra, which lint need not have.
# pyright: reportMissingImports=false

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

try:
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError as error:
    raise ImportError(
        "`famr_jax.federated.flower` needs pip install 'famr_jax[flower]'."
    ) from error

from famr_jax.federated.clients import stack
from famr_jax.federated.rounds import aggregate, fedavg, local_updates
from famr_jax.types import Batch, Params, check_count, check_key

log = logging.getLogger("flwr.famr_jax")

SIZE, ROUND, INDEX = "num-examples", "server-round", "partition-id"
"""Names in Flower's records: of a client's examples, of the round, and of the client's place."""
TRAIN, UNLEARN, QUERY = "train", "train.unlearn", "query"
"""Types of messages: an ordinary round, a round on what is to be forgotten, and who is there."""

Weights = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`weights(sizes, gone) -> weights` of the updates, as `puf_special` and `puf_regular`."""


class FederationError(Exception):
    """A round that could not be finished; the weights are those before it, and it may be repeated.

    Says which client was the reason, and why.
    """


def to_record(params: Params) -> ArrayRecord:
    """Weights as Flower sends them: a NumPy array for each leaf, named by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return ArrayRecord(
        {jax.tree_util.keystr(path): FlowerArray(np.asarray(leaf)) for path, leaf in leaves}
    )


def from_record(record: ArrayRecord, like: Params) -> Params:
    """Weights out of a record, in the structure of `like`, which gives shapes and dtypes.

    Raises:
        ValueError: Other names, shapes or dtypes, or numbers that are not finite.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    if set(record) != set(names):
        raise ValueError(f"`record` must hold the arrays {sorted(names)}, got {sorted(record)}.")
    found = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array, wanted = record[name].numpy(), (tuple(leaf.shape), np.dtype(leaf.dtype))
        if (array.shape, array.dtype) != wanted:
            rule = f"must be {wanted[1]} {list(wanted[0])}"
            raise ValueError(f"`{name}` {rule}, got {array.dtype} {list(array.shape)}.")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
        found.append(array)
    return jax.tree_util.tree_unflatten(structure, found)


class PUF(Strategy):
    """Federated averaging that forgets clients in one of its rounds, by negated pseudo-gradients.

    Before the unlearning round all clients train; in it the forgotten ones do, and the others where
    their updates count (PUF-Regular); after it all but the forgotten ones. It works with any
    `ClientApp` that answers as for Flower's own FedAvg: weights, and "num-examples".

    What a client sends is checked: it is left out if it failed, is late, or sent other arrays, NaN
    or no size. Where the update of a client that is to be forgotten is missing, or no update is
    left, the round raises a `FederationError` and `params` stay.

    Attributes:
        params: The weights after the last good round; None before the first.
        refused: `(round, node, reason)` of every update that was left out.
    """

    def __init__(
        self,
        like: Params,
        forget: Collection[int],
        weights: Weights,
        *,
        unlearn_round: int = 1,
        part_of: Collection[int] = (),
    ):
        """Sets up a federation that forgets.

        Args:
            like: Weights of the model, or their shapes.
            forget: Node ids of the clients that are forgotten as a whole.
            weights: Of the updates in the unlearning round: `partial(puf_special, rate=2.0)`.
            unlearn_round: The round that forgets, counted from 1.
            part_of: Node ids of clients that forget a part of their data and stay. In the
                unlearning round they get a "train.unlearn" message besides the other one.

        Raises:
            ValueError: Nobody is to be forgotten, or a round below one.
        """
        check_count("unlearn_round", unlearn_round)
        if not forget and not part_of:
            raise ValueError("`forget` or `part_of` must name a node, got none.")
        self.like, self.weights, self.unlearn_round = like, weights, unlearn_round
        self.forget, self.part_of = frozenset(forget), frozenset(part_of)
        self.params: Params | None = None
        self.refused: list[tuple[int, int, str]] = []
        self._asked: set[tuple[int, str]] = set()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round, one for each client that has something to do in it."""
        self.params = from_record(arrays, self.like)
        nodes, unlearning = set(grid.get_node_ids()), server_round == self.unlearn_round
        if unlearning and (absent := (self.forget | self.part_of) - nodes):
            raise FederationError(f"round {server_round}: {sorted(absent)} to forget are not there")
        if server_round > self.unlearn_round:
            nodes -= self.forget
        elif unlearning and not self._others_count():
            nodes = set(self.forget)
        self._asked = {(node, TRAIN) for node in nodes}
        if unlearning:
            self._asked |= {(node, UNLEARN) for node in self.part_of}
        told = ConfigRecord({**config, ROUND: server_round})
        return [
            Message(
                RecordDict({"arrays": arrays, "config": told}),
                node,
                kind,
                group_id=str(server_round),
            )
            for node, kind in sorted(self._asked)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """The next weights out of what the clients sent.

        Raises:
            FederationError: A client that is to be forgotten did not send a usable update, no
                update is left, or the sum is not finite.
        """
        found, missing = self._read(server_round, replies)
        asked = sorted(self._asked)
        gone = [self._is_gone(*each) for each in asked]
        if server_round == self.unlearn_round:
            for each, leaves in zip(asked, gone, strict=True):
                if leaves and each in missing:
                    raise FederationError(
                        f"round {server_round}: client {each[0]}, which is to be forgotten, sent "
                        f"no usable update ({missing[each]}); the weights stay, ask again"
                    )
        if not found:
            told = "; ".join(f"client {node}: {why}" for (node, _), why in missing.items())
            raise FederationError(f"round {server_round}: no usable update ({told})")
        kept = [each for each in asked if each in found]
        sizes = np.array([found[each][1] for each in kept])
        if server_round == self.unlearn_round:
            weights = self.weights(sizes, np.array([self._is_gone(*each) for each in kept]))
        else:
            weights = fedavg(sizes)
        updates = jax.tree.map(
            lambda leaf, *sent: jnp.stack([each - leaf for each in sent]),
            self.params,
            *(found[each][0] for each in kept),
        )
        params = aggregate(self.params, updates, jnp.asarray(weights))
        if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params)):
            raise FederationError(f"round {server_round}: the sum of the updates is not finite")
        self.params = params
        return to_record(params), MetricRecord({SIZE: int(sizes.sum())})

    def rounds(
        self,
        grid: Grid,
        params: Params,
        *,
        rounds: int,
        start: int = 0,
        timeout: float = 3600.0,
        config: ConfigRecord | None = None,
    ) -> Iterator[tuple[int, Params]]:
        """Yields `(round, params)` after each of the rounds `start + 1 .. rounds`.

        Whoever iterates keeps the weights and stops where the model has recovered, which Flower's
        own loop, `start`, cannot; that is to be asked only after `unlearn_round`.

        Args:
            grid: The clients, as Flower's `ServerApp` is given them.
            params: The weights before the first round.
            rounds: The last round.
            start: Rounds that the weights have behind them.
            timeout: Seconds that a round waits for its clients.
            config: What clients get with every message.
        """
        config = ConfigRecord() if config is None else config
        for number in range(start + 1, rounds + 1):
            messages = self.configure_train(number, to_record(params), config, grid)
            replies = grid.send_and_receive(messages, timeout=timeout)
            self.aggregate_train(number, replies)
            params = self.params
            yield number, params

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: clients are not asked to evaluate."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing."""
        del server_round, replies
        return None

    def summary(self) -> None:
        """Logs who is forgotten, and when."""
        names = sorted(self.forget | self.part_of)
        log.info("PUF: forgets %s in round %s", names, self.unlearn_round)

    def _others_count(self):
        return bool(self.part_of) or self.weights(np.ones(2), np.array([True, False]))[1] != 0

    def _is_gone(self, node, kind):
        return node in self.forget or kind == UNLEARN

    def _read(self, server_round, replies):
        """Usable updates as `(weights, size)` by node and type, and why others are missing."""
        found, missing = {}, dict.fromkeys(sorted(self._asked), "no answer in time")
        for reply in replies:
            each = (reply.metadata.src_node_id, reply.metadata.message_type)
            try:
                if each not in missing:
                    raise ValueError("nobody asked for it")
                found[each] = _checked(reply, self.like)
                del missing[each]
            except ValueError as error:
                missing[each] = str(error)
        for (node, _), why in missing.items():
            self.refused.append((server_round, node, why))
            log.warning("round %s: client %s is left out: %s", server_round, node, why)
        return found, missing


def _checked(reply, like):
    if reply.has_error():
        raise ValueError(f"error {reply.error.code}: {str(reply.error.reason)[-200:]}")
    arrays, metrics = (
        list(getattr(reply.content, name).values()) for name in ("array_records", "metric_records")
    )
    if len(arrays) != 1 or len(metrics) != 1:
        raise ValueError(
            f"one record of arrays and one of metrics, got {len(arrays)}, {len(metrics)}"
        )
    size = metrics[0].get(SIZE)
    if not isinstance(size, int | float) or not np.isfinite(size) or size < 1:
        raise ValueError(f"`{SIZE}` must be at least 1, got {size!r}.")
    return from_record(arrays[0], like), size


def nodes_by_index(grid: Grid, *, timeout: float = 60.0) -> dict[int, int]:
    """Which node holds which place in the federation: its "partition-id", asked by a query.

    Only clients made by `client_app` answer.
    """
    messages = [Message(RecordDict(), node, QUERY) for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages, timeout=timeout)
    found: dict[int, int] = {}
    for reply in replies:
        if reply.has_content():
            place: Any = reply.content["who"][INDEX]  # a number, as `client_app` sends it
            found[int(place)] = reply.metadata.src_node_id
    return found


def client_app(
    learner: Any,
    like: Params,
    load: Callable[[Context], tuple[Batch, Batch | None]],
    *,
    key: Array,
    epochs: int = 1,
    batch_size: int = 32,
) -> ClientApp:
    """The app of a client that trains any `apply_fn` on its own data, as `local_updates` does.

    Client k, the "partition-id" of its node, trains with the key `fold_in(key, k)`, so that a
    simulation with `client_keys(key, n)` gives the same weights where every client holds at least
    a batch. It sends its weights and its number of examples, and nothing else.

    Args:
        learner: As in `local_updates`; `train.Supervised(apply_fn, optax.sgd(0.1))`.
        like: Weights of the model, or their shapes.
        load: `load(context) -> (data, forget)`: what the client trains on, and what it forgets if
            it is asked to forget a part; None if it never is.
        key: Of the federation.
        epochs: Local epochs a round.
        batch_size: Examples a step.
    """
    check_key(key)
    app = ClientApp()

    def answer(message, context, part):
        if (data := load(context)[part]) is None:
            raise ValueError("`load` must give what is to be forgotten, got None.")
        params = from_record(message.content["arrays"], like)
        updates, _ = local_updates(
            learner,
            params,
            stack(data, [np.arange(len(data))]),
            jax.random.fold_in(key, int(context.node_config[INDEX]))[None],
            int(message.content["config"][ROUND]),
            epochs=epochs,
            batch_size=batch_size,
        )
        trained = jax.tree.map(lambda leaf, update: leaf + update[0], params, updates)
        records = {"arrays": to_record(trained), "metrics": MetricRecord({SIZE: len(data)})}
        return Message(RecordDict(records), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, 0)

    @app.train("unlearn")
    def unlearn(message: Message, context: Context) -> Message:
        return answer(message, context, 1)

    @app.query()
    def who(message: Message, context: Context) -> Message:
        place = MetricRecord({INDEX: int(context.node_config[INDEX])})
        return Message(RecordDict({"who": place}), reply_to=message)

    return app
