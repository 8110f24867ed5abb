"""Pages that are written by templates, in reStructuredText."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx.util import rst

TEMPLATES = Path(__file__).with_name("templates")


def environment() -> Environment:
    """The templates; `rst` makes any words plain, `heading` underlines a title."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rst": rst.escape, "heading": heading}
    return environment


def heading(text: str, line: str = "=") -> str:
    """A title, underlined."""
    return f"{text}\n{line * rst.textwidth(text)}"


def write_page(path: Path, text: str) -> None:
    """`text` as the page at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
