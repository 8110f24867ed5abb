"""Templates of jinja2, in which a name that does not exist is an error and not empty.

`citations` cuts a source into pieces, those that cite something with what that is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.papers import citations


def templates(folder: Path, autoescape: bool, **filters: Callable[..., Any]) -> Environment:
    """Those in `folder`, with `filters` for words; `autoescape` is for HTML."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"citations": citations, **filters}
    return environment
