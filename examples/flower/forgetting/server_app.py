"""The app of the server: averaging, one unlearning round, recovery."""

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import famr_jax as fj
from famr_jax import federated
from famr_jax.federated import flower
from forgetting import task

app = ServerApp()
VARIANTS = {"special": federated.puf_special, "regular": federated.puf_regular}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, forgets the client that the configuration names, and recovers."""
    config = context.run_config
    trained = int(config["rounds"])
    nodes = gather(grid, int(config["clients"]))
    forgotten, whole = {nodes[int(config["forget"])]}, not config["forget-part"]
    params = jax.jit(task.MODEL.init)(task.keys(int(config["seed"]))[0])
    strategy = flower.PUF(
        params,
        forgotten if whole else (),
        partial(VARIANTS[config["variant"]], rate=float(config["rate"])),
        unlearn_round=trained + 1,
        part_of=() if whole else forgotten,
    )
    strategy.summary()
    test, goal = fj.data.load("digits").test.batch(), 0.0
    last = trained + 1 + int(config["recovery-rounds"])
    ran = strategy.rounds(grid, params, rounds=last, timeout=float(config["timeout"]))
    for number, params in ran:
        save(Path(config["out"]), number, params)
        logits = fj.metrics.predict(task.MODEL.apply, params, test.x)
        accuracy = float(fj.metrics.accuracy(logits, test.labels))
        print(f"round {number}: test accuracy {accuracy:.3f}", flush=True)
        if number <= trained:
            goal = accuracy
        elif accuracy >= goal:  # recovered: as good as before the client left
            break


def gather(grid: Grid, count: int) -> dict[int, int]:
    """Waits until all clients are there: the node of each place."""
    while len(list(grid.get_node_ids())) < count:
        time.sleep(1)
    nodes = flower.nodes_by_index(grid)
    if sorted(nodes) != list(range(count)):
        raise flower.FederationError(f"clients 0 to {count - 1} are needed, got {sorted(nodes)}")
    return nodes


def save(out: Path, number: int, params: fj.types.Params) -> None:
    """Keeps the weights of a round, so that nothing is lost if a later one fails."""
    out.mkdir(parents=True, exist_ok=True)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(out / f"round-{number}.npz", **arrays)
