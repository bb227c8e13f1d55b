"""A command in several processes: joined, on one mesh, the first speaking, ended together."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from famr_jax import mesh
from famr_jax.progress import console


@contextlib.contextmanager
def on_devices(named: str | None) -> Iterator[None]:
    """What runs within runs on the mesh named, in all processes that `mesh.join` finds.

    Args:
        named: As `mesh.parse` takes it; None for one device, in one process.

    Raises:
        ValueError: Several processes and no mesh; what `mesh.join` and `mesh.parse` refuse.
    """
    several = mesh.join()
    if several and named is None:
        rule = f"must name devices of all {jax.process_count()} processes"
        raise ValueError(f"`mesh` {rule}, as data={jax.device_count()}, got none.")
    with contextlib.ExitStack() as stack:
        if named is not None:
            stack.enter_context(jax.set_mesh(mesh.parse(named)))
        if not several:
            yield
            return
        if not mesh.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            console.quiet = True
            stack.callback(setattr, console, "quiet", False)
        yield
        mesh.first(0)  # the first may have a page to write yet


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Ends this process at once if what runs within fails and others are joined to it.

    An ordinary end waits for all to reach theirs. Of a sudden one the others hear: by the
    connection that is lost, or by `mesh.SECONDS_OF_SILENCE` without a sign of life.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        code = error.code if isinstance(error, SystemExit) else 1
        place = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"error: {place} ended, or another did; all end.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else code is not None)
