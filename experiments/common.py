"""What every experiment stands on: flags, progress, resumable phases, seconds and the JSON."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.monitoring
import numpy as np
import rich.console
import rich.progress
import tyro

import famr_jax
from famr_jax import checkpoint, mesh
from famr_jax.files import discard as discard
from famr_jax.files import plain as plain
from famr_jax.files import usable_directory as usable_directory
from famr_jax.files import write_json as write_json
from famr_jax.files import write_text as write_text

console = rich.console.Console(stderr=True)
Flags = TypeVar("Flags")

SECONDS_BETWEEN_SAVES = 10.0
SOURCES = (*Path(famr_jax.__file__).parent.rglob("*.py"), *Path(__file__).parent.glob("*.py"))
SOURCE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES))).hexdigest()[:12]
"""Hash of the code that runs, read once, when it starts."""

VERDICTS = ("holds", "fails", "mixed", "not resolved", "not testable here")


class NonFiniteError(Exception):
    """A run met a loss or a weight that is not finite; says in which phase and epoch."""

    def __init__(self, phase: str, epoch: int):
        super().__init__(f"{phase}: not finite in epoch {epoch}; what was saved before it stays.")
        self.phase, self.epoch = phase, epoch


def main(flags: type[Flags], run: Callable[[Flags], None]) -> None:
    """Parses the command line into a frozen dataclass and runs the experiment.

    Runs on the devices that the flag `mesh` of a workbench names. Exits 2 with one line on bad
    input, 1 if a run turned non-finite.
    """
    description = sys.modules[flags.__module__].__doc__
    parsed = tyro.cli(flags, description=description, config=(tyro.conf.OmitArgPrefixes,))
    devices = getattr(getattr(parsed, "bench", None), "mesh", None)
    try:
        with jax.set_mesh(mesh.parse(devices)) if devices else contextlib.nullcontext():
            run(parsed)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise SystemExit(2) from error
    except NonFiniteError as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise SystemExit(1) from error


class Clock:
    """Wall seconds by phase, with compilation apart.

    `compile` is what JAX reports for lowering and XLA compilation; `run` is the rest of the wall
    time of the phase. Results must be ready on the host when a phase ends.
    """

    _compile_seconds = 0.0

    def __init__(self):
        self.phases: dict[str, dict[str, float]] = {}

    def seconds(self) -> dict[str, Any]:
        """Totals and phases, as the JSON wants them."""
        total = {kind: sum(p[kind] for p in self.phases.values()) for kind in ("run", "compile")}
        return {**total, "phases": self.phases}

    def time(self, phase: str, function: Callable[[], Any]) -> Any:
        """Runs `function`, blocks until its result is ready, and books the seconds."""
        wall, compiled = time.perf_counter(), Clock._compile_seconds
        try:
            return jax.block_until_ready(function())
        finally:
            compiled = Clock._compile_seconds - compiled
            run = time.perf_counter() - wall - compiled
            booked = self.phases.setdefault(phase, {"run": 0.0, "compile": 0.0})
            booked["run"] += run
            booked["compile"] += compiled

    def show(self, phase: str, function: Callable[[], Any]) -> Any:
        """`time` with a spinner while it runs, and a line when it is done."""
        with console.status(phase):
            result = self.time(phase, function)
        console.print(f"{phase:<28} {sum(self.phases[phase].values()):.1f} s", highlight=False)
        return result


def _on_duration(event: str, duration: float, **_: Any) -> None:
    if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
        Clock._compile_seconds += duration


jax.monitoring.register_event_duration_secs_listener(_on_duration)


def environment() -> dict[str, Any]:
    """Versions, device and cores: what a number in the JSON was measured on."""
    packages = ("famr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
    packages += ("scikit-learn", "tensorflow-datasets")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "source": SOURCE,
        "versions": versions,
    }


def claim(claim: str, source: str, verdict: str, words: str) -> dict[str, str]:
    """One entry of a JSON's `claims`: the ledger knows it by its sentence and its source."""
    if verdict not in VERDICTS:
        raise ValueError(f"`verdict` must be one of {VERDICTS}, got {verdict!r}.")
    return {"claim": claim, "source": source, "verdict": verdict, "words": words}


class Fitted(NamedTuple):
    """What a phase leaves: the last weights, one dict of numbers per epoch, and its seconds."""

    params: Any
    log: list[dict[str, Any]]
    seconds: dict[str, float]


class Store:
    """Resumable phases of training and unlearning, kept by what made them.

    A phase is known by the hash of its configuration, of the source code, and of versions and
    device, so all experiments share originals and oracles and no edit meets stale weights. With
    `resume`, finished phases are read back and a started one goes on from its last checkpoint, to
    the same bits; without, everything is made anew.

    Attributes:
        root: Directory of the store.
        resume: Whether to use what is there.
        clock: Where the seconds are booked.
    """

    def __init__(self, root: Path, *, resume: bool, clock: Clock):
        self.root, self.resume, self.clock = root, resume, clock

    def fit(
        self,
        name: str,
        config: dict[str, Any],
        begin: Callable[[], Any],
        advance: Callable[[Any, int], Iterator[tuple[int, Any, dict]]],
        *,
        epochs: int,
        watch: Callable[[Any], dict[str, Any]] | None = None,
    ) -> Fitted:
        """Runs one phase to its last epoch, with progress and checkpoints.

        Args:
            name: For progress and seconds.
            config: All that determines the result; JSON-able.
            begin: Gives the state before the first epoch; the state has `params`.
            advance: `(state, start) -> iterator` of `(epoch, state, info)`.
            epochs: Where the iterator ends.
            watch: Measures the weights after each epoch; its numbers join the log.

        Raises:
            NonFiniteError: The epoch that was not finite, or whose watched numbers were not, is not
                saved.
        """
        directory = self.directory(name, config)
        if not self.resume:
            discard(directory)
        like, done = jax.eval_shape(begin), directory / "weights"
        if checkpoint.latest_epoch(done) is None:
            record = {"config": config, "log": [], "seconds": {"run": 0.0, "compile": 0.0}}
            progress = directory / "progress"
            state = self._run(name, progress, record, like, begin, advance, epochs, watch)
            checkpoint.save(done, state.params, epoch=epochs, config=plain(record))
        params, _, record = checkpoint.load(done, like.params)
        shutil.rmtree(directory / "progress", ignore_errors=True)
        self.clock.phases[name] = record["seconds"]
        return Fitted(params, record["log"], record["seconds"])

    def directory(self, name: str, config: dict[str, Any]) -> Path:
        """Where a phase of this configuration is kept."""
        packages = ("jax", "jaxlib", "flax", "optax")
        made_by = [SOURCE, jax.default_backend(), jax.config.jax_enable_x64]
        made_by += [metadata.version(package) for package in packages]
        known = json.dumps([plain(config), made_by], sort_keys=True).encode()
        return self.root / f"{name.replace(' ', '-')}-{hashlib.sha256(known).hexdigest()[:12]}"

    def _run(self, name, directory, record, like, begin, advance, epochs, watch):
        """Goes on from the last epoch saved in `directory`, filling `record`; the last state."""
        start = 0
        if checkpoint.latest_epoch(directory) is not None:
            state, start, saved = checkpoint.load(directory, like)
            record |= saved
        record["seconds"] = self.clock.phases[name] = dict(record["seconds"])
        if start == 0:
            state = self.clock.time(name, begin)
        steps, saved_at = advance(state, start), time.monotonic()
        with _progress() as bar:
            task = bar.add_task(name, total=epochs, completed=start, numbers="compiling")
            for _ in range(start, epochs):
                epoch, state, info = self.clock.time(name, lambda: next(steps))
                if not np.all(info["finite"]):
                    raise NonFiniteError(name, epoch)
                seen = watch(state.params) if watch else {}
                if not all(np.all(np.isfinite(value)) for value in seen.values()):
                    raise NonFiniteError(name, epoch)
                numbers = {key: value for key, value in info.items() if key != "finite"}
                record["log"].append(plain(numbers | seen))
                bar.update(task, completed=epoch, numbers=_brief(record["log"][-1]))
                if epoch < epochs and time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                    checkpoint.save(directory, state, epoch=epoch, config=plain(record))
                    saved_at = time.monotonic()
        return state


def members(stacked: Any) -> list[Any]:
    """The trees that one with a leading member axis holds."""
    count = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)]


def describe(experiment: str, flags: Any) -> dict[str, Any]:
    """The `config` of a JSON: experiment, command, every flag, environment.

    Directories are named by their last part, and the command by what makes the numbers: where they
    are written to is left out.
    """
    given, default = (
        {name: _without_directories(value, name) for name, value in _flat(asdict(each)).items()}
        for each in (flags, type(flags)())
    )
    words = [f"python -m experiments.{experiment}"]
    for name, value in given.items():
        if value != default[name] and name not in ("out", "cache", "resume"):
            parts = value if isinstance(value, (list, tuple)) else [value]
            parts = ["DIR"] if isinstance(value, Path) else [] if value is True else parts
            words += [f"--{name.replace('_', '-')}", *(str(plain(part)) for part in parts)]
    config = {"experiment": experiment, "command": " ".join(words), "flags": given}
    return config | {"environment": environment()}


def _without_directories(value: Any, name: str = "") -> Any:
    if isinstance(value, tuple):
        return [_without_directories(part) for part in value]
    if name == "weights" and value and not value.startswith("hf:"):
        return Path(value).name
    kind, colon, path = str(value).partition(":")
    return (
        f"{kind}:{Path(path).name}"
        if colon and kind in ("folder", "imagenet100", "index")
        else value
    )


def _flat(flags: dict[str, Any]) -> dict[str, Any]:
    """Nested flags as the command line has them: without the groups' names."""
    groups = [name for name, value in flags.items() if isinstance(value, dict)]
    own = {name: value for name, value in flags.items() if name not in groups}
    return own | {k: v for name in groups for k, v in _flat(flags[name]).items()}


def fingerprint(params: Any) -> str:
    """Hash of all weights, bit for bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<28}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}"),
        console=console,
    )


def _brief(numbers: dict[str, Any]) -> str:
    means = {name: float(np.mean(value)) for name, value in numbers.items()}
    return "  ".join(f"{name} {value:.3g}" for name, value in list(means.items())[:4])
