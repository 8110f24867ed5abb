"""The README's code runs, in order, in one process, and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_code_blocks_run_and_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), names)
        said = re.findall(r"^# (.+)$", block, re.M)
        assert printed.getvalue().splitlines() == said


def test_pictures_exist():
    root = Path(__file__).parent.parent
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures and all((root / picture).stat().st_size > 10_000 for picture in pictures)


def test_both_commands_set_themselves_up():
    for name in ("run", "test"):
        (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*)\n```", README)
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
