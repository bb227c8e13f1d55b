"""What made the numbers: the configuration that a JSON records, and how a page shows it."""

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from famr_jax.files import plain, write_json
from famr_jax.report import Facts, Grid, Section, Table, Text, lines, number
from famr_jax.store import NonFiniteError

PLACES = ("out", "cache", "resume", "fresh", "list")
PACKAGES = (
    *("famr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy"),
    *("scikit-learn", "tensorflow-datasets"),
)
DUPLICATES = {
    "within_train": "within train",
    "within_test": "within test",
    "across": "across both",
}


def environment() -> dict[str, Any]:
    """Versions, device and cores: what a number in the JSON was measured on."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": jax.local_devices()[0].device_kind,
        "cores": os.cpu_count(),
        "versions": versions,
    }


def describe(
    experiment: str, program: str, flags: Any, default: Any | None = None
) -> dict[str, Any]:
    """The `config` of a JSON: experiment, command, every flag, environment.

    Directories are named by their last part, and the command by what makes the numbers: where they
    are written to is left out.

    Args:
        experiment: Its name.
        program: What is run, as `python -m famr_jax forget`.
        flags: The parsed flags.
        default: What they are where the command line says nothing, if not their own defaults.
    """
    given, usual = (
        {name: _without_directories(value, name) for name, value in _flat(asdict(each)).items()}
        for each in (flags, default or type(flags)())
    )
    words = [program]
    for name, value in given.items():
        if value != usual[name] and name not in PLACES:
            parts = value if isinstance(value, (list, tuple)) else [value]
            parts = ["DIR"] if isinstance(value, Path) else parts
            parts = [] if isinstance(value, bool) else parts
            word = f"{'no-' * (value is False)}{name.replace('_', '-')}"
            words += [f"--{word}", *(str(plain(part)) for part in parts)]
    config = {"experiment": experiment, "command": " ".join(words), "flags": given}
    return config | {"environment": environment()}


@contextlib.contextmanager
def of_failures(out: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """What is run within leaves a JSON that says where it turned non-finite, if it did.

    Results of an earlier run that are there already stay.
    """
    try:
        yield
    except NonFiniteError as error:
        results = {"finite": False, "phase": error.phase, "epoch": error.epoch}
        if not (out / "metrics.json").exists():
            write_json(out / "metrics.json", {"config": config, "results": results})
        raise


def _without_directories(value: Any, name: str = "") -> Any:
    if isinstance(value, tuple):
        return [_without_directories(part) for part in value]
    if name == "weights" and value and not value.startswith("hf:"):
        return Path(value).name
    kind, colon, path = str(value).partition(":")
    named = colon and kind.partition("/")[0] in ("folder", "idx", "imagenet100", "index", "file")
    if not named and ".py:" in str(value):  # a method of one's own
        return f"{Path(str(value).rpartition(':')[0]).name}:{str(value).rpartition(':')[2]}"
    return f"{kind}:{Path(path).name}" if named else value


def _flat(flags: dict[str, Any]) -> dict[str, Any]:
    """Nested flags as the command line has them: without the groups' names."""
    groups = [name for name, value in flags.items() if isinstance(value, dict)]
    own = {name: value for name, value in flags.items() if name not in groups}
    return own | {k: v for name in groups for k, v in _flat(flags[name]).items()}


def made(content: Mapping[str, Any]) -> list[Section]:
    """The end of every page: command, training, configuration, environment and seconds.

    Args:
        content: A whole JSON, with `config` and `results`.
    """
    config, results = content["config"], content["results"]
    parts: list[Any] = [Text(f"`{config['command']}`")]
    history = results.get("original", {}).get("history", {})
    if history.get("loss"):
        parts.append(_training(history))
    environment = dict(config["environment"])
    environment |= environment.pop("versions")
    duplicates = results.get("dataset", {}).get("duplicates", {})
    for title, facts in (
        ("Exact duplicates", {DUPLICATES[name]: n for name, n in duplicates.items()}),
        ("Configuration", config["flags"]),
        ("Environment", environment),
    ):
        if facts:
            parts.append(Section(title, [Facts(facts)]))
    seconds = config["seconds"]
    phases = [*seconds.get("phases", {}).items(), ("All", seconds)]
    rows = [
        {"Phase": name, "Running, s": _seconds(s["run"]), "Compiling, s": _seconds(s["compile"])}
        for name, s in phases
    ]
    parts.append(Section("Seconds", [Table(rows)]))
    return [Section("How this was made", parts)]


def _training(history: Mapping[str, Any]) -> Section:
    rows = [
        {"epoch": epoch, "loss": loss, "accuracy": accuracy}
        for epoch, (loss, accuracy) in enumerate(
            zip(history["loss"], history["accuracy"], strict=True), start=1
        )
    ]
    charts = [
        lines(rows, "epoch", "loss", title="Training loss", unit="nats"),
        lines(rows, "epoch", "accuracy", title="Training accuracy", unit="share"),
    ]
    return Section("Training of the original", [Grid(charts, width=310)])


def _seconds(value: float) -> str:
    return number(value) if not 10 <= value < 1e9 else number(round(value))
