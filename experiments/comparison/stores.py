"""Curvature stores of trained models, for methods that work from one."""

from functools import partial

import jax

from famr_jax import curvature
from famr_jax.cli.bench import Bench
from famr_jax.curvature import Eigenspace
from famr_jax.methods.gauss_newton_removal import Model
from famr_jax.store import fingerprint
from famr_jax.types import Params


def stored(bench: Bench, name: str, original: Params, *, rank: int) -> Eigenspace:
    """The curvature store of an original, made once; its seconds are kept with it.

    Args:
        bench: Data, model and store.
        name: For progress and seconds.
        original: The trained weights.
        rank: Directions, of no more weights than there are.
    """
    config = {"data": bench.dataset.fingerprint, "weights": fingerprint(original), "k": rank}
    config["size"] = len(bench.train)
    home = bench.store.directory("curvature", config, epochs=0, sources=("famr_jax.curvature",))
    dim = sum(leaf.size for leaf in jax.tree.leaves(original))
    make = partial(
        curvature.keep,
        Model(bench.model.apply).curvature(original, bench.train),
        original,
        k=min(rank, dim),
        size=len(bench.train),
        key=bench.keys.probes,
        path=home / "compared.npz",
        made_by=config,
        tol=1e-2,
    )
    bench.store.remember(
        name, config, lambda: {"products": make().num_products}, sources=("famr_jax.curvature",)
    )
    return make()
