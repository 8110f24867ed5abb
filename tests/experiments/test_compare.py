"""Which verdicts of somebody's results are not those of this project's."""

import json
import shutil

import pytest

from experiments.cli import main
from experiments.common.results import CONFIG, SUMMARY
from experiments.common.verdicts import CLAIM, FAILS
from experiments.report.collect import COMMITTED
from tests._committed import needs_results

pytestmark = needs_results
NAMES = ("epsilon", "transfer")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two results as this project has them."""
    for name in NAMES:
        shutil.copytree(COMMITTED / name, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def claims():
    """How many there are in both results."""
    rows = [row for name in NAMES for row in read(COMMITTED / name / SUMMARY)["claims"]]
    return sum(row["kind"] == CLAIM for row in rows)


def read(path):
    return json.loads(path.read_text())


def test_the_same_results_have_the_same_verdicts(runs, capsys):
    assert main(["compare"]) == 0
    n = claims()
    assert capsys.readouterr().out == f"{n} of {n} verdicts are the same (experiments: 2)\n"


def test_what_moved_is_shown_on_both_sides(runs, capsys):
    summary = read(runs / "epsilon" / SUMMARY)
    row = next(row for row in summary["claims"] if row["kind"] == CLAIM)
    before = row["verdict"]
    row |= {"verdict": FAILS, "found": "another number"}
    (runs / "epsilon" / SUMMARY).write_text(json.dumps(summary))
    assert main(["compare", str(runs)]) == 0
    printed = capsys.readouterr().out
    for words in (f"epsilon: {row['short']}", before, FAILS, "another number"):
        assert words in printed
    n = claims()
    assert f"{n - 1} of {n} verdicts are the same (experiments: 2)" in printed


def test_results_of_other_settings_are_not_compared(runs, capsys):
    for name, change in zip(NAMES, ({"steps": 7}, {"data_note": "another copy"}), strict=True):
        config = read(runs / name / CONFIG)
        config["settings"] |= change
        (runs / name / CONFIG).write_text(json.dumps(config))
    assert main(["compare"]) == 0
    assert "verdicts are the same (experiments: 1)" in capsys.readouterr().out
    assert main(["compare", "runs/epsilon"]) == 2
    assert "none of these results has the settings" in capsys.readouterr().err
