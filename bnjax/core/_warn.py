"""Warnings that name the user's line, however deep in layers and transformations they arise."""

from __future__ import annotations

import sys
import warnings

# Python 3.12 has warnings.warn(skip_file_prefixes=...) for this.
INSIDE = frozenset({"bnjax", "jax", "flax", "functools", "contextlib"})


def warn(message: str) -> None:
    """Issue a ``UserWarning`` at the innermost line that is none of this library, JAX or Flax."""
    frame, level = sys._getframe(), 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
