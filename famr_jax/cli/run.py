"""How a command runs: flags from the command line, and one line for an error."""

from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from famr_jax.cli.processes import ended_together, on_devices
from famr_jax.store import NonFiniteError, console

Flags = TypeVar("Flags")


@ended_together()
def main(
    flags: type[Flags],
    run: Callable[[Flags], Any],
    *,
    description: str,
    args: list[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parses the command line into a frozen dataclass and runs the command.

    Runs on the devices that the flag `mesh` of a bench names, in every process that `mesh.join`
    finds; the first one speaks. Exits 2 with one line on bad input, 1 if a run turned non-finite.
    """
    parsed = tyro.cli(
        flags,
        prog=prog,
        args=args,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    devices = getattr(getattr(parsed, "bench", None), "mesh", None)
    try:
        with on_devices(devices):
            run(parsed)
    except ValueError as error:
        _tell(error)
        raise SystemExit(2) from error
    except NonFiniteError as error:
        _tell(error)
        raise SystemExit(1) from error


def _tell(error: Exception) -> None:
    """One line, however narrow the terminal or the log is."""
    words = " ".join(str(error).splitlines())
    console.print(f"error: {words}", style="red", markup=False, soft_wrap=True)
