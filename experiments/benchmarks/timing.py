"""Times contestants against each other, and compares the times.

A machine is never quiet and never the same twice, so no time is worth anything by itself. All
contestants take turns in one process, in an order that is shuffled every round, and what counts is
the ratio of two times of the same round. Per shape that is the median over rounds; over the shapes,
the geometric mean of the medians, with a bootstrap interval (rounds drawn anew, with replacement).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.records import Record

CALLS, SECONDS = 3, 0.01  # at least so many calls, and so much time, a turn
RESAMPLES, CONFIDENCE = 2000, 0.95


class Estimate(NamedTuple):
    """A number found, and its 95 % interval: NaN where it is counted and not timed."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def race(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, seed: int = 0
) -> Iterator[tuple[int, str, float]]:
    """Yields (round, contestant, seconds): every contestant once a round, in a shuffled order."""
    for call in contestants.values():
        call()  # compiles
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        for name in rng.permutation(list(contestants)):
            yield number, str(name), sample(contestants[str(name)])


def sample(call: Callable[[], Any], calls: int = CALLS, seconds: float = SECONDS) -> float:
    """The shortest of a few calls, in seconds.

    A call is disturbed by whoever ran before it, so the first is not counted. What a call returns
    is dropped before the next, so that all find the same memory free.
    """
    call()
    shortest, made, spent = float("inf"), 0, 0.0
    while made < calls or spent < seconds:
        started = time.perf_counter()
        result = call()
        taken = time.perf_counter() - started
        del result
        shortest, made, spent = min(shortest, taken), made + 1, spent + taken
    return shortest


def paired_ratios(
    records: Sequence[Record], contestant: str, baseline: str, **where: Any
) -> dict[str, np.ndarray]:
    """Seconds of `contestant` over seconds of `baseline`, round by round.

    Args:
      records: with `shape`, `round`, `contestant` and `seconds`.
      contestant, baseline: names.
      where: what else a record must hold to be counted.

    Returns:
      By shape, the ratios (rounds,); nothing for shapes that either did not run.
    """
    times: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        if all(record.get(key) == value for key, value in where.items()):
            by_name = times.setdefault(record["shape"], {})
            by_name.setdefault(record["contestant"], {})[record["round"]] = record["seconds"]
    ratios = {}
    for shape, by_name in times.items():
        ours, base = by_name.get(contestant, {}), by_name.get(baseline, {})
        both = sorted(ours.keys() & base.keys())
        if both:
            ratios[shape] = np.array([ours[number] / base[number] for number in both])
    return ratios


def geometric_mean(ratios: Mapping[str, np.ndarray]) -> Estimate | None:
    """Geometric mean over shapes of the median ratio; None if there is none."""
    if not ratios:
        return None
    from scipy.stats import bootstrap  # late: claims are read without it

    values = tuple(ratios.values())
    drawn = bootstrap(
        values,
        _of_medians,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),  # the same interval for the same ratios
    )
    low, high = drawn.confidence_interval
    return Estimate(float(_of_medians(*values)), float(low), float(high))


def worst(ratios: Mapping[str, np.ndarray]) -> Estimate | None:
    """The largest median ratio of any shape, with that shape's interval."""
    if not ratios:
        return None
    values = max(ratios.values(), key=lambda v: float(np.median(v)))
    return geometric_mean({"": values})


def quartiles(values: np.ndarray) -> list[float]:
    """The 25th, 50th and 75th percentile."""
    return [float(v) for v in np.percentile(values, (25, 50, 75))]


def _of_medians(*values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The geometric mean of the medians along `axis`."""
    return np.exp(np.mean([np.log(np.median(each, axis)) for each in values], axis=0))
