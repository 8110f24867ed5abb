"""Ctrl-C at any moment: one line and an exit code, and never unheard.

Python turns Ctrl-C into an exception wherever it happens to be. In the import of a compiled module
that becomes an `ImportError`; in a callback of the garbage collector, which JAX has, it is printed
and lost.
"""

import os
import signal
import threading
from types import FrameType

INTERRUPTED = 130  # exit code
AGAIN_SECONDS = 0.05


def leave_at_once(line: str) -> None:
    """Until `raise_again`, Ctrl-C prints `line` and ends the process: for a start that holds
    nothing yet, and imports."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, line.encode() + b"\n")
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, leave)


def raise_again() -> None:
    """From now on Ctrl-C is a `KeyboardInterrupt`, but not where that would be lost.

    Only in the main thread of a process that `leave_at_once` was called in.
    """
    if getattr(signal.getsignal(signal.SIGINT), "__module__", None) == __name__:
        signal.signal(signal.SIGINT, _raise)


def ignore() -> None:
    """All is done: Ctrl-C changes nothing any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name == "_xla_gc_callback":
            threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
