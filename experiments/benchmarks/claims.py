"""Claims as data, and the one rule that checks them: what was found is at most the bound.

A bound is what this project stands behind: it leaves room above what the committed results found,
for another run and another day. Where more is aimed at than has been reached, the claim names that
as well; to fall short of it is said, and is no error.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.benchmarks.timing import Estimate

HOLDS, FAILS, SKIPPED = "holds", "fails", "skipped"
SHORT, UNDECIDED = "short of aim", "undecided"
RULE = (
    "holds: found is at most the bound, and the aim where there is one; short of aim: at most the "
    "bound, but not the aim; fails: not even the bound; undecided: bound or aim is missed, but "
    "lies within the 95 % interval, and the claim is only to be no slower; skipped: not measured "
    "in this run"
)


class Claim(NamedTuple):
    """One promise about one measured quantity."""

    claim: str
    quantity: str  # a key of the benchmark's estimates
    bound: float
    within_noise: bool = False  # "no slower": fails if the whole interval is above the bound
    aim: float | None = None  # below the bound: what has been aimed at and not reached everywhere


class Finding(NamedTuple):
    """A row of the closing table, and of summary.json."""

    claim: str
    quantity: str
    bound: float
    aim: float | None
    found: float
    low: float
    high: float
    verdict: str


def check(claims: Sequence[Claim], estimates: Mapping[str, Estimate]) -> list[Finding]:
    """One finding a claim; a quantity that nobody estimated makes it SKIPPED."""
    return [_find(claim, estimates.get(claim.quantity)) for claim in claims]


def all_hold(findings: Sequence[Finding]) -> bool:
    """Whether none fails: what is short of its aim, undecided or skipped is no failure."""
    return not any(finding.verdict == FAILS for finding in findings)


def misses_aim(finding: Finding) -> bool:
    """Whether more is aimed at than was found, be it undecided or not."""
    return finding.aim is not None and finding.found > finding.aim


def _find(claim: Claim, estimate: Estimate | None) -> Finding:
    found = estimate or Estimate(float("nan"))
    verdict = _verdict(claim, estimate)
    return Finding(claim.claim, claim.quantity, claim.bound, claim.aim, *found, verdict)


def _verdict(claim: Claim, estimate: Estimate | None) -> str:
    if estimate is None:
        return SKIPPED
    aim = claim.bound if claim.aim is None else claim.aim
    if estimate.value <= aim:
        return HOLDS
    within = estimate.value <= claim.bound  # NaN is not
    missed, verdict = (aim, SHORT) if within else (claim.bound, FAILS)
    return UNDECIDED if claim.within_noise and estimate.low <= missed else verdict
