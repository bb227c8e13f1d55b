"""What an interrupt from the keyboard does to a command: one line, exit 130, at any moment."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

INTERRUPTED = 130
"""The exit status of a command that SIGINT ended, by the custom of shells."""


@contextlib.contextmanager
def ends_at_once(words: str) -> Iterator[None]:
    """Within it, SIGINT prints one line and ends the process with the status 130.

    Args:
        words: What is kept, and how to go on.
    """
    # Python would raise KeyboardInterrupt wherever it is, also in a callback of XLA's compiler,
    # which then crashes, and not before that compiler returns. So nothing is raised: the system's
    # handler writes to a pipe, and a thread that reads it ends the process while XLA goes on
    # compiling. Nothing needs to be put away, as for a SIGKILL: every file appears whole by a
    # rename, and the system lets go of the locks.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    line = f"interrupted: {words}\n"
    if sys.stderr.isatty():
        line = f"\r\x1b[K{line}\x1b[?25h"  # a bar or spinner hid the cursor

    def listen() -> None:
        while number := os.read(heard, 1):
            if number[0] == signal.SIGINT:
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
                os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, lambda *_: None)
    waking = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(waking)
        signal.signal(signal.SIGINT, before)
        os.close(told)
        listener.join()
        os.close(heard)
