"""What the records hold of every network, through training and by learning rate, for the charts.

A network that was trained at every rate of a grid is one network with several histories; splits of
the data are more of the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from experiments.common.histories import final_mean
from experiments.common.records import Record
from experiments.common.scales import PERCENTILES
from experiments.common.settings import Settings
from experiments.common.sweep import VALIDATION, best_rate, by_accuracy, by_speed
from experiments.report.axes import (
    FIRST,
    FIRST_GROUP,
    FLOORS,
    RATE,
    SOONEST,
    Axis,
    axis,
    group,
    in_words,
    label,
)

TRIAL = re.compile(r"(?P<network>.*?)(, rate (?P<rate>[^,]+))?(, split \d+)?")
SPREAD = re.compile(rf"(?P<name>\w+)_(?P<layer>\d+)_(?P<q>{'|'.join(map(str, PERCENTILES))})")
# Of images held out, what is shown is the accuracy at the end, by learning rate.
LEFT_OUT = re.compile(r"seed|step|test_loss|doubled|kept_.*")
MOST_STEPS = 32  # of a line
MANY_TIMES = 30  # from the least to the largest, from which on a scale is logarithmic
Numbers = Mapping[str, np.ndarray]  # by name, (seeds, steps)


class History(NamedTuple):
    """Of one network at one rate, or without a rate."""

    network: str
    rate: float | None
    axis: Axis
    at: np.ndarray  # (steps,)
    numbers: Numbers
    compared: bool  # at this rate its program compares it with others, as far as it can be told


def histories(
    program: str, records: Sequence[Record], settings: Settings | None = None
) -> list[History]:
    """Of all networks, those of one network after each other."""
    runs: dict[tuple[str, float | None], list[tuple[np.ndarray, Numbers]]] = {}
    by_trial: dict[str, list[Record]] = {}
    for record in records:
        by_trial.setdefault(record["network"], []).append(record)
    for trial, rows in by_trial.items():
        parts = TRIAL.fullmatch(trial)
        assert parts is not None  # anything matches
        rate = float(parts["rate"]) if parts["rate"] else None
        runs.setdefault((parts["network"], rate), []).append(_numbers(rows))
    chosen = _chosen(program, runs, by_trial, settings)
    found = []
    for (network, rate), parts in runs.items():
        at, numbers = parts[0]
        if len(parts) > 1:  # splits; a seed's number is the mean over them
            numbers = {name: np.mean([p[name] for _, p in parts], 0) for name in numbers}
        along = axis(program, network)
        if along.name in numbers:
            at = numbers[along.name][0]
        found.append(History(network, rate, along, at, numbers, rate == chosen.get(network)))
    return found


def _numbers(records: Sequence[Record]) -> tuple[np.ndarray, Numbers]:
    """Steps, and all numbers of one trial; like `series` of each name, in one pass."""
    seeds = {seed: i for i, seed in enumerate(sorted({r["seed"] for r in records}))}
    steps = {step: i for i, step in enumerate(sorted({r["step"] for r in records}))}
    numbers: dict[str, np.ndarray] = {}
    for record in records:
        place = seeds[record["seed"]], steps[record["step"]]
        for name, value in record.items():
            if name not in numbers and isinstance(value, int | float):
                numbers[name] = np.full((len(seeds), len(steps)), np.nan)
            if isinstance(value, int | float):
                numbers[name][place] = value
    return np.array(list(steps)), {n: v for n, v in numbers.items() if not LEFT_OUT.fullmatch(n)}


def _chosen(
    program: str,
    runs: Mapping[tuple[str, float | None], Any],
    by_trial: Mapping[str, Sequence[Record]],
    settings: Settings | None,
) -> dict[str, float | None]:
    """Of each network the rate at which it is compared: the best one, or the first there is."""
    target = getattr(settings, "target_accuracy", None)
    score = by_accuracy
    if program in SOONEST and target is not None:
        score = by_speed(target)
    found: dict[str, float | None] = {}
    for network, _ in runs:
        rates = [rate for name, rate in runs if name == network and rate is not None]
        trials = [by_trial.get(f"{network}, rate {rate:g}", ()) for rate in rates]
        if rates and all(rows and VALIDATION in rows[0] for rows in trials):
            found[network] = best_rate([r for rows in trials for r in rows], network, rates, score)
        else:
            found[network] = rates[0] if rates else None
    return found


def views(program: str, found: Sequence[History]) -> list[dict[str, Any]]:
    """What a menu offers: one number of all networks that have it, along one axis.

    Each has `lines`, with columns of the mean over seeds, half of its 95 % interval, the least and
    the largest of the seeds.
    """
    made = [*_through_training(found), *_by_rate(found)]
    shown_first = FIRST_GROUP.get(program)
    for view in made:
        for line in view["lines"]:
            line["group"] = group(program, line["network"])
            line["label"] = label(line["network"], line["group"])
        view["lines"].sort(key=lambda line: line["group"] != shown_first)
    first = FIRST.get(program, "test accuracy")
    order = [first, "test accuracy", "training loss"]
    rank = {name: i for i, name in reversed(list(enumerate(order)))}
    return sorted(made, key=lambda view: rank.get(view["name"], len(rank)))


def _through_training(found: Sequence[History]) -> Iterator[dict[str, Any]]:
    axes = dict.fromkeys(history.axis for history in found)
    names = dict.fromkeys(n for h in found for n in h.numbers if not SPREAD.fullmatch(n))
    names.pop(VALIDATION, None)
    for along in axes:
        for name in names:
            along_it = [h for h in found if h.axis == along and _is_line(h, name)]
            if any(_varies(h.numbers[name]) for h in along_it):
                yield _view(in_words(name), along, [_line(h, name) for h in along_it])


def _is_line(history: History, name: str) -> bool:
    return name in history.numbers and len(history.at) > 1 and name != history.axis.name


def _varies(values: np.ndarray) -> bool:
    """Whether values (seeds, steps) do along the steps."""
    finite = values[:, np.isfinite(values).all(0)]
    return finite.shape[1] > 1 and bool(np.ptp(finite, 1).any())


def _line(history: History, name: str) -> dict[str, Any]:
    at, values = history.at, np.maximum(history.numbers[name], FLOORS.get(name, -np.inf))
    if history.axis.log:
        at, values = at[at > 0], values[:, at > 0]
    kept = thinned(at, history.axis.log)
    rate = {} if history.rate is None else {"rate": history.rate, "compared": history.compared}
    line = {"network": history.network, "x": _short(at[kept])} | rate
    return line | _over_seeds(values[:, kept])


def thinned(at: np.ndarray, log: bool) -> np.ndarray:
    """At most `MOST_STEPS` indices of `at`, which rises or falls, the first and the last too."""
    if len(at) <= MOST_STEPS:
        return np.arange(len(at))
    places = np.log(at) if log else at
    wanted = np.linspace(places[0], places[-1], MOST_STEPS)
    return np.unique(np.abs(places[:, None] - wanted).argmin(0))


def _over_seeds(values: np.ndarray) -> dict[str, Any]:
    """Of values (seeds, places); one that diverged in a seed has no mean."""
    seeds = len(values)
    with np.errstate(invalid="ignore", over="ignore"):
        half = _quantile(seeds) * values.std(0, ddof=min(1, seeds - 1)) / seeds**0.5
        mean, ends = values.mean(0), {"low": values.min(0), "high": values.max(0)}
    line = {"seeds": seeds, "half": _short(half, 2), "mean": _short(mean)}
    return line | {name: _short(end, 3) for name, end in ends.items()}


@cache
def _quantile(seeds: int) -> float:
    """Of Student's distribution, for an interval of 95 %; a single seed has none."""
    from scipy.stats import t

    return float(t.ppf(0.975, seeds - 1)) if seeds > 1 else np.nan


def _by_rate(found: Sequence[History]) -> Iterator[dict[str, Any]]:
    """Accuracy on images held out at the end, which rates are chosen by."""
    swept: dict[str, list[History]] = {}
    for history in found:
        if history.rate is not None and VALIDATION in history.numbers:
            swept.setdefault(history.network, []).append(history)
    lines = []
    for network, runs in swept.items():
        values = np.stack([final_mean(run.at, run.numbers[VALIDATION]) for run in runs], 1)
        rates = np.array([run.rate for run in runs])
        chosen = next(i for i, run in enumerate(runs) if run.compared)
        line = {"network": network, "x": _short(rates), "chosen": chosen}
        lines.append(line | _over_seeds(np.nan_to_num(values)))
    if any(len(line["x"]) > 1 for line in lines):
        yield _view(in_words(VALIDATION), RATE, lines)


def _view(name: str, along: Axis, lines: list[dict[str, Any]]) -> dict[str, Any]:
    means = np.array([v for line in lines for v in line["mean"] if v], np.float64)
    log = bool(means.size and means.min() > 0 and means.max() > MANY_TIMES * means.min())
    percent = name.startswith(("test accuracy", "accuracy", "class accuracy"))
    return {
        "name": name,
        "x": along.title,
        "logX": along.log,
        "logY": log and not percent,
        "format": ".1%" if percent else ".4~g",
        "lines": lines,
    }


def spreads(found: Sequence[History]) -> list[dict[str, Any]]:
    """Percentiles by layer at every step: a line a network, `values` by name and layer.

    Each is a list, a step an entry, of the `PERCENTILES`, means over seeds.
    """
    made = []
    for history in found:
        matches = [m for name in history.numbers if (m := SPREAD.fullmatch(name))]
        if len(history.at) < 2 or not matches:
            continue
        kept = thinned(history.at, False)
        values: dict[str, dict[str, Any]] = {}
        for name, layer in dict.fromkeys((m["name"], m["layer"]) for m in matches):
            columns = [history.numbers[f"{name}_{layer}_{q}"].mean(0)[kept] for q in PERCENTILES]
            rows = [_short(row, 3) for row in np.stack(columns, 1)]
            values.setdefault(in_words(name), {})[layer] = rows
        line = {"network": history.network, "x": _short(history.at[kept]), "values": values}
        rate = {} if history.rate is None else {"rate": history.rate}
        made.append(line | rate | {"compared": history.compared})
    return made


def _short(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """For JSON: with the digits that a chart can show, None where it is not finite."""
    return [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in values.tolist()]
