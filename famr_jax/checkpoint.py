"""Checkpoints by orbax: a pytree, the epoch it belongs to, and the configuration that made it."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Checkpoint(NamedTuple):
    """What a directory held: the tree, its epoch, and the configuration saved with it."""

    tree: Any
    epoch: int
    config: dict[str, Any]


def save(directory: Path | str, tree: Any, *, epoch: int, config: Mapping[str, Any]) -> None:
    """Saves a pytree of arrays and its configuration; the directory keeps the newest two epochs.

    A checkpoint appears whole or not at all: a process killed while saving leaves the last epoch.

    Args:
        directory: Made if missing.
        tree: Any pytree of arrays: weights, or weights with an optimizer's state.
        epoch: Number of epochs behind it; an epoch that is already there is replaced.
        config: JSON-able; `load` compares entries of it.
    """
    import orbax.checkpoint as ocp

    items = {"tree": ocp.args.StandardSave(tree), "config": ocp.args.JsonSave(dict(config))}
    with _manager(directory, create=True) as manager:
        if epoch in manager.all_steps():
            manager.delete(epoch)
        manager.save(epoch, args=ocp.args.Composite(**items), force=True)


def load(
    directory: Path | str, like: Any, *, expect: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Loads the checkpoint of the highest epoch in a directory.

    Args:
        directory: What `save` wrote to.
        like: A pytree of arrays or `jax.ShapeDtypeStruct`s of the wanted structure and shapes.
        expect: Entries that the saved configuration must have, such as the model's name.

    Raises:
        ValueError: No checkpoint there; it is truncated, of another configuration, or of other
            names, shapes or dtypes; it holds weights that are not finite.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory)
    epoch = latest_epoch(directory)
    if epoch is None:
        raise ValueError(f"`checkpoint` must be a directory with a saved epoch, got {directory}.")
    config = _read_config(directory, epoch)
    for name, wanted in (expect or {}).items():
        if config.get(name) != wanted:
            raise ValueError(
                f"`checkpoint` {directory} must have {name} = {wanted!r}, got {config.get(name)!r}."
            )
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    with _reading(directory):
        saved = ocp.StandardCheckpointHandler().metadata(directory.absolute() / str(epoch) / "tree")
    # Compared here, because orbax casts dtypes in silence, and stops reading in disorder.
    _check_same_arrays(directory, _describe(abstract), _describe(saved.tree))
    with _reading(directory), _manager(directory) as manager:
        items = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
        tree = manager.restore(epoch, args=items)["tree"]
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in floats):
        raise ValueError(f"`checkpoint` {directory} must hold finite weights, got NaN or infinity.")
    return Checkpoint(tree, epoch, config)


def latest_epoch(directory: Path | str) -> int | None:
    """The newest whole epoch saved in a directory; None if there is none."""
    if not Path(directory).is_dir():
        return None
    with _manager(directory) as manager:
        return manager.latest_step()


@contextlib.contextmanager
def _manager(directory, *, create=False):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, create=create, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
        yield manager


@contextlib.contextmanager
def _reading(directory: Path):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
        reason = (str(error) or repr(error)).splitlines()[0][:300]
        rule = "must hold whole arrays of the model's shapes"
        raise ValueError(f"`checkpoint` {directory} {rule}, got: {reason}") from error


def _check_same_arrays(directory: Path, wanted: dict[str, str], saved: dict[str, str]) -> None:
    for name in sorted(wanted.keys() | saved.keys()):
        mine, theirs = wanted.get(name, "absent"), saved.get(name, "absent")
        if mine != theirs:
            raise ValueError(
                f"`checkpoint` {directory} must hold the model's arrays, {name} {mine}, "
                f"got {theirs}."
            )


def _describe(tree: Any) -> dict[str, str]:
    """Dtype and shape of each array by its path, as `params/head/bias`: `float32[3]`."""
    described = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # saved as its data
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        described[name] = f"{leaf.dtype}{list(leaf.shape)}"
    return described


def _read_config(directory: Path, epoch: int) -> dict[str, Any]:
    path = directory / str(epoch) / "config" / "metadata"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"`checkpoint` configuration {path} must be JSON, got: {error}") from error
