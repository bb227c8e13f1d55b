"""What made a model, as a key: its configuration, the code that ran, versions and devices."""

import ast
import functools
import hashlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

PACKAGE = "famr_jax"
ROOT = Path(__file__).resolve().parents[1]
TRAINING = (f"{PACKAGE}.train", f"{PACKAGE}.loop")
"""What every training runs; its model and its augmentation come on top."""


def key_of(known: dict[str, Any], *sources: str | Path) -> str:
    """Hash of all that enters the bits of a training.

    Args:
        known: Its configuration: JSON-able, arrays too; every digit counts.
        sources: The modules that make it, as `sources_of` takes them.
    """
    settings: Any = jax.config  # whose names JAX sets as it is imported
    packages = ("jax", "jaxlib", "flax", "optax")
    made_by = {
        "sources": sources_of(*sources),
        "versions": {package: metadata.version(package) for package in packages},
        "backend": jax.default_backend(),
        "device": jax.local_devices()[0].device_kind,
        "mesh": dict(jax.sharding.get_abstract_mesh().shape),
        "x64": settings.jax_enable_x64,
        "precision": settings.jax_default_matmul_precision,
        "keys": [settings.jax_default_prng_impl, settings.jax_threefry_partitionable],
    }
    text = json.dumps([known, made_by], sort_keys=True, default=_exactly)
    return hashlib.sha256(text.encode()).hexdigest()


def _exactly(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    raise TypeError(f"`config` must be JSON-able, got a {type(value).__name__}.")


def sources_of(*modules: str | Path, root: Path = ROOT) -> str:
    """Hash of modules and of all that they import of this library, at any depth.

    A package that only lends a submodule does not count itself. The library is read once, when it
    is imported: what counts is the code that runs.

    Args:
        modules: Dotted names, as famr_jax.train; or files, as a method of one's own, with the
            modules beside them that they import.
        root: Directory of the package.

    Raises:
        ValueError: No such module.
    """
    library, ahead, seen = _library(root), list(modules), {}
    while ahead:
        module = ahead.pop()
        if isinstance(module, Path):
            source = _Source("", module.read_bytes())
        elif module in library:
            source = library[module]
        else:
            raise ValueError(f"`sources` must be files or modules of {PACKAGE}, got {module!r}.")
        if module not in seen:
            seen[module] = (getattr(module, "name", module), source.text.hex())
            ahead += _imports(source, root)
            if isinstance(module, Path):
                ahead += _beside(module, source)
    return hashlib.sha256(json.dumps(sorted(seen.values())).encode()).hexdigest()


class _Source(NamedTuple):
    package: str
    text: bytes


@functools.cache
def _library(root: Path) -> dict[str, _Source]:
    library = {}
    for path in (root / PACKAGE).rglob("*.py"):
        *package, name = path.relative_to(root).with_suffix("").parts
        module = package if name == "__init__" else [*package, name]
        library[".".join(module)] = _Source(".".join(package), path.read_bytes())
    return library


_library(ROOT)


def _beside(file: Path, source: _Source) -> list[Path]:
    """The files in the directory of a file that it imports: modules, or all of a package."""
    found: list[Path] = []
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
        else:
            continue
        for name in {name.partition(".")[0] for name in names} - {PACKAGE}:
            module, package = file.parent / f"{name}.py", file.parent / name
            if module.is_file():
                found.append(module)
            elif (package / "__init__.py").is_file():
                found += sorted(package.rglob("*.py"))
    return found


@functools.cache
def _imports(source: _Source, root: Path) -> list[str]:
    library, found = _library(root), []
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
            if PACKAGE in found:  # any attribute of it may be used
                return list(library)
        elif isinstance(node, ast.ImportFrom) and (source.package or not node.level):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, source.package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if name in library else base for name in names]
    return [name for name in found if name in library]
