"""What a claim is judged by: differences paired by seed, a sign-flip test, Holm's correction.

Two networks of a pair share first weights and mini-batches, so their difference is taken seed by
seed. Were the two alike, each difference might as well have the other sign. So all 2**n ways to
choose the signs of n differences are gone through, and counted is how many have a mean at least as
large as the one found (Fisher's randomisation test, one-sided; no assumption about the spread)::

    p_for     = share of the choices of signs with a mean >= mean(d)
    p_against = the same of -d
    p         = 2 min(p_for, p_against)

Ten seeds that agree give p = 0.002; five can not go below 0.06. An experiment tests several claims
at once, so its p-values are multiplied by Holm's factors (1979): m for the smallest of m, m - 1 for
the next, and so on. Below 5 % a test is decided, by its sign.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

HOLDS = "holds"
IN_PART = "holds in part"  # some of what is claimed does
FAILS = "does not hold here"
UNDECIDED = "undecided here"  # the seeds differ too much to tell, or are too few
VERDICTS = (HOLDS, IN_PART, FAILS, UNDECIDED)
MARKS = {HOLDS: "✓", IN_PART: "◐", FAILS: "✗", UNDECIDED: "?"}  # colour is not all that tells
LEVEL = 0.05
ENUMERATED = 16  # differences, up to which all choices of signs are gone through
RULE = (
    "holds: every difference is above 0 (or within its margin) at 5 %, by a sign-flip test over "
    "seeds, two-sided, with Holm's correction over all tests of the experiment; does not hold "
    "here: below 0 (or outside) by the same test; in part: some of several; undecided: neither"
)

CLAIM = "claim"  # somebody said it
CONTROL = "control"  # nobody did: what a claim is to be seen against
IDENTITY = "identity"  # true by arithmetic, here up to rounding
KINDS = (CLAIM, CONTROL, IDENTITY)


class Unit(NamedTuple):
    """How differences are shown: as they are, or as what their logarithms stand for."""

    words: str
    form: str
    factor: float = 1.0
    logs: bool = False

    def shown(self, value: float) -> float:
        """`value` in this unit."""
        return float(np.exp(value)) if self.logs else self.factor * value


POINTS = Unit("points", "+.2f", factor=100)  # of accuracy
TIMES = Unit("times", "#.3g", logs=True)  # of natural logarithms
DECADES = Unit("powers of ten", "+.1f")  # of decimal logarithms
PLAIN_NUMBER = Unit("", "+.3g")


class Test(NamedTuple):
    """A difference that a claim says is above 0, or with `within` that it is smaller than that."""

    of: str  # in words, such as "test accuracy, with - without batch norm"
    differences: Sequence[float] | np.ndarray  # (seeds,)
    unit: Unit = POINTS
    within: float | None = None
    capped: bool = False  # a cap or the end of a grid hides how large some of them are

    @property
    def values(self) -> np.ndarray:
        """The differences, (seeds,)."""
        return np.asarray(self.differences, np.float64)

    def p_values(self) -> tuple[float, float]:
        """One-sided, for the claim and against it; a network that diverged speaks against it."""
        d = np.where(np.isnan(self.values), -np.inf if self.within is None else np.inf, self.values)
        if self.within is None:  # no difference at all is none above 0
            return _sign_flip(d), _sign_flip(-d) if np.any(d) else 0.0
        inside = max(_sign_flip(self.within - d), _sign_flip(self.within + d))
        return inside, min(_sign_flip(d - self.within), _sign_flip(-d - self.within))

    def in_words(self) -> str:
        """The mean and its 95 % interval in the unit, such as "+3.1 [+2.8, +3.4] points".

        Differences that do not vary have no interval, and a cap makes the mean a bound.
        """
        shown, form = self.unit.shown, self.unit.form
        mean, low, high = interval(self.differences)
        if np.isnan(mean):
            return "undefined (diverged)"
        words = f"{'at least ' * self.capped}{shown(mean):{form}}"
        if low < high and not self.capped:
            words += f" [{shown(low):{form}}, {shown(high):{form}}]"
        return f"{words} {self.unit.words}".rstrip()


class Row(NamedTuple):
    """A row of the closing table, and of summary.json."""

    kind: str  # one of KINDS
    short: str  # a few words, for a badge
    claim: str  # what is claimed; in quotation marks the words of the source
    source: str  # who said it, and where
    found: str
    tests: tuple[Test, ...] = ()
    verdict: str = ""  # one of VERDICTS; nothing but a claim has one
    numbers: Mapping[str, Any] = {}

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        row = {name: value for name, value in self._asdict().items() if name != "tests"}
        return row | {"test": "; ".join(test.of for test in self.tests)}


def claim(
    short: str, said: str, source: str, *tests: Test, found: str = "", numbers: Any = None
) -> Row:
    """A claim, which holds if all of `tests` do.

    Args:
      short: a few words for it, of at most 24 letters.
      said: the claim; in quotation marks what the source says word for word.
      source: who said it, and where.
      tests: at least one.
      found: what the differences are made of, such as "97 % with, 10 % without"; they follow it.
      numbers: what else is to be found in summary.json, lists of one number a seed by name.
    """
    outcome = "; ".join(test.in_words() for test in tests)
    words = f"{found}; {outcome}" if found else outcome
    return Row(CLAIM, short, said, source, words, tests, numbers=dict(numbers or {}))


def control(short: str, what: str, found: str, source: str = "", numbers: Any = None) -> Row:
    """What a claim is to be seen against; it has no verdict."""
    return Row(CONTROL, short, what, source, found, numbers=dict(numbers or {}))


def identity(short: str, what: str, found: str, source: str = "", numbers: Any = None) -> Row:
    """What arithmetic makes true; shown, how true rounding leaves it."""
    return Row(IDENTITY, short, what, source, found, numbers=dict(numbers or {}))


def settle(rows: Iterable[Row]) -> list[Row]:
    """The rows with their verdicts, from the tests of all of them together."""
    rows = list(rows)
    tests = [test for row in rows for test in row.tests]
    decided = iter(_decide(tests))
    return [_with_verdict(row, [next(decided) for _ in row.tests]) for row in rows]


def overall(verdicts: Iterable[str]) -> str:
    """The verdict on several parts at once: IN_PART if some hold, FAILS if some fail and none."""
    distinct = set(verdicts)
    if len(distinct) == 1:
        return distinct.pop()
    if distinct & {HOLDS, IN_PART}:
        return IN_PART
    return FAILS if FAILS in distinct else UNDECIDED


def interval(differences: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean of `differences` (seeds,) and its 95 % t-interval; NaN for that of a single seed."""
    from scipy.stats import sem, t

    values = np.asarray(differences, np.float64)
    mean = float(values.mean())
    if len(values) == 1 or not np.isfinite(mean):
        return mean, float("nan"), float("nan")
    if np.ptp(values) == 0:
        return mean, mean, mean
    low, high = t.interval(1 - LEVEL, len(values) - 1, loc=mean, scale=sem(values))
    return mean, float(low), float(high)


def _sign_flip(d: np.ndarray) -> float:
    """The share of choices of signs with a mean of at least that of `d`.

    `scipy.stats.permutation_test` finds the same in three to twenty times the time, refuses a
    single seed, and above `ENUMERATED` draws other signs than those of the committed results.
    """
    most = 10 * max(np.abs(d[np.isfinite(d)]).max(initial=0), 1)
    d, n = np.clip(d, -most, most), len(d)
    if n <= ENUMERATED:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), (2**ENUMERATED, n))
        signs[0] = 1  # the one that was found
    return float(np.mean(signs @ d >= d.sum() - 1e-12 * np.abs(d).sum()))


def _decide(tests: Sequence[Test]) -> list[tuple[str, float]]:
    """Of each test the verdict, and the p-value after Holm's correction."""
    pairs = [test.p_values() for test in tests]
    raw = [min(1.0, 2 * min(pair)) for pair in pairs]
    adjusted, largest = [1.0] * len(raw), 0.0
    for rank, i in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[i]))
        adjusted[i] = largest
    return [
        (UNDECIDED if p >= LEVEL else HOLDS if way[0] < way[1] else FAILS, p)
        for way, p in zip(pairs, adjusted, strict=True)
    ]


def _with_verdict(row: Row, decided: Sequence[tuple[str, float]]) -> Row:
    if not row.tests:
        return row
    numbers = dict(row.numbers)
    for test, (outcome, p) in zip(row.tests, decided, strict=True):
        mean, low, high = interval(test.differences)
        found = {"differences": test.values.tolist(), "mean": mean, "interval": [low, high]}
        found |= {"unit": test.unit._asdict(), "within": test.within, "capped": test.capped}
        numbers[test.of] = found | {"p": p, "outcome": outcome}
    return row._replace(verdict=overall(v for v, _ in decided), numbers=numbers)
