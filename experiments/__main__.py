"""`python -m experiments`."""

import os
import sys

from experiments.cli import INTERRUPTED, main

code = main()
if code == INTERRUPTED:
    # XLA's threads may still be computing, and crash when the interpreter is taken down under them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
