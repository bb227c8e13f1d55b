"""How a command runs: flags from the command line, and one line for an error."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from famr_jax.cli import interrupt, programs
from famr_jax.cli.processes import ended_together, on_devices
from famr_jax.files import usable_directory
from famr_jax.progress import console
from famr_jax.store import FailedRunError, NonFiniteError

Flags = TypeVar("Flags")

CACHE = Path("runs/cache")
"""Where compiled programs are kept by a command without a `cache` of its own."""


@ended_together()
def main(
    flags: type[Flags],
    run: Callable[[Flags], Any],
    *,
    description: str | None,
    args: list[str] | None = None,
    prog: str | None = None,
    default: Flags | None = None,
) -> None:
    """Parses the command line into a frozen dataclass and runs the command.

    Runs on the devices that the flag `mesh` of a bench names, in every process that `mesh.join`
    finds; the first one speaks. Keeps compiled programs beside its models. Exits 2 with one line on
    bad input, 1 if a run went wrong, 130 at an interrupt.

    Args:
        flags: The dataclass.
        run: The command.
        description: What its help says.
        args: Words of the command line; those of the process if not given.
        prog: The command in words; that of the process if not given.
        default: Flags where the command line says nothing, if not their own defaults.
    """
    parsed: Any = tyro.cli(  # whose types take a default of None for a result
        flags,
        prog=prog or _command(),
        args=args,
        description=description,
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    bench = getattr(parsed, "bench", None)
    devices = getattr(bench, "mesh", None)
    cache = getattr(bench, "cache", CACHE)
    try:
        # Processes are joined before anything asks for a device, as the cache's directory does.
        with (
            interrupt.ends_at_once(_kept(bench)),
            on_devices(devices),
            programs.kept(usable_directory("cache", cache) / "compiled"),
        ):
            run(parsed)
    except ValueError as error:
        _tell(error)
        raise SystemExit(2) from error
    except (NonFiniteError, FailedRunError) as error:
        _tell(error)
        raise SystemExit(1) from error


def _command() -> str | None:
    """What was typed, as `python -m experiments.class_forgetting`, where a module is run so."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec and f"python -m {spec.name.removesuffix('.__main__')}"


def _kept(bench: Any) -> str:
    if bench is None:
        return "nothing of this run is kept but its compiled programs."
    again = "the same command without --fresh" if bench.fresh else "the same command"
    return (
        "models that are whole, and of the one in work the last epoch that was saved, are kept in "
        f"{bench.cache}; {again} goes on from there."
    )


def _tell(error: Exception) -> None:
    """One line, however narrow the terminal or the log is."""
    words = " ".join(str(error).splitlines())
    console.print(f"error: {words}", style="red", markup=False, soft_wrap=True)
