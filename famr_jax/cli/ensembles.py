"""Ensembles of a bench whose members have examples of their own, each kept in the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import loop, mesh, train, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.store import Fitted, fingerprint
from famr_jax.types import Params, Unlearner


def trained(bench: Bench, name: str, masks: np.ndarray, *, key: jax.Array) -> list[Fitted]:
    """A model for each mask, trained on its examples; those that are kept are read back.

    Each starts from weights of its own, or all from the bench's `start`. A member is, bit for bit,
    that of `train.run` with the same masks and the keys `jax.random.split(key, members)`.

    Args:
        bench: Data, model, recipe and store.
        name: For progress, seconds and the store.
        masks: The examples of each member, `[members, n]`.
        key: PRNG key of all of them.
    """
    masks = loop.check_masks("masks", masks, len(masks), len(bench.train))
    init_keys, keys = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(key, len(masks)))
    recipe, model = bench.recipe, bench.model

    def learner(size):
        return recipe.learner(model.apply, size, model.batch_norm)

    def begin(rows):
        init = train.init_of(model)
        return train.begin(
            learner(_size(masks, rows)), init, init_keys[rows], bench.start and bench.start.params
        )

    def advance(rows, state, start):
        size = _size(masks, rows)
        return loop.run_epochs(
            learner(size),
            mesh.split(state),
            loop.subsets(bench.train, masks, rows),
            size=size,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            key=keys[rows],
            start=start,
        )

    return bench.store.fit_members(
        name,
        [bench.config(mask) | {"member": i, **_of(key)} for i, mask in enumerate(masks)],
        begin,
        advance,
        epochs=recipe.epochs,
        width=loop.member_width(),
        sizes=masks.sum(1).tolist(),
        sources=bench.sources,
    )


def unlearned(
    bench: Bench,
    name: str,
    method: Unlearner,
    originals: Sequence[Params],
    forget: np.ndarray,
    retain: np.ndarray | None = None,
    *,
    config: dict[str, Any],
    sources: Sequence[str | Path],
    epochs: int,
    key: jax.Array,
) -> list[Fitted]:
    """Each original after it unlearned its own forget set; those that are kept are read back.

    A member is, bit for bit, that of `unlearn.run_each` with the keys
    `jax.random.split(key, members)`.

    Args:
        bench: Data, batch size and store.
        name: For progress, seconds and the store.
        method: The method.
        originals: The trained weights of each member.
        forget: What each forgets, `[members, n]`.
        retain: What each retains, likewise, for methods that use it.
        config: What determines the method: its name and numbers.
        sources: The modules of the method, or its file.
        epochs: Epochs of unlearning.
        key: PRNG key of all of them.
    """
    masks = [("forget", forget)] + ([] if retain is None else [("retain", retain)])
    masks = [loop.check_masks(name, mask, len(originals), len(bench.train)) for name, mask in masks]
    keys, batch_size = jax.random.split(key, len(originals)), bench.flags.batch_size

    def sets(rows):
        return [loop.subsets(bench.train, mask, rows) for mask in masks]

    def begin(rows):
        chosen = [originals[i] for i in np.atleast_1d(rows)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chosen)
        params = chosen[0] if np.ndim(rows) == 0 else stacked
        return unlearn.begin(method, params, *sets(rows), key=keys[rows])

    def advance(rows, state, start):
        return unlearn.run_epochs(
            method,
            mesh.split(state),
            *sets(rows),
            epochs=epochs,
            batch_size=batch_size,
            key=keys[rows],
            start=start,
        )

    configs = [
        bench.config(masks[0][i])
        | {"member": i, **_of(key), "original": fingerprint(params), "unlearn": config}
        | {"retain": [np.packbits(mask[i]).tobytes().hex() for mask in masks[1:]]}
        for i, params in enumerate(originals)
    ]
    return bench.store.fit_members(
        name,
        configs,
        begin,
        advance,
        epochs=epochs,
        width=loop.member_width(),
        sizes=np.stack([mask.sum(1) for mask in masks], axis=1).tolist(),
        sources=(*bench.sources, "famr_jax.unlearn", *sources),
    )


def _of(key):
    return {"key": jax.random.key_data(key).tolist()}


def _size(masks, rows):
    return int(masks[np.atleast_1d(rows)[0]].sum())
