"""The reference, written from what the package publishes: a page a room, and a page a name."""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

import bnjax
from experiments.papers import citations
from experiments.site.pages import environment, write_page

# What Sphinx makes of names and defaults in signatures, and what people write.
PLAIN = (
    (r"TypeAliasForwardRef\('(\w+)'\)", r"\1"),
    (r"<class '(?:jax\.numpy)?\.?(\w+)'>", r"\1"),
    (r"<function (\w+)[^>]*>", r"\1"),
    (r"parent: [^=]* = <[^>]*>, name: str \| None = None(, )?", ""),  # of every Flax module
)


class Entry(NamedTuple):
    """A public name."""

    room: str
    name: str
    thing: Any

    @property
    def path(self) -> str:
        """As users import it."""
        return f"{self.room}.{self.name}"

    @property
    def kind(self) -> str:
        """What autodoc calls it."""
        if isinstance(self.thing, type):
            return "class"
        return "function" if callable(self.thing) else "data"

    @property
    def fields(self) -> list[str]:
        """Of a named tuple or a dataclass; its docstring tells what they are."""
        names = getattr(self.thing, "_fields", ())
        return [*names, *getattr(self.thing, "__dataclass_fields__", ())]

    @property
    def home(self) -> str:
        """Where it is defined, as annotations name it."""
        module = getattr(self.thing, "__module__", self.room)
        return f"{module}.{getattr(self.thing, '__qualname__', self.name)}"


def rooms() -> dict[str, list[Entry]]:
    """The public names of every room, in the order in which the package's docstring tells them."""
    packages = [i.name for i in pkgutil.iter_modules(bnjax.__path__, "bnjax.") if i.ispkg]
    modules = [bnjax, *map(importlib.import_module, packages)]
    known = [m for m in modules if m is bnjax or m.__name__ in (bnjax.__doc__ or "")]
    known.sort(key=lambda module: (bnjax.__doc__ or "").find(module.__name__))
    return {m.__name__: [Entry(m.__name__, n, getattr(m, n)) for n in m.__all__] for m in known}


def write(folder: Path) -> None:
    """Puts the pages into `folder`."""
    pages, found = environment(), rooms()
    write_page(folder / "index.rst", pages.get_template("rooms.rst").render(rooms=found))
    for room, entries in found.items():
        text = pages.get_template("room.rst").render(room=room, entries=entries)
        write_page(folder / f"{room}.rst", text)
        for entry in entries:
            text = pages.get_template("name.rst").render(entry=entry)
            write_page(folder / room / f"{entry.name}.rst", text)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Writes the pages when a build begins, and resolves what annotations refer to."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference"))
    app.connect("autodoc-process-signature", _plain)
    app.connect("autodoc-process-docstring", _cited)
    app.connect("missing-reference", _public)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _plain(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, *parts: str | None
) -> tuple[str | None, ...]:
    """Signature and what it returns, as somebody would write them."""
    for pattern, plain in PLAIN:
        parts = tuple(part and re.sub(pattern, plain, part) for part in parts)
    return parts


def _cited(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Links what a docstring cites."""
    pieces = citations("\n".join(lines))
    text = "".join(f"`{piece} <{work.address}>`__" if work else piece for piece, work in pieces)
    lines[:] = text.splitlines()


def _public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """A link to the public name of what was referred to by the place where it is defined."""
    names = {entry.home: entry.path for entries in rooms().values() for entry in entries}
    target = names.get(node.get("reftarget", ""))
    if target is None:
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)
