"""The site: every guide's code runs, and what is built needs no network."""

import contextlib
import html
import io
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.registry import EXPERIMENTS
from experiments.site.cells import cells, only_shown
from experiments.site.runner import SOURCE
from tests._committed import needs_results
from tests.test_promises import PUBLIC

GUIDES = sorted(
    path
    for path in SOURCE.rglob("*.md")
    if "file_format: mystnb" in path.read_text(encoding="utf-8")
)
RAISES = "raises-exception"


def guides():
    """The pages with cells; some read the committed results."""
    for path in GUIDES:
        marks = [needs_results] if "read_records" in path.read_text(encoding="utf-8") else []
        yield pytest.param(path, marks=marks, id=f"{path.parent.name}/{path.stem}")


@pytest.mark.parametrize("guide", list(guides()))
def test_the_cells_of_a_guide_run(guide, relaxed):
    """In one namespace, one after the other; those that no reader sees hold what is to be so.

    Under JAX's default rules for dtypes, as readers have them and optax's Adam needs them.
    """
    found = cells(guide.read_text(encoding="utf-8"))
    assert found
    names = {"__name__": "__main__"}
    for cell in (cell for cell in found if not cell.missing):
        expected = pytest.raises(Exception) if RAISES in cell.tags else contextlib.nullcontext()
        with expected, contextlib.redirect_stdout(io.StringIO()):
            exec(compile(cell.code, str(guide), "exec"), names)


def test_a_cell_whose_library_is_not_there_is_shown_and_not_run():
    cell = "```{code-cell} python\n:tags: [%s]\n\nimport %s\n```"
    page = "\n".join(
        cell % (tags, library)
        for tags, library in (
            ("needs-jax", "jax"),
            ("hide-input, needs-nosuchlibrary", "nosuchlibrary"),
            ("remove-cell, needs-nosuchlibrary", "unseen"),
        )
    )
    assert [c.missing for c in cells(page)] == [False, True, True]
    shown = only_shown(page)
    assert [c.code.strip() for c in cells(shown)] == ["import jax"]
    assert "```python\nimport nosuchlibrary\n```" in shown and "unseen" not in shown


class Loads(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        wanted = {"link": "href"}.get(tag, "src")
        if tag != "a":
            self.addresses += [value for name, value in attrs if name == wanted and value]


@needs_results
def test_the_site_is_complete_and_reads_offline(site):
    for name in PUBLIC:
        room, _, last = name.rpartition(".")
        text = (site / "reference" / room / f"{last}.html").read_text()
        assert f'id="{name}"' in text and "[source]" in text, name
    formula = (site / "reference/bnjax/batch_norm.html").read_text()
    assert "<math" in formula and r"\frac" not in formula and "TypeAlias" not in formula
    for experiment in EXPERIMENTS:
        text = (site / "laboratory" / f"{experiment.name}.html").read_text()
        assert 'class="badge' in text and 'data-kind="evidence"' in text
        assert "_static/vega.js" in text and experiment.see in html.unescape(text)
        assert f"python -m experiments run {experiment.name}" in re.sub("<[^>]+>", "", text)
    for page in (page for page in site.rglob("*.html") if "_static" not in page.parts):
        for address in Loads(page).addresses:
            inside = address.startswith(("data:", "#"))
            assert inside or (page.parent / address.split("?")[0]).is_file(), (page, address)


@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the extra site")
def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "letters.txt").write_text("dear")
    assert main(["site", "--out", str(tmp_path)]) == 2
    assert "is no site" in capsys.readouterr().err
    assert (tmp_path / "letters.txt").read_text() == "dear"
