"""What a program does, in the words of its docstring, as HTML."""

import inspect
from functools import cache
from typing import NamedTuple

from markupsafe import Markup

from experiments.registry import Experiment


class How(NamedTuple):
    """Of a program, in reStructuredText."""

    begin: str  # the first paragraph
    rest: str


def how(experiment: Experiment) -> How:
    """The docstring without its first line, which repeats the claim."""
    _, _, text = (inspect.getdoc(experiment.module) or "").partition("\n")
    begin, _, rest = text.strip().partition("\n\n")
    if begin.endswith("::"):  # what it announces belongs to it
        shown, _, rest = rest.partition("\n\n")
        begin = f"{begin}\n\n{shown}"
    return How(begin, rest)


@cache
def as_html(text: str) -> Markup:
    """reStructuredText in HTML."""
    from docutils.core import publish_parts

    settings = {"report_level": 2, "halt_level": 2, "file_insertion_enabled": False}
    body = publish_parts(text, writer="html5", settings_overrides=settings).get("body", "")
    # A line too long for the page is scrolled to by the keyboard too.
    return Markup(
        body.replace('<pre class="literal-block">', '<pre class="literal-block" tabindex="0">')
    )
