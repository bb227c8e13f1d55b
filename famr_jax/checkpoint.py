"""Checkpoints by orbax: a pytree, the epoch it belongs to, and the configuration that made it."""

import contextlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import mesh
from famr_jax.files import discard
from famr_jax.types import check_kept


class Checkpoint(NamedTuple):
    """What a directory held: the tree, its epoch, and the configuration saved with it."""

    tree: Any
    epoch: int
    config: dict[str, Any]


def save(directory: Path | str, tree: Any, *, epoch: int, config: Mapping[str, Any]) -> None:
    """Saves a pytree of arrays and its configuration; the directory keeps the newest two epochs.

    A checkpoint appears whole or not at all, and only after it was read back to the same bits: a
    process killed while saving leaves the last epoch, and processes side by side their own. Where
    several processes make one run, all call it with their parts of the tree, and the first writes.

    Args:
        directory: Made if missing.
        tree: Any pytree of arrays: weights, or weights with an optimizer's state.
        epoch: Number of epochs behind it; an epoch that is already there is replaced.
        config: JSON-able; `load` compares entries of it.

    Raises:
        OSError: What was written could not be read back.
    """
    directory, tree = Path(directory), mesh.fetch(jax.tree.map(_without_key, tree))
    if mesh.is_first():
        _save(directory, tree, epoch, dict(config))
    mesh.first(epoch)  # nobody goes on before it is there


def _save(directory: Path, tree: Any, epoch: int, config: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    directory.mkdir(parents=True, exist_ok=True)
    partial = f".{epoch}-{uuid.uuid4().hex}"
    items = {"tree": ocp.args.StandardSave(tree), "config": ocp.args.JsonSave(config)}
    try:
        with _openable(directory) as path, _checkpointer() as checkpointer:
            checkpointer.save(path / partial, args=ocp.args.Composite(**items))
            _check_saved(path / partial, tree)
        _put(directory / partial, directory / str(epoch))
        for old in _epochs(directory)[:-2]:
            discard(directory / str(old))
    finally:
        shutil.rmtree(directory / partial, ignore_errors=True)


def load(
    directory: Path | str, like: Any, *, expect: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Loads the checkpoint of the highest epoch in a directory, whatever devices it was saved from.

    Inside a mesh the arrays are placed by `mesh.layout`, otherwise on the default device.

    Args:
        directory: What `save` wrote to.
        like: A pytree of arrays or `jax.ShapeDtypeStruct`s of the wanted structure and shapes.
        expect: Entries that the saved configuration must have, such as the model's name.

    Raises:
        ValueError: No checkpoint there; it is truncated, of another configuration, or of other
            names, shapes or dtypes; it holds weights that are not finite; `like` is of
            float64 without x64.
    """
    import orbax.checkpoint as ocp

    check_kept("like", like)
    directory = Path(directory)
    epoch = latest_epoch(directory)
    if epoch is None:
        raise ValueError(f"`checkpoint` must be a directory with a saved epoch, got {directory}.")
    config = _read_config(directory / str(epoch))
    for name, wanted in (expect or {}).items():
        if config.get(name) != wanted:
            raise ValueError(
                f"`checkpoint` {directory} must have {name} = {wanted!r}, got {config.get(name)!r}."
            )
    with _openable(directory) as path:
        with _reading(directory):
            place: Any = path / str(epoch) / "tree"  # Orbax has a Path of its own, and takes both
            saved = ocp.StandardCheckpointHandler().metadata(place)
        # Compared here, because orbax casts dtypes in silence, and stops reading in disorder.
        _check_same_arrays(directory, _describe(like), _describe(saved.tree))
        with _reading(directory):
            numbers = _read(path / str(epoch), jax.tree.map(_without_key, like))
    floats = [leaf for leaf in jax.tree.leaves(numbers) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not all(np.all(np.isfinite(leaf)) for leaf in floats):
        raise ValueError(f"`checkpoint` {directory} must hold finite weights, got NaN or infinity.")
    return Checkpoint(mesh.split(jax.tree.map(_as_array, numbers, like)), epoch, config)


def latest_epoch(directory: Path | str) -> int | None:
    """The newest whole epoch saved in a directory, as the first process sees it; else None."""
    found = mesh.first(max(_epochs(Path(directory)), default=-1))
    return None if found < 0 else found


def _epochs(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def _put(partial: Path, final: Path) -> None:
    """Gives what is whole its name, whoever else does the same at this moment."""
    while True:
        discard(final)
        try:
            partial.rename(final)
            return
        except OSError:
            if not final.exists():
                raise


def _checkpointer():
    """One that waits for no other process: what it is given and gives is in host memory."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        ),
        multiprocessing_options=alone,
    )


@contextlib.contextmanager
def _openable(directory: Path):
    """The directory by a name that orbax can read: brackets and backslashes it cannot."""
    directory = directory.absolute()
    if re.fullmatch(r"[\w/.,+=@ -]*", str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "link"
        link.symlink_to(directory)
        yield link


def _read(path: Path, like: Any) -> Any:
    """The saved arrays in host memory, where no sharding they were saved with matters."""
    import orbax.checkpoint as ocp

    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like)
    with _checkpointer() as checkpointer:
        items = ocp.args.Composite(tree=ocp.args.StandardRestore(blank))
        return checkpointer.restore(path, args=items)["tree"]


def _check_saved(path: Path, tree: Any) -> None:
    def is_same(leaf, read):
        return np.asarray(leaf).tobytes() == read.tobytes()

    try:
        _read_config(path)
        whole = jax.tree.all(jax.tree.map(is_same, tree, _read(path, tree)))
    except Exception as error:  # as many types as in `_reading`
        raise OSError(f"checkpoint {path} cannot be read back: {error}") from error
    if not whole:
        raise OSError(f"checkpoint {path} was read back with other bits.")


def _without_key(leaf: Any) -> Any:
    """Typed keys as their data."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _as_array(numbers: np.ndarray, like: Any) -> jax.Array:
    array = jnp.asarray(numbers)
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.zeros((), like.dtype)))


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
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.tree.map(_without_key, tree))[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        described[name] = f"{leaf.dtype}{list(leaf.shape)}"
    return described


def _read_config(path: Path) -> dict[str, Any]:
    path = path / "config" / "metadata"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"`checkpoint` configuration {path} must be JSON, got: {error}") from error
