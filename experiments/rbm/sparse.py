"""Networks whose smallest weights are cut, and which stay sparse under any training."""

import functools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from famr_jax import loop, mesh, train
from famr_jax.cli.bench import Bench
from famr_jax.store import fingerprint
from famr_jax.types import Batch, Params


@jax.jit
def prune(params: Params, sparsity: float | jax.Array) -> Params:
    """The weights with the smallest share of all entries of matrices at 0.

    Biases and norms, which have one axis, stay; a share of 0 cuts nothing.
    """
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    sizes = jnp.sort(jnp.concatenate([jnp.abs(leaf).ravel() for leaf in matrices]))
    count = jnp.round(sparsity * sizes.size).astype(int)
    least = jnp.where(count > 0, sizes[jnp.maximum(count - 1, 0)], -1.0)
    return jax.tree.map(
        lambda leaf: jnp.where(jnp.abs(leaf) <= least, 0, leaf) if leaf.ndim > 1 else leaf, params
    )


def density(params: Params) -> float:
    """Share of the entries of matrices that are not 0."""
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return sum(int((leaf != 0).sum()) for leaf in matrices) / sum(leaf.size for leaf in matrices)


@functools.cache  # jit knows an optimizer by identity
def keep_zeros(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, which never moves an entry of a matrix that is exactly 0.

    A dense network has no such entry once it is trained, so that its steps are the optimizer's own.
    """

    def update(updates, state, params):
        updates, state = optimizer.update(updates, state, params)
        held = jax.tree.map(
            lambda step, leaf: jnp.where(leaf == 0, 0, step) if leaf.ndim > 1 else step,
            updates,
            params,
        )
        return held, state

    return optax.GradientTransformation(optimizer.init, update)


@functools.cache
def _learner(apply_fn, recipe, size):
    learner = recipe.learner(apply_fn, size)
    return replace(learner, optimizer=keep_zeros(learner.optimizer))


def finetuned(
    bench: Bench,
    name: str,
    params: Params,
    rows: Batch,
    *,
    recipe: train.Recipe,
    key: jax.Array,
    config: dict[str, Any],
) -> Params:
    """Weights trained on from `params`, what is cut at 0, kept in the store.

    Args:
        bench: Holds the model and the store.
        name: For progress, seconds and the store.
        params: The start, perhaps from `prune`.
        rows: The training images.
        recipe: How to train.
        key: PRNG key.
        config: What determines `rows`, for the store.
    """
    learner = _learner(bench.model.apply, recipe, len(rows))
    known = config | {"start": fingerprint(params), "epochs": recipe.epochs, "lr": recipe.lr}
    known |= {"model": bench.model.name, "key": jax.random.key_data(key).tolist()}
    begin = partial(train.begin, learner, None, key, params)

    def advance(state, start):
        return loop.run_epochs(
            learner,
            mesh.split(state),
            rows,
            size=len(rows),
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            key=key,
            start=start,
        )

    sources = (*bench.sources, Path(__file__))
    return bench.store.fit(
        name, known, begin, advance, epochs=recipe.epochs, sources=sources
    ).params
