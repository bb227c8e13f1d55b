"""Resumable phases of training and unlearning, each model kept under what made it."""

import contextlib
import fcntl
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from famr_jax import checkpoint, mesh
from famr_jax.files import discard, plain, write_text
from famr_jax.progress import Clock, console, working
from famr_jax.provenance import TRAINING, key_of

SECONDS_BETWEEN_SAVES = 10.0

MOST_MAPPINGS = 25_000
"""Of a process's memory. Linux gives it 65,530, each compiled program takes some, and XLA aborts
where there are none left."""


class NonFiniteError(Exception):
    """A run met a loss or a weight that is not finite; says in which phase and epoch."""

    def __init__(self, phase: str, epoch: int):
        super().__init__(f"{phase}: not finite in epoch {epoch}; what was saved before it stays.")
        self.phase, self.epoch = phase, epoch


class FailedRunError(Exception):
    """A run ended, and its results say what went wrong; a command then exits 1."""


class Fitted(NamedTuple):
    """What a phase leaves: the last weights, one dict of numbers per epoch, and its seconds."""

    params: Any
    log: list[dict[str, Any]]
    seconds: dict[str, float]


class Store:
    """Models kept one by one under what made them, shared by experiments and by runs side by side.

    A model is known by the hash of its configuration, of the sources that made it, of versions and
    of devices, so that no edit meets stale weights. With `resume`, finished models are read back
    and a started one goes on from its last checkpoint, to the same bits. Without, all is made anew
    beside what is there, and takes its place when it is whole.

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
        sources: Sequence[str | Path] = TRAINING,
        watch: Callable[[Any], dict[str, Any]] | None = None,
    ) -> Fitted:
        """Runs one phase to its last epoch, with progress and checkpoints.

        Args:
            name: For progress, seconds and the directory.
            config: All that determines the result but for the code; JSON-able.
            begin: Gives the state before the first epoch; the state has `params`.
            advance: `(state, start) -> iterator` of `(epoch, state, info)`.
            epochs: Where the iterator ends.
            sources: The modules that make the result, as `sources_of` takes them.
            watch: Measures the weights after each epoch; its numbers join the log.

        Raises:
            NonFiniteError: The epoch that was not finite, or whose watched numbers were not, is not
                saved.
        """
        home = self.directory(name, config, epochs=epochs, sources=sources)
        phase = _Phase(
            name, [config], [home], lambda _: begin(), lambda _, *at: advance(*at), epochs, 1, watch
        )
        return self._fit(phase)[0]

    def fit_members(
        self,
        name: str,
        configs: Sequence[dict[str, Any]],
        begin: Callable[[Any], Any],
        advance: Callable[[Any, Any, int], Iterator[tuple[int, Any, dict]]],
        *,
        epochs: int,
        width: int,
        sizes: Sequence[Any] | None = None,
        sources: Sequence[str | Path] = TRAINING,
    ) -> list[Fitted]:
        """Runs the missing ones of many members, in chunks of a fixed width.

        A short chunk is padded by its last member, so that every member runs in the same program:
        its bits depend on neither its slot, its neighbours, nor what was there already. Its seconds
        are an equal share of its chunk's.

        Args:
            name: As in `fit`, for all members.
            configs: The configuration of each member.
            begin: `rows -> state`, where rows are the positions in `configs` of a chunk's members,
                `[width]`, and all of the state has that axis; of width 1 one int, and no axis.
            advance: `(rows, state, start) -> iterator` of `(epoch, state, info)`, as in `fit`.
            epochs: Where the iterator ends.
            width: Members a program; `loop.member_width()` suits the device.
            sizes: Of each member's sets; those of a chunk agree. None where all do.
            sources: As in `fit`.

        Raises:
            NonFiniteError: A member was not finite; what was saved of its chunk stays.
        """
        homes = [
            self.directory(name, config, epochs=epochs, width=width, sources=sources)
            for config in configs
        ]
        return self._fit(_Phase(name, configs, homes, begin, advance, epochs, width, None, sizes))

    def remember(
        self,
        name: str,
        config: dict[str, Any],
        function: Callable[[], Any],
        *,
        sources: Sequence[str | Path],
    ) -> Any:
        """What a function gives, kept as JSON under what determines it, with its seconds.

        Args:
            name: For progress, seconds and the file.
            config: All that determines the numbers but for the code; JSON-able.
            function: Gives numbers, lists and dicts of them.
            sources: The modules that make them, as `sources_of` takes them.
        """
        home = self.directory(name, config, epochs=0, sources=sources)
        path = home / "numbers.json"
        with self._lock(home):
            if mesh.first(self.resume and path.exists()):
                kept = json.loads(path.read_text(encoding="utf-8"))
                self.clock.phases[name] = kept["seconds"]
                self.clock.tell(name, "kept from before")
                return kept["numbers"]
            numbers = _numbers(self.clock.show(name, function))
            make_room_for_programs()
            write_text(path, json.dumps({"numbers": numbers, "seconds": self.clock.phases[name]}))
            return numbers

    def remembers(
        self, name: str, config: dict[str, Any], *, sources: Sequence[str | Path]
    ) -> bool:
        """Whether `remember` would give what is kept, so that nothing need be made ready."""
        path = self.directory(name, config, epochs=0, sources=sources) / "numbers.json"
        return bool(mesh.first(self.resume and path.exists()))

    def directory(
        self,
        name: str,
        config: dict[str, Any],
        *,
        epochs: int,
        width: int = 1,
        sources: Sequence[str | Path] = TRAINING,
    ) -> Path:
        """Where a model of this configuration is kept."""
        known = {"name": name, "config": config, "epochs": epochs, "width": width}
        return self._place(name, key_of(known, *sources))

    def _place(self, name: str, text: str) -> Path:
        words = re.sub(r"[^\w.,+=-]+", "-", name)[:60]  # file systems end a name at 255 bytes
        return self.root / f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _fit(self, phase: "_Phase") -> list[Fitted]:
        like = jax.eval_shape(lambda: phase.member(phase.begin(phase.rows([0])).params, 0))
        found: dict[int, Fitted | None] = dict.fromkeys(range(len(phase.homes)))
        if self.resume:
            found = {i: self._find(phase.homes[i], like) for i in found}
        kept = sum(fitted is not None for fitted in found.values())
        while missing := [i for i, fitted in found.items() if fitted is None]:
            chunk = [i for i in missing if phase.size(i) == phase.size(missing[0])][: phase.width]
            found |= self._fit_chunk(phase, chunk, like)
        made = [fitted for fitted in found.values() if fitted is not None]
        total = {k: sum(fitted.seconds[k] for fitted in made) for k in ("run", "compile")}
        self.clock.phases[phase.name] = total
        of = "" if len(found) == 1 else f" {kept} of {len(found)}"
        self.clock.tell(phase.name, f"kept{of} from before" if kept else "")
        make_room_for_programs()
        return made

    def _fit_chunk(self, phase: "_Phase", chunk: list[int], like: Any) -> dict[int, Fitted | None]:
        """Runs a chunk, unless another run made some of it while this one waited for the lock."""
        homes = [phase.homes[i] for i in chunk]
        names = " ".join(home.name for home in homes)
        place = homes[0] if phase.width == 1 else self._place(f"{phase.name} chunk", names)
        with self._lock(place):
            if self.resume:
                found = [self._find(home, like, held=place) for home in homes]
                if any(found):
                    return dict(zip(chunk, found, strict=True))
            progress = place / ("progress" if self.resume else "anew")
            if not self.resume:
                discard(progress)
            state, record = self._run(phase, chunk, progress)
            share = {kind: seconds / len(chunk) for kind, seconds in record["seconds"].items()}
            made = {}
            for slot, (i, home) in enumerate(zip(chunk, homes, strict=True)):
                log = [phase.member(numbers, slot) for numbers in record["log"]]
                kept = {"config": plain(phase.configs[i]), "log": log, "seconds": plain(share)}
                params = phase.member(state.params, slot)
                with self._lock(home, held=place):
                    old = checkpoint.latest_epoch(home / "weights")
                    # Under a higher number the new weights are whole before the old ones go.
                    number = phase.epochs if old is None else old + 1
                    checkpoint.save(home / "weights", params, epoch=number, config=kept)
                    if old is not None:
                        discard(home / "weights" / str(old))
                    made[i] = self._find(home, like, held=home)
            if phase.width > 1:
                discard(place)
            return made

    def _find(self, home: Path, like: Any, held: Path | None = None) -> Fitted | None:
        with self._lock(home, held=held):
            if checkpoint.latest_epoch(home / "weights") is None:
                return None
            params, _, record = checkpoint.load(home / "weights", like)
            for started in ("progress", "anew"):
                discard(home / started)
            return Fitted(params, record["log"], record["seconds"])

    @contextlib.contextmanager
    def alone(self, place: Path) -> Iterator[None]:
        """Keeps other runs that share this store out of any directory; a killed one lets go."""
        with self._lock(self._place(f"place {place.name}", str(place.resolve()))):
            yield

    @contextlib.contextmanager
    def _lock(self, place: Path, held: Path | None = None) -> Iterator[None]:
        """Keeps other runs out of a directory; the system lets go where a process is killed."""
        if place == held or jax.process_index() > 0:
            yield
            return
        path = self.root / ".locks" / place.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print(f"{place.name}: waiting for another run", markup=False)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _run(self, phase: "_Phase", chunk: list[int], directory: Path) -> tuple[Any, dict]:
        """Goes on from the last epoch saved in `directory`: the last state, log and seconds."""
        rows, name, start = phase.rows(chunk), phase.name, 0
        record: dict[str, Any] = {"log": [], "seconds": {"run": 0.0, "compile": 0.0}}
        if checkpoint.latest_epoch(directory) is not None:
            like = jax.eval_shape(lambda: phase.begin(rows))
            state, start, record = checkpoint.load(directory, like)
        self.clock.phases[name] = record["seconds"]
        if start == 0:
            state = self.clock.time(name, lambda: phase.begin(rows))
        steps, saved_at = phase.advance(rows, state, start), time.monotonic()
        count = len(phase.homes)
        title = name if count == 1 else f"{name} {chunk[0] + 1}/{count}"
        with working(title, phase.epochs, start) as tell:
            for _ in range(start, phase.epochs):
                epoch, state, info = self.clock.time(name, lambda: next(steps))
                if not np.all(info["finite"]):
                    raise NonFiniteError(name, epoch)
                seen = phase.watch(state.params) if phase.watch else {}
                if not all(np.all(np.isfinite(value)) for value in seen.values()):
                    raise NonFiniteError(name, epoch)
                numbers = {key: value for key, value in info.items() if key != "finite"}
                record["log"].append(plain(numbers | seen))
                tell(epoch, _brief(record["log"][-1]))
                late = time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES
                if epoch < phase.epochs and mesh.first(late):
                    checkpoint.save(directory, state, epoch=epoch, config=plain(record))
                    saved_at = time.monotonic()
        return state, record


class _Phase(NamedTuple):
    """What is run, of one model or of many: each has its configuration and its home."""

    name: str
    configs: Sequence[dict[str, Any]]
    homes: list[Path]
    begin: Callable[[Any], Any]
    advance: Callable[[Any, Any, int], Iterator[tuple[int, Any, dict]]]
    epochs: int
    width: int
    watch: Callable[[Any], dict[str, Any]] | None = None
    sizes: Sequence[Any] | None = None

    def size(self, member: int) -> Any:
        """What a member must agree in with the others of its chunk."""
        return self.sizes and self.sizes[member]

    def rows(self, chunk: list[int]) -> Any:
        """Positions of a program's members: a short chunk is padded by its last one."""
        padded = chunk + chunk[-1:] * (self.width - len(chunk))
        return padded[0] if self.width == 1 else np.array(padded)

    def member(self, stacked: Any, slot: int) -> Any:
        """The tree of the member in one slot."""
        if self.width == 1:
            return stacked
        return jax.tree.map(lambda leaf: leaf[slot], stacked, is_leaf=_is_column)


def _is_column(node: Any) -> bool:
    """Whether it is a number of all members, as the log has it."""
    return isinstance(node, list)


def make_room_for_programs() -> None:
    """Forgets compiled programs where there are so many that a long run would end by them."""
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()


def fingerprint(params: Any) -> str:
    """Hash of all weights, bit for bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(mesh.fetch(params)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _numbers(tree: Any) -> Any:
    """The same with every array as a number or a list, to the last digit."""
    if isinstance(tree, dict):
        return {name: _numbers(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_numbers(value) for value in tree]
    return np.asarray(tree).tolist() if isinstance(tree, (np.ndarray, jax.Array)) else tree


def _brief(numbers: dict[str, Any]) -> str:
    means = {name: float(np.mean(value)) for name, value in numbers.items()}
    return "  ".join(f"{name} {value:.3g}" for name, value in list(means.items())[:4])
