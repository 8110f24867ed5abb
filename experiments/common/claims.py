"""Tests a claim on numbers paired by seed, and says how it came out.

The two networks of a pair share first weights and mini-batches, so their difference is taken seed
by seed, and the mean difference has a t-interval of n - 1 degrees of freedom::

    d_s = better for the claim if positive,     mean(d) +- t(0.975, n - 1) std(d) / sqrt(n)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.verdicts import CLAIM, FAILS, HOLDS, IN_PART, UNDECIDED, Row

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over seeds with its t-interval; `low` and `high` are NaN for a single seed."""

    mean: float
    low: float
    high: float


class Claim(NamedTuple):
    """A row of the closing table, and of summary.json."""

    claim: str
    paper: str  # what the paper reports
    found: str  # what was found here, in words
    verdict: str  # one of VERDICTS
    test: str  # the rule that made the verdict
    numbers: dict[str, float | list[float]]  # what the rule was given


def as_row(claim: Any) -> Row:
    """A claim whose verdict was made here, as a row of `experiments.common.verdicts`."""
    if isinstance(claim, Row):
        return claim
    numbers = claim.numbers | {"test": claim.test}
    short = claim.claim[:24]
    return Row(CLAIM, short, claim.claim, claim.paper, claim.found, (), claim.verdict, numbers)


def paired_interval(differences: Sequence[float] | np.ndarray) -> Interval:
    """Mean of `differences` (seeds,) and its 95 % t-interval."""
    from scipy.special import stdtrit  # quantile of Student's t

    values = np.asarray(differences, np.float64)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):  # an infinite difference has no interval
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def verdict(interval: Interval) -> str:
    """HOLDS if the whole interval is above 0, FAILS if it is not above 0 at all, else UNDECIDED.

    A single seed has no interval and decides nothing. A run that diverged makes the mean NaN, which
    supports nothing.
    """
    if interval.low > 0:
        return HOLDS
    return FAILS if interval.high <= 0 or not interval.mean > -np.inf else UNDECIDED


def verdict_same(interval: Interval, margin: float) -> str:
    """HOLDS if the whole interval is within +-`margin`, FAILS if it is outside, else UNDECIDED.

    For a claim that two things do equally well: a difference that matters has to be named first.
    """
    if max(abs(interval.low), abs(interval.high)) < margin:
        return HOLDS
    outside = interval.low >= margin or interval.high <= -margin
    return FAILS if outside or np.isnan(interval.mean) else UNDECIDED


def overall(verdicts: Iterable[str]) -> str:
    """The verdict on several claims at once: IN_PART if some hold, FAILS if some fail and none."""
    distinct = set(verdicts)
    if len(distinct) == 1:
        return distinct.pop()
    return IN_PART if distinct & {HOLDS, IN_PART} else FAILS


def provided(outcome: str, *conditions: Interval) -> str:
    """`outcome`, but in part at most unless every one of `conditions` is above 0 as well."""
    met = all(verdict(condition) == HOLDS for condition in conditions)
    return IN_PART if outcome == HOLDS and not met else outcome


def as_factor(logs: Interval) -> Interval:
    """The interval of a mean log ratio as that of the ratio."""
    return Interval(*(float(np.exp(value)) for value in logs))


def as_percent(shares: Interval) -> Interval:
    """The interval of a share in percent, or of a difference of shares in points."""
    return Interval(*(100 * value for value in shares))


def with_interval(interval: Interval, form: str) -> str:
    """Such as "3.1 [2.8, 3.4]", each number in the format `form`; one seed has no brackets."""
    if np.isnan(interval.mean):
        return "undefined (diverged, or never reached)"
    if np.isnan(interval.low):
        return f"{interval.mean:{form}} (one seed, no interval)"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def compare(
    claim: str,
    paper: str,
    accuracies: Mapping[str, np.ndarray],
    *,
    what: str = "test accuracy",
    margin: float | None = None,
) -> Claim:
    """The claim that the first of two accuracies (seeds,) is larger, or with `margin` the same.

    Args:
      claim, paper: of the claim.
      accuracies: by the words for how they were come by.
      what: the accuracy in words, for the rule.
      margin: difference that matters.
    """
    (first, a), (second, b) = accuracies.items()
    interval = paired_interval(a - b)
    rule = VERDICT_RULE
    if margin is not None:
        rule = f"holds: the 95 % t-interval over seeds lies within +-{100 * margin:g} points; "
        rule += "does not hold here: it lies outside; undecided: neither"
    return Claim(
        claim=claim,
        paper=paper,
        found=f"{a.mean():.1%} {first}, {b.mean():.1%} {second}; "
        f"{with_interval(as_percent(interval), '+.2f')} points",
        verdict=verdict(interval) if margin is None else verdict_same(interval, margin),
        test=f"{what} of {first} - {second}. {rule}",
        numbers={
            first: a.tolist(),
            second: b.tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


VERDICT_RULE = (
    "holds: the 95 % t-interval over seeds lies above 0; does not hold here: it does not reach "
    "above 0; undecided: neither"
)
