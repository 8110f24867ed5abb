"""The cells of a page: code that is run by the build and by the tests.

A cell with the tag ``needs-LIBRARY`` is run where that library is installed; elsewhere the site
shows its code and not what it prints.
"""

import re
from importlib.util import find_spec
from typing import NamedTuple

CELL = re.compile(r"^```\{code-cell\}.*\n((?::.*\n)*)((?:.*\n)*?)```$", re.M)
TAGS = re.compile(r"^:tags: \[(.*)\]$", re.M)
NEEDS, UNSEEN = "needs-", "remove-cell"


class Cell(NamedTuple):
    """Code and its tags."""

    code: str
    tags: frozenset[str]

    @property
    def missing(self) -> bool:
        """Whether a library that it needs is not installed."""
        needed = (tag.removeprefix(NEEDS) for tag in self.tags if tag.startswith(NEEDS))
        return any(find_spec(library) is None for library in needed)


def cells(page: str) -> list[Cell]:
    """Those of the text of a page, in order."""
    return [_cell(found) for found in CELL.finditer(page)]


def only_shown(page: str) -> str:
    """The text of a page with plain code in the place of cells that cannot be run here."""

    def instead(found: re.Match[str]) -> str:
        cell = _cell(found)
        if not cell.missing:
            return found[0]
        return "" if UNSEEN in cell.tags else f"```python\n{cell.code.strip()}\n```"

    return CELL.sub(instead, page)


def _cell(found: re.Match[str]) -> Cell:
    tags = TAGS.search(found[1])
    return Cell(found[2], frozenset(re.split(r",\s*", tags[1]) if tags else ()))
