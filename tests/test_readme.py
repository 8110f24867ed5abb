"""The README's code runs, in order, in one process, and prints what it says."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from tests._committed import needs_results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments/benchmarks/results"
ACCURACY = "cpu-amd-epyc-2-cores/accuracy"
LAYER, MEMORY = "cpu-amd-epyc-2-cores/layer", "cpu-amd-epyc-2-cores/memory"
COMPILED = "compiled-tpu-v5e-h100/accelerators"
TIMED = "nvidia-h100/steps"

# Rows of the table whose figures a benchmark wrote down: where, in which panel, in what unit.
MEASURED = {
    "error on data 0 standard deviations from zero ²": (ACCURACY, "data 0 standard", ""),
    "100": (ACCURACY, "data 100 standard", ""),
    "10,000": (ACCURACY, "data 10000 standard", ""),
    "1,000,000": (ACCURACY, "data 1e+06 standard", ""),
    "ResNet-50, time of a training step on an H100 GPU ³": (TIMED, "NVIDIA H100 80GB HBM3: R", ""),
    "transformers with layer norm, the same": (TIMED, "NVIDIA H100 80GB HBM3: transformer, l", ""),
    "ResNet-50 for a TPU v5e, bytes accessed ⁴": (COMPILED, "TPU v5e: ResNet-50", "bytes accessed"),
    "– estimated cycles": (COMPILED, "TPU v5e: ResNet-50", "estimated cycles"),
    "one layer on a CPU, time beside four bare loops ⁵": (LAYER, "training", ""),
    "kept for the backward pass, × a bfloat16 `x` ⁶": (MEMORY, "kept for the backward pass, b", ""),
}
COLUMNS = {
    "bnjax": ("bnjax", "bnjax linen"),
    "flax": ("flax linen",),
    "flax ¹": ("flax linen (two-pass)",),
    "haiku": ("haiku",),
    "equinox": ("equinox",),
    "keras": ("keras",),
    "torch": ("torch",),
}


def test_code_blocks_run_and_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), names)
        said = re.findall(r"^# (.+)$", block, re.M)
        assert printed.getvalue().splitlines() == said


def test_both_commands_set_themselves_up():
    for name in ("run", "test"):
        (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*)\n```", README)
        assert command.startswith("python3 -m venv --upgrade-deps .venv && ")
        assert "uv" in command and "-c requirements.lock -e . --group" in command


def test_it_is_short_and_has_the_words_that_are_searched_for():
    assert README.count("\n") < 180
    for word in ("GPU", "sync", "accumulate", "collapse", "migrate", "dropout"):
        assert word.lower() in README.lower(), word


def test_links_into_the_site_lead_to_its_pages():
    pages = set(re.findall(r"https://bnjax\.readthedocs\.io/en/latest/([\w/-]+)\.html", README))
    written = pages - {"laboratory", "reference/index"}  # the build makes these
    assert len(written) > 10
    missing = [page for page in written if not (ROOT / f"experiments/site/{page}.md").is_file()]
    assert missing == []


@needs_results
def test_the_picture_is_there():
    pictures = re.findall(r'<img src="(.*?)"', README)
    assert pictures and all((ROOT / picture).stat().st_size > 10_000 for picture in pictures)


def table():
    """The comparison: row -> column -> cell."""
    lines = [line for line in README.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert head[1:] == list(COLUMNS)
    return {name: dict(zip(COLUMNS, cells, strict=True)) for name, *cells in rows}


@needs_results
@pytest.mark.parametrize("row", MEASURED)
def test_the_figures_are_those_of_the_results(row):
    folder, title, unit = MEASURED[row]
    panels = json.loads((RESULTS / folder / "summary.json").read_text())["panels"]
    (panel,) = (p for p in panels if p["title"].startswith(title) and p["unit"].startswith(unit))
    for column, cell in table()[row].items():
        bar = next((panel["bars"][n] for n in COLUMNS[column] if n in panel["bars"]), None)
        assert cell == ("" if bar is None else shown(bar["value"], cell)), column


def shown(value, like):
    """`value` as the README writes figures: as many decimals as there are, or a power of ten."""
    if value is None:
        return "NaN"
    if "e" in like:
        return re.sub(r"e-0*", "e-", re.sub(r"e\+0*(?=\d)", "e+", f"{value:.0e}"))
    return f"{value:.{len(like.partition('.')[2])}f}"
