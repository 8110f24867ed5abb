"""What was counted of programs for accelerators, contestant by contestant: the panels."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.benchmarks.contestants import FLAX
from experiments.benchmarks.counted import (
    ACCESSED,
    BRANCHES,
    COLLECTIVES,
    COUNTED,
    CYCLES,
    HBM,
    INSIDE,
    KERNELS,
    QUANTITIES,
)
from experiments.benchmarks.panels import Panel
from experiments.benchmarks.programs import BOTH, DTYPES, FORWARD, SHARDED
from experiments.benchmarks.timing import Estimate
from experiments.common.records import Record

Group = Sequence[Record]


def compared(records: Sequence[Record]) -> list[Panel]:
    """One panel a program and target, more at the end; what differs in its norm stands together."""
    made, more = [], []
    for (target, program), group in groups(records, _family).items():
        show = {FORWARD: _layers, BOTH: _layers, SHARDED: _meshed}.get(program, _networks)
        first, *others = show(f"{target}: {program}", group, groups(group, _label))
        made.append(first)
        more.extend(others)
    return made + more


def groups(records: Group, key: Callable[[Record], str]) -> dict[tuple[str, str], list[Record]]:
    """What was counted, by target and what `key` makes of a record, in the order of records."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["part"] == COUNTED:
            found.setdefault((record["target"], key(record)), []).append(record)
    return found


def ratios(own: Group, group: Group, quantity: str, baseline: str = FLAX) -> list[float]:
    """To the baseline's, of each program, shape and dtype that both have."""
    theirs = {_case(r): r.get(quantity) for r in group if r["contestant"] == baseline}
    pairs = ((r.get(quantity), theirs.get(_case(r))) for r in own)
    return [ours / base for ours, base in pairs if ours and base]


Contestants = dict[tuple[str, str], list[Record]]  # by target, which is the same, and label


def _layers(title: str, group: Group, by_label: Contestants) -> list[Panel]:
    """Bytes as multiples of x, means over the shapes and the largest; cycles as those of Flax's."""
    bars, columns = {}, {}
    for (_, label), own in by_label.items():
        of_x = {d: [r[HBM] / r["size"] for r in own if r["dtype"] == d] for d in DTYPES}
        means = {f"mean, {d}": _mean(values) for d, values in of_x.items() if values}
        most = {f"most, {d}": max(values) for d, values in of_x.items() if values}
        bars[label] = Estimate(means.pop(f"mean, {DTYPES[0]}"))
        cycles = ratios([r for r in own if r["dtype"] == DTYPES[0]], group, CYCLES)
        columns[label] = ({CYCLES: _mean(cycles)} if cycles else {}) | most | means
    return [Panel(title, f"{HBM} / bytes of x, {DTYPES[0]}", bars, columns=columns)]


def _networks(title: str, group: Group, by_label: Contestants) -> list[Panel]:
    """Counts as multiples of Flax's, of bytes and where there are some of cycles: they differ."""
    columns: dict[str, dict[str, float]] = {}
    for (_, label), own in by_label.items():
        of_flax = {q: ratios(own, group, q) for q in QUANTITIES}
        means = {quantity: _mean(values) for quantity, values in of_flax.items() if values}
        branches = {"GB in branches": own[0][BRANCHES] / 1e9}
        columns[label] = means | branches | {KERNELS: own[0][KERNELS]}
    made = []
    for quantity in (ACCESSED, CYCLES):
        bars = {n: Estimate(found[quantity]) for n, found in columns.items() if quantity in found}
        if bars:
            unit = f"{quantity} / those of {FLAX}"
            made.append(Panel(title, unit, bars, columns={} if made else _less(columns, quantity)))
    return made


def _meshed(title: str, group: Group, by_label: Contestants) -> list[Panel]:
    """Collectives of forward and backward, and bytes of a device as multiples of Flax's."""
    bars, columns = {}, {}
    for (_, label), own in by_label.items():
        bars[label] = Estimate(own[0][COLLECTIVES])
        columns[label] = {"in branches": own[0][INSIDE], HBM: _mean(ratios(own, group, HBM))}
    return [Panel(title, f"{COLLECTIVES}, forward and backward", bars, columns=columns)]


def _less(columns: dict[str, dict[str, float]], heading: str) -> dict[str, dict[str, float]]:
    return {n: {h: v for h, v in found.items() if h != heading} for n, found in columns.items()}


def _family(record: Record) -> str:
    """The program, whatever its norm."""
    return record["program"].partition(", ")[0]


def _label(record: Record) -> str:
    """The contestant, and the norm where that is not the same for all."""
    return record["contestant"] + record["program"].removeprefix(_family(record))


def _case(record: Record) -> tuple[str, str, str]:
    return record["program"], record["shape"], record["dtype"]


def _mean(values: Sequence[float]) -> float:
    """Geometric."""
    return float(np.exp(np.mean(np.log(values))))
