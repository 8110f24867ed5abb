"""The site: every guide's code runs, and what is built needs no network."""

import contextlib
import io
import re

import pytest

from experiments.site.runner import SOURCE

GUIDES = sorted(
    path
    for path in SOURCE.rglob("*.md")
    if "file_format: mystnb" in path.read_text(encoding="utf-8")
)
CELL = re.compile(r"^```\{code-cell\}.*\n((?::.*\n)*)((?:.*\n)*?)```$", re.M)
RAISES = "raises-exception"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_cells_of_a_guide_run(guide, relaxed):
    """In one namespace, one after the other; those that no reader sees hold what is to be so.

    Under JAX's default rules for dtypes, as readers have them and optax's Adam needs them.
    """
    cells = CELL.findall(guide.read_text(encoding="utf-8"))
    assert cells
    names = {"__name__": "__main__"}
    for options, code in cells:
        expected = pytest.raises(Exception) if RAISES in options else contextlib.nullcontext()
        with expected, contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, str(guide), "exec"), names)
