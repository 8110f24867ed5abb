"""Templates of jinja2, in which a name that does not exist is an error and not empty."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(folder: Path, autoescape: bool, **filters: Callable[..., Any]) -> Environment:
    """Those in `folder`, with `filters` for words; `autoescape` is for HTML."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment
