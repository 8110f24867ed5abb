"""One table of what was found: printed, written to summary.json, and drawn as bars."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from experiments.benchmarks.claims import SKIPPED, Finding
from experiments.benchmarks.timing import Estimate, geometric_mean, paired_ratios, quartiles
from experiments.common.records import Record

UNIT_WIDTH = 36


class Panel(NamedTuple):
    """Some contestants, a number each, and what the number is made of."""

    title: str
    unit: str
    bars: Mapping[str, Estimate]
    parts: Mapping[str, Mapping[str, Sequence[float]]] = {}  # by contestant and shape: quartiles
    columns: Mapping[str, Mapping[str, float]] = {}  # by contestant and heading: what else is known

    def ordered(self) -> list[tuple[str, Estimate]]:
        """The smallest number first, what is not a number last."""
        return sorted(self.bars.items(), key=lambda bar: (np.isnan(bar[1].value), bar[1].value))

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        bars = {name: bar._asdict() for name, bar in self.bars.items()}
        parts = {name: dict(quarters) for name, quarters in self.parts.items()}
        found = {"title": self.title, "unit": self.unit, "bars": bars, "quartiles": parts}
        columns = {name: dict(values) for name, values in self.columns.items()}
        return found | ({"columns": columns} if columns else {})


def ratio_panel(
    title: str, records: Sequence[Record], names: Iterable[str], baseline: str, **where: Any
) -> Panel:
    """Times as multiples of the baseline's: geometric means, and quartiles of every shape."""
    ratios = {name: paired_ratios(records, name, baseline, **where) for name in names}
    means = {name: geometric_mean(by_shape) for name, by_shape in ratios.items()}
    bars = {name: mean for name, mean in means.items() if mean is not None}
    parts = {n: {shape: quartiles(v) for shape, v in ratios[n].items()} for n in bars}
    return Panel(title, f"time / time of {baseline}", bars, parts)


def contestants_of(records: Sequence[Record], **where: Any) -> list[str]:
    """The names in the records that hold `where`, sorted: the order of turns was shuffled."""
    chosen = (r for r in records if all(r.get(key) == value for key, value in where.items()))
    return sorted({record["contestant"] for record in chosen})


def table(panel: Panel) -> Table:
    """A row a contestant, the smallest number first, and the median of each shape."""
    shapes = _headings(panel.parts)
    others = _headings(panel.columns)
    made = Table(title=panel.title, title_justify="left")
    made.add_column("contestant", no_wrap=True)
    made.add_column(panel.unit, no_wrap=len(panel.unit) < UNIT_WIDTH)
    for shape in shapes:
        made.add_column(shape.replace("x", " "), justify="right")  # a space may end the line
    for heading in others:
        made.add_column(heading, justify="right")
    for name, bar in panel.ordered():
        parts = panel.parts.get(name, {})
        cells = [f"{parts[s][1]:.2f}" if s in parts else "" for s in shapes]
        values = panel.columns.get(name, {})
        cells += [f"{values[heading]:.3g}" if heading in values else "" for heading in others]
        made.add_row(name, with_interval(bar), *cells)
    return made


def _headings(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(heading for each in columns.values() for heading in each))


def claims_table(findings: Sequence[Finding]) -> Table:
    """The closing table."""
    made = Table("claim", "quantity", "bound", "aimed at", "found", "verdict")
    for finding in findings:
        estimate = Estimate(finding.found, finding.low, finding.high)
        found = "" if finding.verdict == SKIPPED else with_interval(estimate)
        aim = "" if finding.aim is None else f"{finding.aim:.4g}"
        figures = f"{finding.bound:.4g}", aim, found
        made.add_row(finding.claim, finding.quantity, *figures, finding.verdict)
    return made


def with_interval(estimate: Estimate) -> str:
    """Such as "0.47 [0.46, 0.48]", without brackets for what has no interval."""
    if np.isnan(estimate.low):
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
