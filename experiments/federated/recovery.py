"""Unlearning rounds of every method, and the rounds of recovery behind them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.federated.federation import Federation, learner_of
from famr_jax import federated, metrics
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import make_optimizer
from famr_jax.methods import BY_NAME
from famr_jax.types import Params

NATURAL, ASCENT, REPLAY = "natural", "projected ascent", "calibrated replay"
PUF = ("PUF-Special", "PUF-Regular")
AT_CLIENT = tuple(name for name in ("famr", "delete") if name in BY_NAME)
"""Methods of the library that the forgotten client runs for one round."""
METHODS = (*PUF, NATURAL, ASCENT, REPLAY, *AT_CLIENT)
RULES = ("retrained", "own")
"""When recovery stops: test accuracy is that of the retrained models; or accuracy on the remaining
clients' own data is back at the original's, for which the server needs neither."""


class Recovered(NamedTuple):
    """A method's way back.

    Attributes:
        path: For each round from the unlearning round on, accuracy by name of set.
        rounds: Rounds in all until each rule was met, the unlearning round included; else None.
        unlearned: The weights after the unlearning round.
        params: The weights where each rule was met, or the last ones.
    """

    path: list[dict[str, float]]
    rounds: dict[str, int | None]
    unlearned: Params
    params: dict[str, Params]


def unlearn(name: str, federation: Federation, flags: Any, bench: Bench) -> tuple[Params, int]:
    """The weights after a method's unlearning, and how many rounds it took."""
    learner, params, gone = learner_of(flags, bench), federation.original, federation.gone
    sizes, client = federation.sizes, federation.client
    if name == REPLAY:
        *_, (rounds, server, _) = federated.calibrated_replay(
            learner,
            federation.fresh,
            federation.clients,
            federated.fedavg(sizes, ~gone),
            federation.keys,
            federation.norms,
            interval=flags.replay_interval,
            epochs=flags.local_epochs,
            batch_size=bench.flags.batch_size,
        )
        return server.params, rounds
    if name in AT_CLIENT:
        method = BY_NAME[name](bench.model.apply, optimizer=make_optimizer("sgd", flags.client_lr))
        update = _at_client(method, params, federation, flags, bench)
        return _add(params, update), 1
    updates, _ = federated.local_updates(
        learner,
        params,
        federation.clients,
        federation.keys,
        1,
        epochs=flags.local_epochs,
        batch_size=bench.flags.batch_size,
    )
    if name == ASCENT:
        update = jax.tree.map(lambda leaf: leaf[client], updates)
        share = float(sizes[client] / sizes.sum())
        reference = federated.without_client(params, update, share=share)
        distance = float(optax.tree.norm(optax.tree.sub(reference, federation.fresh)))
        method = federated.projected_ascent(
            bench.model.apply,
            optimizer=make_optimizer("sgd", flags.ascent_lr),
            radius=distance / 3,
        )
        return _add(reference, _at_client(method, reference, federation, flags, bench)), 1
    weights = {
        NATURAL: federated.fedavg(sizes, ~gone),
        "PUF-Special": federated.puf_special(sizes, gone, rate=flags.rate),
        "PUF-Regular": federated.puf_regular(sizes, gone, rate=flags.rate),
    }[name]
    return federated.aggregate(params, updates, jnp.asarray(weights)), 1


def _at_client(method, params, federation, flags, bench):
    """The update of the forgotten client, which runs a method on all that it holds."""
    update, _ = federated.local_updates(
        federated.AtClient(method),
        params,
        jax.tree.map(lambda leaf: leaf[federation.client][None], federation.clients),
        federation.key[None],
        1,
        epochs=flags.client_epochs,
        batch_size=bench.flags.batch_size,
    )
    return update


def _add(params, update):
    return federated.aggregate(params, update, jnp.ones(1))


def recover(
    params: Params,
    spent: int,
    federation: Federation,
    flags: Any,
    bench: Bench,
    targets: dict[str, float],
) -> Recovered:
    """Ordinary rounds of the remaining clients until every rule is met, checked before each round.

    Args:
        params: The weights after the unlearning.
        spent: Rounds that it took.
        federation: Who holds what.
        flags: Of the experiment.
        bench: Data and model.
        targets: What each rule asks for: "retrained" of the test set, "own" of retained images.
    """
    path, number, unlearned, met, kept = [], spent, params, {}, {}
    while True:
        seen = accuracies(params, federation, bench)
        path.append(seen)
        for rule, of in zip(RULES, ("test_acc", "ret_acc"), strict=True):
            if rule not in met and seen[of] >= targets[rule]:
                met[rule], kept[rule] = number, params
        if len(met) == len(RULES) or number - spent >= flags.most_rounds:
            break
        params, number = go_on(params, federation, flags, bench, start=number), number + 1
    return Recovered(
        path,
        {rule: met.get(rule) for rule in RULES},
        unlearned,
        {rule: kept.get(rule, params) for rule in RULES},
    )


def go_on(
    params: Params,
    federation: Federation,
    flags: Any,
    bench: Bench,
    *,
    start: int,
    last: int | None = None,
) -> Params:
    """The weights after the rounds `start + 1 .. last` of the remaining clients; one by default."""
    ran = federated.run_rounds(
        learner_of(flags, bench),
        params,
        federation.clients,
        federated.fedavg(federation.sizes, ~federation.gone),
        federation.keys,
        rounds=start + 1 if last is None else last,
        start=start,
        epochs=flags.local_epochs,
        batch_size=bench.flags.batch_size,
    )
    for _, server, _ in ran:
        params = server.params
    return params


def accuracies(params: Params, federation: Federation, bench: Bench) -> dict[str, float]:
    """Accuracy on the forgotten client's images, on the others' and on the test set."""
    train, test = federation.train, bench.test
    right, tested = (
        np.asarray(_hits(metrics.predict(bench.model.apply, params, part.x), part.labels))
        for part in (train, test)
    )
    forgotten = np.isin(np.arange(len(train)), federation.rows[federation.client])
    return {
        "for_acc": float(right[forgotten].mean()),
        "ret_acc": float(right[~forgotten].mean()),
        "test_acc": float(tested.mean()),
    }


_hits = jax.jit(metrics.hits)
