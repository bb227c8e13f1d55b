"""The federations of an experiment: who holds what, the original, and models retrained without."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import federated, losses, metrics
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.data import Dataset, Split
from famr_jax.evaluation import Evaluator, Measure, Part, View, named, parts
from famr_jax.federated import Clients, Server
from famr_jax.forget import ForgetSet
from famr_jax.train import Supervised, begin
from famr_jax.types import Batch, Params

BACKDOOR, TARGET = "backdoor", 0
"""The split with a poisoned client, and the class that its trigger stands for."""
POISONED = 0.5
"""Share of the poisoned client's images that has the trigger."""
LEAST = 10
"""Examples that every client has at least."""


def subsample(dataset: Dataset, per_class: int | None, seed: int) -> Dataset:
    """The data set with so many random training images of each class, or all of them for None."""
    if per_class is None:
        return dataset
    labels, rng = dataset.train.labels, np.random.default_rng(seed)
    kept = [
        rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(dataset.num_classes)
    ]
    rows = np.sort(np.concatenate(kept))
    train = Split(dataset.train.pixels(rows), labels[rows])
    return Dataset(dataset.name, train, dataset.test, dataset.class_names, dataset.mirrored)


def partition(
    split: str, labels: np.ndarray, num_clients: int, seed: int
) -> federated.clients.Parts:
    """The rows of each client: `iid`, `backdoor` (the same), or `dirichlet:ALPHA`.

    Raises:
        ValueError: Another word.
    """
    kind, _, alpha = split.partition(":")
    if kind == "dirichlet" and alpha:
        return federated.dirichlet(labels, num_clients, alpha=float(alpha), seed=seed, least=LEAST)
    if split not in ("iid", BACKDOOR):
        raise ValueError(f"`splits` must be iid, {BACKDOOR} or dirichlet:ALPHA, got {split!r}.")
    return federated.iid(len(labels), num_clients, seed=seed)


def triggered(batch: Batch, rows: np.ndarray | None = None) -> Batch:
    """Images with a white patch in the corner, labelled as the target: all, or some rows."""
    mask = np.ones(len(batch), bool) if rows is None else np.isin(np.arange(len(batch)), rows)
    side = max(2, batch.x.shape[1] // 8)
    patched = batch.x.at[:, :side, :side, :].set(1.0)
    chosen = jnp.asarray(mask)
    x = jnp.where(chosen[:, None, None, None], patched, batch.x)
    return Batch(x, jnp.where(chosen, TARGET, batch.labels))


def yeom(view: View, oracles: Any) -> float:
    """Share of the forget set whose loss is at most the mean loss of what is retained."""
    del oracles
    threshold = view.mean(losses.cross_entropy, "retain")
    return float(np.mean(view.each(losses.cross_entropy, "forget") <= threshold))


def backdoor(view: View, oracles: Any) -> float:
    """Share of test images with the trigger, of other classes, that is given to the target."""
    del oracles
    return view.mean(metrics.hits, "triggered")


MEASURES = (
    *named("for_acc", "ret_acc", "test_acc", "kl_forget", "kl_test", "svc_attack"),
    Measure("yeom", "share", "forget", yeom, "Yeom attack", "called members by their loss"),
    Measure("backdoor", "share", "triggered", backdoor, "Backdoor", "trigger's success"),
)

QUICK = tuple(m for m in MEASURES if m.name not in ("kl_test", "svc_attack", "yeom"))
"""What is taken where only the state right after the unlearning is of interest."""


class Federation(NamedTuple):
    """One split of one seed, and what was trained on it for one forgotten client.

    Attributes:
        config: All that determines the case but for the code.
        client: The client that is forgotten.
        train: All images as the clients hold them.
        rows: Of each client.
        clients: The same, stacked.
        keys: A key of each client for rounds after training.
        key: Of whatever else the forgotten client draws.
        fresh: The weights that training started from.
        original: The trained weights.
        norms: Of the updates of each round of training, `[clients, leaves]`.
        oracles: Retrained without the client.
        curves: Test accuracy of each oracle after each of its rounds.
    """

    config: dict[str, Any]
    client: int
    train: Batch
    rows: list[np.ndarray]
    clients: Clients
    keys: jax.Array
    key: jax.Array
    fresh: Params
    original: Params
    norms: list[np.ndarray]
    oracles: list[Params]
    curves: list[list[float]]

    @property
    def sizes(self) -> np.ndarray:
        """Examples of each client."""
        return np.array([len(rows) for rows in self.rows])

    @property
    def gone(self) -> np.ndarray:
        """Who is forgotten, `[clients]`."""
        return np.arange(len(self.rows)) == self.client

    @property
    def forget(self) -> Batch:
        """What the forgotten client holds."""
        return self.train[self.rows[self.client]]

    def evaluator(self, bench: Bench, measures: Sequence[Measure] = MEASURES) -> Evaluator:
        """The measures of any weights, beside the original and the oracles."""
        mask = np.isin(np.arange(len(self.train)), self.rows[self.client])
        gone = ForgetSet(f"client:{self.client}", mask, (), 0)
        others = bench.test[np.flatnonzero(np.asarray(bench.test.labels) != TARGET)]
        sets = parts(self.train, bench.test, gone)
        if not np.array_equal(self.train.labels, bench.train.labels):
            sets |= {"triggered": Part(triggered(others))}
        return Evaluator(
            bench.model,
            self.train,
            bench.test,
            gone,
            self.original,
            self.oracles,
            measures=measures,
            sets=sets,
        )


def learner_of(flags: Any, bench: Bench) -> Supervised:
    """What each client does in a round: SGD at a constant rate, without momentum or decay."""
    return Supervised(bench.model.apply, make_optimizer("sgd", flags.lr))


def federations(flags: Any, bench: Bench, split: str, seed: int) -> Iterator[Federation]:
    """Trains a split of a seed, and retrains it without each client in turn."""
    labels = np.asarray(bench.train.labels)
    rows = partition(split, labels, flags.clients, seed)
    roots = jax.random.split(jax.random.key(seed), 4)
    first, again, recovery, extra = roots
    sizes, original = np.array([len(each) for each in rows]), None
    for client in range(flags.forgotten or flags.clients):
        gone, train = np.arange(len(rows)) == client, bench.train
        if split == BACKDOOR:
            train = triggered(train, rows[client][: round(POISONED * sizes[client])])
        clients = federated.stack(train, rows)
        config = {
            "data": bench.dataset.fingerprint,
            "split": split,
            "poisoned": client if split == BACKDOOR else None,
            **{name: getattr(flags, name) for name in ("clients", "rounds", "lr", "local_epochs")},
            "model": bench.model.name,
            "batch_size": bench.flags.batch_size,
            "partition": seed,
        }
        if original is None or split == BACKDOOR:
            weights, name = federated.fedavg(sizes), f"originals {split}"
            (original,) = _fit(flags, bench, name, clients, weights, first[None], config)
        members = jax.random.split(jax.random.fold_in(again, client), bench.flags.oracles)
        oracles = _fit(
            flags,
            bench,
            f"retrained {split}",
            clients,
            federated.fedavg(sizes, ~gone),
            members,
            config | {"without": client},
        )
        yield Federation(
            config | {"seed": seed, "client": client, "oracles": bench.flags.oracles},
            client,
            train,
            rows,
            clients,
            federated.client_keys(recovery, len(rows)),
            jax.random.fold_in(extra, client),
            _fresh(flags, bench, first),
            original.params,
            [np.array(entry["norms"]) for entry in original.log],
            [oracle.params for oracle in oracles],
            [[entry["test_acc"] for entry in oracle.log] for oracle in oracles],
        )


def _fresh(flags, bench, key):
    return begin(learner_of(flags, bench), bench.model.init, jax.random.split(key)[0]).params


def _fit(flags, bench, name, clients, weights, members, config):
    """FedAvg from fresh weights, for each key of `members`, kept in the store."""
    learner = learner_of(flags, bench)

    def advance(member, state, start):
        ran = federated.run_rounds(
            learner,
            state.params,
            clients,
            weights,
            federated.client_keys(jax.random.split(members[member])[1], len(clients)),
            rounds=flags.rounds,
            start=start,
            epochs=flags.local_epochs,
            batch_size=bench.flags.batch_size,
        )
        for number, server, info in ran:
            logits = metrics.predict(bench.model.apply, server.params, bench.test.x)
            accuracy = metrics.accuracy(logits, bench.test.labels)
            kept = {name: info[name] for name in ("norms", "finite")}
            yield number, server, kept | {"test_acc": accuracy}

    booked = dict(bench.clock.phases.get(name, {}))
    found = bench.store.fit_members(
        name,
        [config | {"weights": list(weights), "member": i} for i in range(len(members))],
        lambda member: Server(_fresh(flags, bench, members[member])),
        advance,
        epochs=flags.rounds,
        width=1,
        sources=(*bench.sources, "famr_jax.federated.rounds", Path(__file__)),
    )
    for kind, seconds in booked.items():  # a phase is here the sum over seeds and clients
        bench.clock.phases[name][kind] += seconds
    return found
