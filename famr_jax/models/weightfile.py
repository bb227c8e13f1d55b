"""Weight files of Vision Transformers, local or on the hub, and which family each is of."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from famr_jax.models import layouts
from famr_jax.models.layouts import Family


class File(NamedTuple):
    """What was read.

    Attributes:
        source: As it was asked for.
        family: Whose names it has.
        arrays: By the names of `layouts.NAMES`.
        given: The file's own name of each, which may be of another generation.
        config: `config.json`, empty if there is none.
    """

    source: str
    family: Family
    arrays: dict[str, np.ndarray]
    given: dict[str, str]
    config: dict[str, Any]

    def get(self, path: str) -> np.ndarray | None:
        """The file's array, or the first of them, of one of ours; None if missing."""
        return self.arrays.get(layouts.names(path, self.family)[0])

    def error(self, words: str) -> ValueError:
        """An error that says what the file must do or hold."""
        return ValueError(f"`source` {self.source} must {words}.")


def read(source: Path | str) -> File:
    """Reads a file, a directory or `hf:owner/name`, and recognises its family of ViTs.

    Raises:
        ValueError: Nothing there, a damaged file, no ViT, or one array under two names.
    """
    arrays, settings = arrays_of(source)
    for family in layouts.FAMILIES:
        given = {}
        for name in arrays:
            new = name
            for pattern, replacement in family.aliases:
                new = re.sub(pattern, replacement, new)
            if new in given:
                raise ValueError(
                    f"`source` {source} must hold each array once, got {given[new]} and {name}."
                )
            given[new] = name
        named = {new: arrays[name] for new, name in given.items()}
        file = File(str(source), family, named, given, settings)
        if file.get("patches/kernel") is not None:
            return file
    raise ValueError(
        f"`source` {source} must hold a ViT by the names of "
        f"{', '.join(family.title for family in layouts.FAMILIES)}, "
        f"got {', '.join(sorted(arrays)[:5]) or 'no array'}."
    )


def arrays_of(source: Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, a directory or `hf:owner/name` by name, and its configuration.

    Raises:
        ValueError: Nothing there, a damaged file, or numbers of less than 16 bits.
    """
    hub = str(source).startswith("hf:")
    weights, config = _download(str(source)[3:]) if hub else _local(Path(source))
    narrow = []
    try:
        if weights.suffix == ".npz":
            with weights.open("rb") as opened:  # NumPy leaves a damaged file open
                arrays = {name: _typed(array) for name, array in np.load(opened).items()}
        else:
            arrays, narrow = _tensors(weights)
        settings = dict(json.loads(config.read_text(encoding="utf-8"))) if config else {}
    except Exception as error:  # zipfile, NumPy and safetensors raise many types
        raise ValueError(f"`source` {source} must be whole files, got: {error}") from error
    if narrow:
        rule = "must hold numbers of float16, bfloat16, float32 or float64"
        raise ValueError(f"`source` {source} {rule}, got {', '.join(narrow[:5])}.")
    return arrays, settings


def _tensors(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a .safetensors file; or those that NumPy has no type for, each with its own."""
    import safetensors

    with safetensors.safe_open(file, "np") as opened:
        names = list(opened.keys())
        kinds = {name: opened.get_slice(name).get_dtype() for name in names}
        narrow = [f"{name} of {k}" for name, k in kinds.items() if re.match(r"F[468](_|$)", k)]
        return {} if narrow else {name: opened.get_tensor(name) for name in names}, narrow


def _typed(array: np.ndarray) -> np.ndarray:
    """The array; NumPy keeps of bfloat16 only that it has two bytes and no type of NumPy's."""
    return array.view(jnp.bfloat16.dtype) if array.dtype == np.dtype("V2") else array


def _local(path: Path) -> tuple[Path, Path | None]:
    weights = path / "model.safetensors" if path.is_dir() else path
    if weights.suffix not in (".npz", ".safetensors") or not weights.is_file():
        raise ValueError(
            "`source` must be a .npz or .safetensors file, a directory with model.safetensors, or "
            f"hf:owner/name, got {path}."
        )
    config = weights.with_name("config.json")
    return weights, config if config.is_file() and weights.suffix != ".npz" else None


def _download(repository: str) -> tuple[Path, Path | None]:
    try:
        # An extra, which may not be there.
        from huggingface_hub import (  # pyright: ignore[reportMissingImports]
            errors,
            hf_hub_download,
        )
    except ImportError as error:
        raise ValueError(
            "`source` hf:... needs the package huggingface_hub: install it."
        ) from error
    try:
        weights = Path(hf_hub_download(repository, "model.safetensors"))
        try:
            return weights, Path(hf_hub_download(repository, "config.json"))
        except errors.RemoteEntryNotFoundError:
            return weights, None
    except (OSError, ValueError) as error:
        rule = "must be a repository on the hub with model.safetensors"
        raise ValueError(f"`source` hf:{repository} {rule}, got: {error}") from error
