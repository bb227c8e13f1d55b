"""Federated averaging and federated unlearning, as pure functions of weights and clients.

`flower` runs the same rounds on a real federation and is imported by its own name: it needs the
extra `[flower]`.
"""

from famr_jax.federated.baselines import (
    AtClient,
    calibrated_replay,
    projected_ascent,
    without_client,
)
from famr_jax.federated.clients import Clients, dirichlet, given, iid, split_off, stack
from famr_jax.federated.rounds import (
    Server,
    aggregate,
    client_keys,
    fedavg,
    local_updates,
    puf_regular,
    puf_special,
    run_round,
    run_rounds,
    unlearning_update,
)

__all__ = [
    "AtClient",
    "Clients",
    "Server",
    "aggregate",
    "calibrated_replay",
    "client_keys",
    "dirichlet",
    "fedavg",
    "given",
    "iid",
    "local_updates",
    "projected_ascent",
    "puf_regular",
    "puf_special",
    "run_round",
    "run_rounds",
    "split_off",
    "stack",
    "unlearning_update",
    "without_client",
]
