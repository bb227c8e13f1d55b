"""The curvature store of the main job (`--store k`): kept once, told for each forget set."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from famr_jax import curvature
from famr_jax.cli.bench import Bench
from famr_jax.curvature.gradients import mean_gradient
from famr_jax.forget import ForgetSet
from famr_jax.losses import cross_entropy
from famr_jax.models import Model
from famr_jax.store import fingerprint
from famr_jax.types import Params

FILE = "store.npz"
"""Its name in the directory of results; `curvature.load` reads it."""
BATCH = 256


def stored(bench: Bench, cases: Sequence[ForgetSet], original: Params, k: int) -> dict[str, Any]:
    """Keeps the Fisher information of all training data in k directions, and says what it is worth.

    Interrupted, it goes on from the cache. For each forget set it says which share of its mean
    gradient's norm lies outside, of which a removal from the store knows nothing.
    """
    config = {"data": bench.dataset.fingerprint, "weights": fingerprint(original), "k": k}
    cache = bench.store.directory("curvature", config, epochs=0, sources=("famr_jax.curvature",))
    outputs = partial(_outputs, bench.model)
    space = curvature.keep(
        curvature.fisher(outputs, original, bench.train, batch_size=BATCH),
        original,
        k=min(k, sum(leaf.size for leaf in jax.tree.leaves(original))),
        size=len(bench.train),
        key=bench.keys.probes,
        path=cache / FILE,
        made_by=config,
    )
    curvature.save(bench.out / FILE, space)
    losses = partial(_losses, bench.model)
    slope = jax.jit(partial(mean_gradient, losses, batch_size=BATCH))
    outside = {
        gone.name: float(space.outside(slope(original, bench.in_memory(gone.mask))))
        for gone in cases
    }
    shares = ", ".join(f"{name} {share:.0%}" for name, share in outside.items())
    print(f"curvature store: {space.cost}; of the forget gradients outside: {shares}")
    k, dim = space.rows.shape
    told = {"directions": k, "dim": dim, "products": space.num_products}
    told["bytes"] = space.rows.nbytes + space.matrix.nbytes
    return told | {"outside": [{"forget": n, "share": share} for n, share in outside.items()]}


def _outputs(model: Model, params, batch):
    return model.apply(params, batch.x)


def _losses(model: Model, params, batch):
    return cross_entropy(model.apply(params, batch.x), batch.labels)
