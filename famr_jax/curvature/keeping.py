"""Builds a curvature store by Lanczos that can be interrupted, and writes and reads it."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.algebra import precise
from famr_jax.curvature.eigenspace import (
    Eigenspace,
    Leading,
    advanced,
    check_build,
    compressed,
    eigenspace,
    started,
)
from famr_jax.curvature.spectrum import Basis
from famr_jax.progress import working
from famr_jax.types import as_pytree, check_kept

UNFINISHED = ".search"
"""What the name of an unfinished store ends in."""
SECONDS_BETWEEN_SAVES = 10.0


@precise
def keep(
    matvec: Callable,
    like: Any,
    *,
    k: int,
    size: float,
    key: Array,
    path: Path | str,
    made_by: Mapping[str, Any] | None = None,
    tol: float = 1e-4,
) -> Eigenspace:
    """The store of the k leading eigenvectors in a file, by thick-restart Lanczos.

    Interrupted, it goes on from what was saved ten seconds before at most, or a piece of k / 8
    products, to the same bits; what is already there is read. Its matrix is exact whatever is left
    of the vectors' residuals.

    Args:
        matvec: A, the mean curvature over a data set, a callable pytree `v -> A v`.
        like: A pytree of arrays of the shapes that A acts on.
        k: How many; enough are those whose eigenvalues exceed the damping of later solves.
        size: How many examples A is a mean over.
        key: PRNG key of the start.
        path: The file, .npz.
        made_by: What determines A, JSON-able: weights, data. A file of another is refused.
        tol: Wanted residual, relative to the largest |e|.

    Raises:
        ValueError: A number out of range, vectors that do not fit in memory, or a file of another
            configuration.
    """
    check_build(like, k, size, tol, key)
    path, matvec = Path(path), as_pytree(matvec)
    flat = ravel_pytree(like)[0]
    config = _identity(dict(made_by or {}), k, size, flat, key)
    if path.exists():
        return _space(_read(path, config))
    if k >= flat.size:
        space = eigenspace(matvec, like, k=k, size=size, key=key)
        _write_space(path, space, config)
        return space
    unfinished = path.with_name(path.name + UNFINISHED)
    found = _read_search(unfinished, config) if unfinished.exists() else started(like, key, k=k)
    saved_at = time.monotonic()
    with working(f"curvature store of {k}") as tell:
        while found.going_on:
            found = _advance(matvec, like, found, tol, key, k=k)
            tell(0, f"{int(found.basis.num_products)} products, residual {float(found.left):.1e}")
            if found.going_on and time.monotonic() - saved_at >= SECONDS_BETWEEN_SAVES:
                _write(unfinished, _named(found), config)
                saved_at = time.monotonic()
    space = compressed(found.basis, k=k, size=size)
    space = replace(space, num_products=float(space.num_products))
    _write_space(path, space, config)
    unfinished.unlink(missing_ok=True)
    return space


_advance = partial(jax.jit, static_argnames="k")(advanced)


def _named(found):
    basis, *rest = found
    return {**basis._asdict(), **dict(zip(Leading._fields[1:], rest, strict=True))}


def _read_search(path, config):
    saved, names = _read(path, config), (*Basis._fields, *Leading._fields[1:])
    if missing := [name for name in names if name not in saved]:
        raise ValueError(f"`path` {path} must hold {', '.join(missing)} too: delete it.")
    basis = Basis(*(jnp.asarray(saved[name]) for name in Basis._fields))
    return Leading(basis, *(jnp.asarray(saved[name]) for name in Leading._fields[1:]))


def save(path: Path | str, space: Eigenspace) -> None:
    """Writes a store to a file, whole or not at all; `load` reads it."""
    _write_space(Path(path), space, {})


def load(path: Path | str) -> Eigenspace:
    """Reads the store that `keep` or `save` wrote.

    Raises:
        ValueError: No file there, or none of a store.
    """
    return _space(_read(Path(path), None))


def _identity(made_by, k, size, flat, key):
    drawn = np.asarray(jax.random.key_data(key)).tolist()
    shape = {"k": k, "size": float(size), "dim": flat.size, "dtype": str(flat.dtype)}
    return {"made_by": made_by, "key": drawn, **shape}


def _space(saved):
    rows, matrix = (jnp.asarray(saved[name]) for name in ("rows", "matrix"))
    size, num_products = (float(saved[name]) for name in ("size", "num_products"))
    return Eigenspace(rows, matrix, size, num_products)


def _write_space(path, space, config):
    names = ("rows", "matrix", "size", "num_products")
    _write(path, {name: getattr(space, name) for name in names}, config)


def _write(path: Path, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if jax.process_index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with part.open("wb") as file:
            text = json.dumps(config, sort_keys=True)
            named: dict[str, Any] = {name: np.asarray(a) for name, a in arrays.items()}
            np.savez(file, config=text, **named)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, config: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            saved = {name: file[name] for name in file.files}
        text, _ = str(saved["config"]), saved["rows"]
    except Exception as error:  # zip and NumPy raise many types for what is no store
        raise ValueError(f"`path` must be a curvature store, got {path}: {error}") from error
    wanted = json.dumps(config, sort_keys=True)
    if config is not None and text != wanted:
        raise ValueError(f"`path` {path} must hold the store of {wanted}, got {text}.")
    check_kept("rows", saved["rows"])
    return saved
