"""`python -m experiments`."""

import os
import sys

from experiments.common import interrupts

interrupts.leave_at_once("interrupted before anything was begun")

from experiments.cli import main  # noqa: E402 (from here on Ctrl-C is heard)

code = main()
interrupts.ignore()
if code:
    # XLA's threads may still be computing, and crash when the interpreter is taken down under them;
    # orbax's may be waiting for a disk that failed.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)
sys.exit(code)
