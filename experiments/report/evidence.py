"""The differences that a claim was judged by, for a strip of dots, as its summary has them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.common.verdicts import Test, Unit

WIDER = 0.06  # of the range of what is shown, on both sides of it


def evidence(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A strip for every test of a claim in summary.json, in the order of the tests.

    Summaries of older versions do not say what their differences are in, and have none.
    """
    return [_strip(of, found) for of, found in claim["numbers"].items() if _is_test(found)]


def _is_test(found: Any) -> bool:
    return isinstance(found, dict) and "unit" in found


def _strip(of: str, found: Mapping[str, Any]) -> dict[str, Any]:
    unit = Unit(**found["unit"])
    known = [math.nan if d is None else d for d in found["differences"]]
    test = Test(of, known, unit, found["within"], found["capped"])
    low, high = found["interval"]
    center = unit.shown(0.0)
    seeds = [
        {"seed": seed, "value": unit.shown(d), "words": _words(unit, d)}
        for seed, d in enumerate(found["differences"])
        if d is not None
    ]
    mean = [] if found["mean"] is None else [_mean(unit, found["mean"], low, high)]
    margins = [] if found["within"] is None else [-found["within"], found["within"]]
    lines = [{"at": center, "margin": False}]
    lines += [{"at": unit.shown(margin), "margin": True} for margin in margins]
    shown = [*_values(seeds, "value"), *_values(mean, "low", "high"), *_values(lines, "at")]
    return {
        "of": _without_log(of) if unit.logs else of,
        "outcome": found["outcome"],
        "p": _p(found["p"]),
        "words": unit.words,
        "log": unit.logs,
        "domain": _domain(shown, unit.logs),
        "guide": _guide(center, bool(margins), len(found["differences"]) - len(seeds)),
        "interval": test.in_words(),
        "datasets": {"seeds": seeds, "mean": mean, "lines": lines},
    }


def _without_log(of: str) -> str:
    """Of what is shown as factors, such as "steps, without / with" of "log of steps, ..."."""
    return of.replace("log of the ", "").replace("log of ", "")


def _mean(unit: Unit, mean: float, low: float | None, high: float | None) -> dict[str, float]:
    """Differences that do not vary, or of a single seed, have no interval."""
    ends = {"low": mean if low is None else low, "high": mean if high is None else high}
    return {name: unit.shown(value) for name, value in ({"mean": mean} | ends).items()}


def _values(rows: list[dict[str, Any]], *names: str) -> Iterator[float]:
    return (row[name] for row in rows for name in names)


def _domain(shown: list[float], log: bool) -> list[float]:
    """From the least to the largest, with some room; of factors, in their logarithms."""
    ends = [min(shown), max(shown)]
    ends = [math.log(max(end, 1e-300)) for end in ends] if log else ends
    room = WIDER * ((ends[1] - ends[0]) or 1)
    ends = [ends[0] - room, ends[1] + room]
    return [float(f"{math.exp(end) if log else end:.6g}") for end in ends]


def _guide(center: float, within: bool, diverged: int) -> str:
    """What place speaks for the claim."""
    place = "between the dashed lines" if within else f"right of {center:g}"
    seeds = "1 seed" if diverged == 1 else f"{diverged} seeds"
    missing = f"; {seeds} diverged, not shown" if diverged else ""
    return f"{place}: for the claim{missing}"


def _words(unit: Unit, value: float) -> str:
    return f"{unit.shown(value):{unit.form}} {unit.words}".rstrip()


def _p(value: float) -> str:
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
