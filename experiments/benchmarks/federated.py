"""How long does a round of federated averaging take with 100 clients in one program?

    python -m experiments.benchmarks.federated

The digits, shared out over 10 and over 100 clients of unequal sizes, one local epoch a round: all
clients as one `vmap`ped program, beside the same clients one after the other, each by its own call
of the same function. Timed in turns, medians; processor time is over all threads. Recorded on a
very busy machine of two cores, so that the processor's times say more. Expect:

    10 clients of 93 to 198 images
      one program           12.9 ms, 4.8 ms of processor
      one after the other   31.0 ms, 12.6 ms of processor
    100 clients of 4 to 30 images
      one program           12.2 ms, 8.4 ms of processor
      one after the other   57.3 ms, 46.2 ms of processor
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.ranges import Some
from experiments.benchmarks.timing import interleave, only_cpu, ready, write
from famr_jax import data, federated, models
from famr_jax.cli.flags import Count, Positive, check
from famr_jax.cli.run import main
from famr_jax.federated import Clients
from famr_jax.train import Supervised
from famr_jax.types import Batch

TOGETHER, ALONE = "one program", "one after the other"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    clients: Annotated[tuple[Count, ...], Some()] = (10, 100)
    """Numbers of clients."""
    alpha: Positive = 1.0
    """Of the Dirichlet law that shares the labels out."""
    model: str = "mlp_64"
    """As `models.create` names it."""
    batch_size: Count = 4
    """Images a step; a client holds at least as many."""
    repeats: Count = 20
    """Rounds timed of each way."""
    out: Path = Path("experiments/results/benchmark-federated.json")
    """The JSON to write."""


SMALL = Flags(clients=(2, 5), model="mlp_8", batch_size=16, repeats=2)


def run(flags: Flags) -> None:
    """Times rounds of every number of clients and writes the JSON."""
    started = time.perf_counter()
    check(flags)
    only_cpu()
    dataset = data.load("digits")
    results = {str(count): measure(dataset, flags, count) for count in flags.clients}
    content = write(
        "federated",
        flags,
        results,
        seconds={"run": time.perf_counter() - started, "compile": 0.0},
        environment={},
        versions={},
        path=flags.out,
    )
    print("\n".join(headline(content)))


def measure(dataset: data.Dataset, flags: Flags, count: int) -> dict[str, Any]:
    """Milliseconds a round with so many clients, both ways, and how far their weights differ."""
    model = models.create(flags.model, num_classes=10, image_shape=dataset.image_shape)
    parts = federated.dirichlet(
        dataset.train.labels, count, alpha=flags.alpha, seed=0, least=flags.batch_size
    )
    clients = federated.stack(dataset.train.batch(), parts)
    keys = federated.client_keys(jax.random.key(0), count)
    params = jax.jit(model.init)(jax.random.key(1))
    weights = federated.fedavg(np.asarray(clients.sizes))
    learner = Supervised(model.apply, optax.sgd(0.1))
    update = partial(federated.local_updates, learner, params, batch_size=flags.batch_size)
    combine = jax.jit(federated.aggregate)
    singles = [_only(clients, k) for k in range(count)]

    def together():
        updates, _ = update(clients, keys, 1)
        return combine(params, updates, jnp.asarray(weights))

    def alone():
        updates = [update(one, keys[k : k + 1], 1)[0] for k, one in enumerate(singles)]
        stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *updates)
        return combine(params, stacked, jnp.asarray(weights))

    one, other = together(), alone()
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, other)
    difference = max(jax.tree.leaves(apart))
    if difference > TOLERANCE:
        raise ValueError(f"both ways must agree to {TOLERANCE:g}, got {difference:g}.")
    ways = {TOGETHER: partial(ready, together), ALONE: partial(ready, alone)}
    return {
        "images": int(clients.sizes.sum()),
        "sizes": {"least": int(clients.sizes.min()), "most": int(clients.sizes.max())},
        "difference": difference,
        "round": interleave(ways, flags.repeats),
    }


def _only(clients: Clients, k: int) -> Clients:
    """One client, padded as among all of them: one compilation serves every client."""
    x, labels = clients.data.x[k : k + 1], clients.data.labels[k : k + 1]
    return Clients(Batch(x, labels), clients.sizes[k : k + 1])


def headline(content: Mapping[str, Any]) -> list[str]:
    """Milliseconds a round, wall and processor, of each number of clients and each way."""
    lines = []
    for count, found in content["results"].items():
        sizes = found["sizes"]
        lines.append(f"{count} clients of {sizes['least']} to {sizes['most']} images")
        for name, clocks in found["round"].items():
            wall, process = (clocks[c]["median"] for c in ("wall_ms", "process_ms"))
            lines.append(f"  {name:<20}{wall:6.1f} ms, {process:.1f} ms of processor")
    return lines


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
