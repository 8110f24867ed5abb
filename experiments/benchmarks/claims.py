"""Claims as data, and the one rule that checks them: what was found is at most the bound."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.benchmarks.timing import Estimate

HOLDS, UNDECIDED, FAILS, SKIPPED = "holds", "undecided", "fails", "skipped"
RULE = (
    "holds: found is at most the bound; undecided: it is not, but the bound lies within the 95 % "
    "interval, and the claim is only to be no slower; skipped: not measured in this run"
)


class Claim(NamedTuple):
    """One promise about one measured quantity."""

    claim: str
    quantity: str  # a key of the benchmark's estimates
    bound: float
    within_noise: bool = False  # "no slower": fails if the whole interval is above the bound


class Finding(NamedTuple):
    """A row of the closing table, and of summary.json."""

    claim: str
    quantity: str
    bound: float
    found: float
    low: float
    high: float
    verdict: str


def check(claims: Sequence[Claim], estimates: Mapping[str, Estimate]) -> list[Finding]:
    """One finding a claim; a quantity that nobody estimated makes it SKIPPED."""
    nothing = Estimate(float("nan"))
    return [
        Finding(c.claim, c.quantity, c.bound, *estimates.get(c.quantity, nothing), _verdict(c, e))
        for c in claims
        for e in [estimates.get(c.quantity)]
    ]


def all_hold(findings: Sequence[Finding]) -> bool:
    """Whether none fails: what is undecided or skipped is no failure."""
    return not any(finding.verdict == FAILS for finding in findings)


def _verdict(claim: Claim, estimate: Estimate | None) -> str:
    if estimate is None:
        return SKIPPED
    if estimate.value <= claim.bound:
        return HOLDS
    return UNDECIDED if claim.within_noise and estimate.low <= claim.bound else FAILS  # NaN fails
