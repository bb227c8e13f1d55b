"""What a run says while it works: bars on a terminal, else a line in ten seconds; and a clock."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.monitoring
import rich.console
import rich.markup
import rich.progress

console = rich.console.Console(stderr=True)

SECONDS_BETWEEN_LINES = 10.0
"""How long a run is silent at most where its output is no terminal."""

Tell = Callable[[int, str], None]
"""`tell(done, words)`: how many of the epochs are done, and the newest numbers."""

_shown: list[Callable[[str], None]] = []
"""What shows further words, by phase that works; the innermost last."""


@contextlib.contextmanager
def working(name: str, total: int | None = None, done: int = 0) -> Iterator[Tell]:
    """Shows that a phase runs: a bar or a spinner on a terminal, else a line every ten seconds.

    The lines come from a thread of their own, so that compilation and a long epoch speak as well.

    Args:
        name: What runs.
        total: How many epochs there are, if it runs in epochs.
        done: How many are done already.
    """
    if not console.is_terminal:
        shown = _lines(name, total, done)
    else:
        shown = _spinner(name) if total is None else _bar(name, total, done)
    with shown as (tell, show):
        _shown.append(show)
        try:
            yield tell
        finally:
            _shown.remove(show)


@contextlib.contextmanager
def _lines(name, total, done):
    said, more = [done, "compiling" if total else ""], [""]
    begun, over = time.monotonic(), threading.Event()

    def tell(done, words):
        said[:] = done, words

    def show(words):
        more[:] = [words]

    def speak():
        while not over.wait(SECONDS_BETWEEN_LINES):
            if _shown[-1:] != [show]:
                continue  # a phase within this one speaks
            epoch = f"epoch {said[0]}/{total}" if total else ""
            seconds = f"{time.monotonic() - begun:.0f} s"
            words = filter(None, (name, epoch, seconds, said[1], *more))
            console.print("  ".join(words), **_AS_IT_IS)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield tell, show
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _spinner(name):
    def tell(*_):
        pass

    with console.status(rich.markup.escape(name)) as status:
        yield tell, lambda words: status.update(rich.markup.escape(f"{name}  {words}"))


@contextlib.contextmanager
def _bar(name, total, done):
    columns = (
        rich.progress.TextColumn("{task.description:<28}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}"),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total, completed=done, numbers="compiling")

        def tell(done, words):
            bar.update(task, completed=done, numbers=words)

        def show(words):
            bar.update(task, numbers=words)

        yield tell, show


class Pass:
    """A pass over images on disk, which says how far it is while it works.

    To the phase that `working` shows, if there is one; else in a line every ten seconds, whether
    one pass takes longer or many follow one another.
    """

    _said = _heard = -math.inf

    def __init__(self, total: int):
        self.total, self.begun = total, time.monotonic()
        if self.begun - Pass._heard > SECONDS_BETWEEN_LINES:
            Pass._said = self.begun

    def tell(self, done: int) -> None:
        """Says how many images are done."""
        now = Pass._heard = time.monotonic()
        words = f"{done}/{self.total} images of a pass, {now - self.begun:.0f} s"
        if _shown:
            _shown[-1](words)
        elif now - Pass._said >= SECONDS_BETWEEN_LINES:
            Pass._said = now
            console.print(words, **_AS_IT_IS)


_AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


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
        """`time` with a spinner or lines while it runs, and a line when it is done."""
        with working(phase):
            result = self.time(phase, function)
        self.tell(phase)
        return result

    def tell(self, phase: str, found: str = "") -> None:
        """One line: the seconds that a phase took, or what was found of it."""
        booked = self.phases.get(phase, {"run": 0.0, "compile": 0.0})
        seconds = f"{booked['run']:.1f} s, and {booked['compile']:.1f} s of compiling"
        console.print(f"{phase:<28} {found or seconds}", **_AS_IT_IS)


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
        Clock._compile_seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_on_duration)
