"""Libraries that only some functions need: imported when called for, their errors in one line."""

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


def one_line(error: Exception) -> str:
    """What another library has to say, without its pages, as the end of a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 200 else text[:197] + "...").rstrip(".:")
