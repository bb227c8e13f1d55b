"""What commands say and keep: lines while they work, compiled programs, interrupts, helps."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import rich.console

from famr_jax import __main__ as commands
from famr_jax import progress
from famr_jax.cli import interrupt, programs
from famr_jax.cli import run as command
from famr_jax.cli.flags import BenchFlags
from famr_jax.store import FailedRunError, NonFiniteError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Flags:
    """Settings of no run."""

    bench: BenchFlags = field(default_factory=BenchFlags)


# Where the output is no terminal


@pytest.fixture
def log(monkeypatch):
    """What is said to a console that is no terminal, a line every hundredth of a second."""
    console = rich.console.Console(file=open(os.devnull, "w"), record=True, width=80)  # noqa: SIM115
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    yield console
    console.file.close()


def test_a_long_run_says_where_it_is_with_its_newest_numbers(log):
    with progress.working("oracles class:3 [x]", 50, 2) as tell:
        time.sleep(0.2)
        tell(7, "loss 0.31")
        time.sleep(0.2)
    lines = log.export_text().splitlines()
    assert re.fullmatch(r"oracles class:3 \[x\]  epoch 2/50  0 s  compiling", lines[0])
    assert re.fullmatch(r"oracles class:3 \[x\]  epoch 7/50  0 s  loss 0\.31", lines[-1])


def test_a_phase_without_epochs_speaks_too_and_ends_with_its_seconds(log):
    clock = progress.Clock()
    assert clock.show("evaluate", lambda: time.sleep(0.2) or 5) == 5
    *before, last = log.export_text().splitlines()
    assert before
    assert set(before) == {"evaluate  0 s"}
    assert re.fullmatch(r"evaluate +0\.2 s, and 0\.0 s of compiling", last)


def test_of_phases_within_each_other_the_innermost_speaks(log):
    with progress.working("store"):
        time.sleep(0.1)
        with progress.working("products"):
            time.sleep(0.2)
        time.sleep(0.1)
    lines = log.export_text().splitlines()
    names = [line.split()[0] for line in lines]
    first, last = names.index("products"), len(names) - names[::-1].index("products")
    assert names[0] == names[-1] == "store"
    assert set(names[first:last]) == {"products"}


def test_a_quick_phase_says_its_seconds_alone(log, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 10.0)
    progress.Clock().show("evaluate", lambda: None)
    assert len(log.export_text().splitlines()) == 1


def test_a_terminal_has_a_bar_or_a_spinner_and_no_lines(monkeypatch):
    console = rich.console.Console(file=open(os.devnull, "w"), record=True, force_terminal=True)  # noqa: SIM115
    monkeypatch.setattr(progress, "console", console)
    with progress.working("original", 4) as tell:
        tell(3, "loss 0.3")
    with progress.working("loading") as tell:
        tell(1, "")
    console.file.close()
    assert "3/4" in console.export_text()


# Compiled programs


def compiled(place, factor):
    """Compiles a small program in a place, and whether it was there."""
    hits = []
    listener = lambda event, **_: hits.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(listener)
    with programs.kept(place):
        jax.clear_caches()
        assert float(jax.jit(lambda x: (x * factor).sum())(jnp.ones(3))) == 3 * factor
    jax.monitoring.unregister_event_listener(listener)
    return any(event.endswith("cache_hits") for event in hits)


@pytest.fixture
def no_cache():
    """JAX without a cache of the one who runs the suite."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    programs.compilation_cache.reset_cache()


@pytest.mark.usefixtures("no_cache")
def test_programs_are_kept_whole_and_found_by_the_next_process(tmp_path):
    place = tmp_path / "cache" / "compiled"
    assert not compiled(place, 3.0)
    names = {path.name for path in place.iterdir()}
    assert names
    assert all(name.endswith(programs.ENDING) for name in names)
    assert compiled(place, 3.0)
    assert {path.name for path in place.iterdir()} == names
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("no_cache")
def test_a_program_is_shared_when_it_is_whole_and_not_when_the_process_ends(tmp_path):
    with programs.kept(tmp_path / "compiled"):
        jax.jit(lambda x: x * 7.25)(jnp.ones(3))
        shared = [path for path in (tmp_path / "compiled").iterdir() if path.is_file()]
        assert shared
        (own,) = (tmp_path / "compiled").glob(".of-*")
        assert {path.name for path in shared} <= {path.name for path in own.iterdir()}
        with programs.kept(tmp_path / "other"):
            pass  # JAX's cache is set already: the first one stays
        assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("no_cache")
def test_what_killed_processes_left_is_swept_and_what_lives_stays(tmp_path):
    dead = tmp_path / "compiled" / ".of-dead"
    dead.mkdir(parents=True)
    (dead / ".alive").touch()
    (dead / f"half{programs.ENDING}").write_bytes(b"half of a prog")
    with programs.kept(tmp_path / "compiled"):
        (own,) = (tmp_path / "compiled").glob(".of-*")
        assert own != dead
        programs._sweep(tmp_path / "compiled")  # by another process
        assert own.exists()


@pytest.mark.usefixtures("no_cache")
def test_a_command_that_compiles_nothing_leaves_nothing(tmp_path):
    with programs.kept(tmp_path / "cache" / "compiled"):
        pass
    assert not (tmp_path / "cache").exists()


def test_importing_the_library_sets_no_cache():
    code = "import famr_jax, famr_jax.methods, famr_jax.train, jax\n"
    code += "assert jax.config.jax_compilation_cache_dir is None"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)


@pytest.mark.usefixtures("no_cache")
def test_a_command_keeps_its_programs_beside_its_models(tmp_path):
    args = ["--cache", str(tmp_path / "cache")]
    jax.clear_caches()
    command.main(Flags, lambda _: jax.jit(lambda x: x + 11)(1.0), description="", args=args)
    assert list((tmp_path / "cache" / "compiled").glob(f"*{programs.ENDING}"))


# Ends


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("`lam` must\nbe >= 0."), 2, "error: `lam` must be >= 0."),
        (NonFiniteError("original", 3), 1, "error: original: not finite in epoch 3"),
        (FailedRunError("diverged: FAMR on class:3"), 1, "error: diverged: FAMR on class:3"),
    ],
)
def test_a_run_that_went_wrong_ends_in_one_line_and_a_status(
    tmp_path, capsys, monkeypatch, error, status, words
):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)

    def run(flags):
        raise error

    with pytest.raises(SystemExit) as stop:
        command.main(Flags, run, description="", args=[])
    assert stop.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(words)
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.iterdir())


BUSY = """
import signal, sys, threading, time
import jax, jax.numpy as jnp
from dataclasses import dataclass, field
from pathlib import Path
from famr_jax.cli import run as command
from famr_jax.cli.flags import BenchFlags

@dataclass(frozen=True)
class Flags:
    bench: BenchFlags = field(default_factory=BenchFlags)

def compiling(flags):
    def deep(x):
        for i in range(3000):
            x = jnp.sin(x @ x) + i
        return x
    lowered = jax.jit(deep).lower(jnp.ones((4, 4)))
    print("busy", flush=True)
    lowered.compile()

def tracing(flags):
    print("busy", flush=True)
    while True:
        jax.jit(lambda x: jnp.sin(x) + time.monotonic())(1.0)

def computing(flags):
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda _, y: y * 1.5 - y, x))
    print("busy", flush=True)
    step(1.0).block_until_ready()

def waiting(flags):
    print("busy", flush=True)
    threading.Event().wait()

run = {f.__name__: f for f in (compiling, tracing, computing, waiting)}[sys.argv[1]]
command.main(Flags, run, description="", args=sys.argv[2:])
"""


@pytest.mark.parametrize("doing", ["compiling", "tracing", "computing", "waiting"])
def test_an_interrupt_ends_in_one_line_whatever_xla_does(tmp_path, doing):
    args = [sys.executable, "-c", BUSY, doing, "--cache", str(tmp_path / "cache")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(args, cwd=ROOT, env=dict(os.environ), **pipes)
    assert run.stdout.readline() == "busy\n"
    time.sleep(0.3)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert run.returncode == interrupt.INTERRUPTED
    (line,) = said.splitlines()
    assert line == (
        "interrupted: models that are whole, and of the one in work the last epoch that was saved, "
        f"are kept in {tmp_path / 'cache'}; the same command goes on from there."
    )
    assert time.monotonic() - begun < 20


def test_words_of_an_interrupt_fit_the_command():
    assert command._kept(None) == "nothing of this run is kept but its compiled programs."
    fresh = BenchFlags(fresh=True)
    assert "; the same command without --fresh goes on from there." in command._kept(fresh)


# Helps


def test_helps_name_commands_that_work_and_models_that_are_there(capsys):
    with pytest.raises(SystemExit):
        commands.main(["forget", "--help"])
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for words in (
        "mu, nano, Ti, S, B, L, WIDTHxDEPTH or WIDTHxDEPTHxHEADS",
        "_token, _tanh, _exact or _eps1e-12 behind; resnet18 or resnet18_batchnorm, also with",
        "_WIDTH behind; mlp_SIZExSIZE...; or logistic",
        "--method-lr",
        "--lr",
        "--fresh",
        "--unlearn-batch-size",
        "--list",
        "FILE.py:FUNCTION",
    ):
        assert words in told, words
    assert "--no-fresh" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["famr_jax forget", "experiments.class_forgetting", "experiments.famr.lambda_sweep"]
)
def test_the_help_that_an_error_names_is_one(module):
    words = [sys.executable, "-m", *module.split(), "--nonsense"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stderr
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", said).split())
    found = re.search(r"full helptext, (?:run|see) `?(python -m [\w. ]+ --help)", told)
    assert found, told
    command = [sys.executable, *found[1].split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--model" in done.stdout
