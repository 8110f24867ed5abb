"""Which verdicts move: results made elsewhere beside those of this project."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from experiments.common.errors import UserError
from experiments.common.progress import make_console
from experiments.common.verdicts import CLAIM
from experiments.options import Compare
from experiments.report.collect import COMMITTED, Result, collect


class Pair(NamedTuple):
    """A claim that was judged twice, each time as in a summary.json."""

    experiment: str
    here: dict[str, Any]
    committed: dict[str, Any]

    @property
    def moved(self) -> bool:
        """Whether the verdicts differ."""
        return self.here["verdict"] != self.committed["verdict"]


def run(options: Compare) -> None:
    """Prints the claims whose verdicts differ, and how many there are of how many."""
    found = list(pairs(collect(options.folders or [Path("runs")]), collect([COMMITTED])))
    if not found:
        raise UserError("none of these results has the settings of one of this project's")
    moved = [pair for pair in found if pair.moved]
    table = Table("claim", "in this project", "here", show_lines=True)
    for pair in moved:
        sides = (f"{row['verdict']}\n{row['found']}" for row in (pair.committed, pair.here))
        table.add_row(f"{pair.experiment}: {pair.here['short']}", *sides)
    console = make_console()
    if moved:
        console.print(table)
    experiments = len({pair.experiment for pair in found})
    same = len(found) - len(moved)
    console.print(f"{same} of {len(found)} verdicts are the same (experiments: {experiments})")


def pairs(here: Iterable[Result], committed: Iterable[Result]) -> Iterator[Pair]:
    """The claims of results that were run with the same settings."""
    known = {_settings(result): result for result in committed}
    for result in here:
        other = known.get(_settings(result))
        if other is None:
            continue
        rows = {row["short"]: row for row in other.summary["claims"]}
        for row in result.summary["claims"]:
            if row["kind"] == CLAIM and row["short"] in rows:
                yield Pair(result.experiment.name, row, rows[row["short"]])


def _settings(result: Result) -> tuple[str, str]:
    """What must be the same; the note says what data were like, and changes nothing."""
    settings = {k: v for k, v in result.config["settings"].items() if k != "data_note"}
    return result.experiment.name, repr(sorted(settings.items()))
