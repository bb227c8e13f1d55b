"""Files whole or not at all, JSON that a diff can be read of, and directories to write in."""

import contextlib
import json
import math
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np

WIDTH, ROW = 150, 480


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; of runs side by side the last one wins.

    Of several processes of one run the first alone writes, here and in all that follows.
    """
    if jax.process_index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; numbers that are not finite become null."""
    write_text(path, layout(plain(content)) + "\n")


def layout(value: Any, *, depth: int = 0, width: int = WIDTH) -> str:
    """Lays JSON out a column a line, and a row of a table a line.

    Lists of scalars are one line, however long, and so is all else that fits in `WIDTH`
    characters, in `ROW` as the entry of a list; other dicts and lists have an entry a line,
    indented by a space a level.
    """
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, (dict, list)) or depth + len(line) <= width:
        return line
    below = depth + 1
    if isinstance(value, dict):
        entries = [f"{json.dumps(k)}: {layout(v, depth=below)}" for k, v in value.items()]
    elif any(isinstance(entry, (dict, list)) for entry in value):
        entries = [layout(entry, depth=below, width=ROW) for entry in value]
    else:
        return line
    lines = ",".join(f"\n{' ' * below}{entry}" for entry in entries)
    return f"{line[0]}{lines}\n{' ' * depth}{line[-1]}"


def plain(value: Any) -> Any:
    """The value as JSON has it: arrays as lists, floats to 6 digits, paths by their last part."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, jax.Array, np.generic)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value.name if isinstance(value, Path) else value


def usable_directory(name: str, path: Path) -> Path:
    """Tries to write into a directory, or where it would be made, and leaves nothing there.

    Raises:
        ValueError: It cannot be made or written to.
    """
    if jax.process_index():
        return path
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return path
    except OSError as error:
        raise ValueError(
            f"`{name}` must be a directory to write in, got {path}: {error}."
        ) from error


def discard(path: Path) -> None:
    """Removes a file or a directory, which is gone at once even if the process is killed."""
    if jax.process_index():
        return
    aside = path.with_name(f".discarded-{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    for rubbish in path.parent.glob(".discarded-*"):  # a killed process may have left some
        if rubbish.is_dir() and not rubbish.is_symlink():
            shutil.rmtree(rubbish, ignore_errors=True)
        else:
            rubbish.unlink(missing_ok=True)
