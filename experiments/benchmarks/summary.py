"""What summary.json holds, and how claims are judged anew when their bounds have changed.

The quantities that claims are about are kept in it with their intervals, so no measurement is
needed: `python -m experiments.benchmarks.summary FOLDER ...` writes the files again.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from operator import eq
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.benchmarks.claims import RULE, SKIPPED, UNDECIDED, Finding, check, misses_aim
from experiments.benchmarks.panels import with_interval
from experiments.benchmarks.timing import Estimate
from experiments.common import results
from experiments.common.records import without_nan

COMMITTED = Path(__file__).parent / "results"  # a folder for each machine, or for none


def module_of(name: str) -> ModuleType:
    """The benchmark of this name."""
    return import_module(f"experiments.benchmarks.{name}")


def summary(name: str, findings: Sequence[Finding], panels: list[Any]) -> dict[str, Any]:
    """The content of summary.json; `panels` as JSON."""
    rows = [finding._asdict() for finding in findings]
    return without_nan({"benchmark": name, "claims": rows, "rule": RULE, "panels": panels})


def judge(content: Mapping[str, Any]) -> list[Finding]:
    """The findings of what a summary says was found, by the claims of today."""
    measured = [row for row in content["claims"] if row["verdict"] != SKIPPED]
    estimates = {
        row["quantity"]: Estimate(*(_number(row[key]) for key in ("found", "low", "high")))
        for row in measured
    }
    return check(module_of(content["benchmark"]).CLAIMS, estimates)


def rejudged(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same summary with the findings of today."""
    return summary(content["benchmark"], judge(content), content["panels"])


def aims_table(folder: Path = COMMITTED) -> str:
    """The aims that the results in the folders of `folder` do not reach, in Markdown."""
    lines = ["| result | claim | bound | aimed at | found | verdict |", "|---|---|---|---|---|---|"]
    for path, finding in _missed(folder):
        found = with_interval(Estimate(finding.found, finding.low, finding.high))
        figures = f"{finding.bound:.4g} | {finding.aim:.4g} | {found}"
        lines.append(f"| `{path}` | {finding.claim} | {figures} | {finding.verdict} |")
    return "\n".join(lines)


def aims_in_words(folder: Path = COMMITTED) -> str:
    """The same as one sentence, where what was said just before is not said again."""
    by_path: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for path, finding in _missed(folder):
        words = finding.quantity.split(", ")
        known = [*map(eq, before.get(path, []), words[:-1]), False].index(False)
        aim = f"aim {finding.aim:.4g}{', undecided' * (finding.verdict == UNDECIDED)}"
        new = f"{', '.join(words[known:])} {finding.found:.2f} ({aim})"
        by_path.setdefault(path, []).append(new)
        before[path] = words
    return "; ".join(f"`{path}`: {', '.join(words)}" for path, words in by_path.items())


def _missed(folder: Path) -> Iterable[tuple[str, Finding]]:
    for path in sorted(folder.glob(f"*/*/{results.SUMMARY}")):
        for finding in judge(results.read_json(path)):
            if misses_aim(finding):
                yield path.parent.name, finding


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.summary",
        description="Judge finished benchmarks again, by the claims of today.",
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="of a result")
    for folder in parser.parse_args().folders:
        file = folder / results.SUMMARY
        results.write_json(file, rejudged(results.read_json(file)))
