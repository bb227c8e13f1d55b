"""Compiled programs, kept on disk for the next process."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental.compilation_cache import compilation_cache

from famr_jax import mesh

ENDING = "-cache"
"""How JAX ends the name of a program's file."""


@contextlib.contextmanager
def kept(place: Path) -> Iterator[None]:
    """Within it, programs that are compiled are kept in a directory, and taken from there.

    Where JAX's own cache is set already, as by `JAX_COMPILATION_CACHE_DIR`, that stays. JAX writes
    a program in place, so that a killed process leaves half of it, and one beside it reads that.
    Hence each process has a directory of its own, with links to what is there, and a program is
    renamed into the common one when it is whole. Of several processes of one run the first alone
    does so.

    Args:
        place: The common directory; any number of processes may use it at once.
    """
    settings: Any = jax.config  # whose names JAX sets as it is imported
    if settings.jax_compilation_cache_dir or not mesh.is_first():
        yield
        return
    place = place.absolute()
    made = [each for each in (place, *place.parents) if not each.exists()]
    place.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    made_here, own = (place / f".{word}-{uuid.uuid4().hex}" for word in ("new", "of"))
    made_here.mkdir()
    with (made_here / ".alive").open("w") as alive, _settings(own):
        fcntl.flock(alive, fcntl.LOCK_EX)
        made_here.rename(own)  # only now others sweep it, if nobody holds the lock
        for program in place.glob(f"*{ENDING}"):
            (own / program.name).symlink_to(program)
        _IN_USE.append((own, place))
        try:
            yield
        finally:
            _IN_USE.remove((own, place))
            _share(own, place)
            shutil.rmtree(own, ignore_errors=True)
            with contextlib.suppress(OSError):  # nothing was compiled: nothing is left
                for each in made:
                    each.rmdir()


@contextlib.contextmanager
def _settings(own: Path) -> Iterator[None]:
    wanted = {
        "jax_compilation_cache_dir": str(own),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        # XLA would keep what it tuned on a GPU in the directory that goes with the process.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


_IN_USE: list[tuple[Path, Path]] = []


def _share(own: Path, place: Path) -> None:
    """Moves new programs into the common directory, each at once, and links to them."""
    with contextlib.suppress(OSError), os.scandir(own) as entries:
        for entry in entries:
            if entry.name.endswith(ENDING) and not entry.is_symlink():
                os.replace(entry.path, place / entry.name)
                Path(entry.path).symlink_to(place / entry.name)


def _sweep(place: Path) -> None:
    """Removes what processes left that were killed: nobody holds their locks."""
    for own in place.glob(".of-*"):
        with contextlib.suppress(OSError), (own / ".alive").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(own, ignore_errors=True)


def _on_compiled(event: str, *_: Any, **__: Any) -> None:
    if event.endswith("backend_compile_duration"):
        for own, place in _IN_USE:
            _share(own, place)


jax.monitoring.register_event_duration_secs_listener(_on_compiled)
