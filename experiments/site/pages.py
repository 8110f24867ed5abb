"""Pages that are written by templates, in reStructuredText."""

from pathlib import Path

from jinja2 import Environment
from sphinx.util import rst

from experiments.common.templates import templates

TEMPLATES = Path(__file__).with_name("templates")


def environment() -> Environment:
    """The templates; `rst` makes any words plain, `heading` underlines a title."""
    return templates(TEMPLATES, autoescape=False, rst=rst.escape, heading=heading)


def heading(text: str, line: str = "=") -> str:
    """A title, underlined."""
    return f"{text}\n{line * rst.textwidth(text)}"


def write_page(path: Path, text: str) -> None:
    """`text` as the page at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
