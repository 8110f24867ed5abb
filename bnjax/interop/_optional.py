"""Libraries that only some functions need: imported when called for, with a hint how to install."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, install: str = "'bnjax[interop]'") -> Any:
    """The module of that name.

    Args:
      module: its name.
      install: what pip is to install where it is missing.

    Raises:
      ImportError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}). Install it with pip install {install}."
        ) from error
