"""Errors of one layer far from zero: the very functions that `layer` times, beside an oracle.

The data are normal, shifted by so many standard deviations; in half of the cases the first example
is an outlier, which defeats whoever takes it for the middle of the data. The oracle is that of
`bnjax.testing`, in NumPy's widest float; an error is relative to the largest entry of the truth.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bnjax import testing
from experiments.benchmarks import contestants
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import OURS, PACKAGES
from experiments.benchmarks.panels import Panel, contestants_of
from experiments.benchmarks.problem import EPSILON, Problem, pose
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, shape_name
from experiments.benchmarks.timing import Estimate
from experiments.common.records import Record

SHAPES = {"quick": ((8191, 16),), "full": ((8191, 16), (31, 13, 11, 5), (37, 129), (65_537, 3))}
DEFAULTS = Settings(SHAPES["full"])
OFFSETS = (0.0, 1e2, 1e4, 1e6)
OUTLIER = 1e4  # standard deviations from the others
OUTPUTS = ("y", "dx", "dscale")
ROUNDING = float(np.finfo(np.float32).eps)

CLAIMS = (
    Claim("accurate at every offset", f"largest error of {OURS}", 1e-6),
    Claim(
        "no peer is better by more than rounding",
        f"largest lead of a peer over {OURS}, in units of 2^-23",
        4.0,
    ),
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a contestant and case: `shape`, `offset`, `outlier`, and the errors."""
    names = list(filter(contestants.installed, PACKAGES))
    for shape in settings.shapes:
        progress.say(f"{shape_name(shape)}: {len(OFFSETS)} offsets, {len(names)} contestants")
        for offset in OFFSETS:
            for outlier in (False, True):
                problem = draw(shape, offset, outlier)
                where = {"shape": shape_name(shape), "offset": offset, "outlier": outlier}
                for name in names:
                    yield where | {"contestant": name} | errors(name, problem)


def draw(shape: tuple[int, ...], offset: float, outlier: bool) -> Problem:
    """Normal data about `offset`, the first example far away if `outlier`."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) + offset
    if outlier:
        x[0] += OUTLIER
    return pose(x, rng.normal(size=shape))


def errors(name: str, problem: Problem) -> dict[str, float]:
    """The error of each of OUTPUTS."""
    out = contestants.train_step(name, problem)()
    arrays = (np.asarray(v, np.float32) for v in (problem.x, problem.scale, problem.bias))
    forward = testing.batch_norm_forward(*arrays, epsilon=EPSILON)
    dx, dscale, _ = testing.batch_norm_backward(np.asarray(problem.dy), forward.cache)
    got, want = (out.y, *out.gradients[:2]), (forward.y, dx, dscale)
    return {
        key: testing.relative_error(np.asarray(ours), theirs)
        for key, ours, theirs in zip(OUTPUTS, got, want, strict=True)
    }


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Our largest error, and the most by which any peer is closer to the truth in any case."""
    largest, lead = CLAIMS[0].quantity, CLAIMS[1].quantity
    ours = [record for record in records if record["contestant"] == OURS]
    peers = [r for r in records if r["contestant"] in contestants.PEERS]
    by_case = {_case(record): record for record in ours}
    # A peer that gives NaN leads nobody; NaN of our own fails the first claim.
    leads = [by_case[_case(r)][key] - r[key] for r in peers for key in OUTPUTS]
    found = {largest: Estimate(float(np.max([r[key] for r in ours for key in OUTPUTS])))}
    if peers:
        found[lead] = Estimate(float(np.nanmax(leads)) / ROUNDING)
    return found


def panels(records: Sequence[Record]) -> list[Panel]:
    """The largest error of each contestant over shapes and outputs, a panel an offset."""
    return [
        Panel(
            f"data {offset:g} standard deviations from zero",
            "largest relative error of y, dx and dscale",
            {n: Estimate(_largest(records, n, offset)) for n in contestants_of(records)},
        )
        for offset in OFFSETS
    ]


def _largest(records: Sequence[Record], name: str, offset: float) -> float:
    chosen = [r for r in records if r["contestant"] == name and r["offset"] == offset]
    return float(np.max([record[key] for record in chosen for key in OUTPUTS]))


def _case(record: Record) -> tuple:
    return record["shape"], record["offset"], record["outlier"]
