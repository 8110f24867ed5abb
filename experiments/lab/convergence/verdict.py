"""Judges the claims from what was logged.

Every number is one a seed, and compares the two networks of that seed:

    faster            log(steps to the target without / with batch norm)
    better            accuracy with - without batch norm, mean over the last tenth of training
    steadier          log(drift without / with batch norm)
    relative to ...   the same for the drift divided by the spread

where, over the evaluations after the first tenth of training,

    drift   standard deviation over time of a percentile, mean over the three percentiles
    spread  mean over time of the 85th minus the 15th percentile
"""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    as_percent,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.histories import count_steps, final, log_speed_up, steps_to_target
from experiments.common.records import Record, series
from experiments.common.settings import NORMALISED, PLAIN
from experiments.lab.convergence.settings import ConvergenceSettings

PERCENTILES = ("input_p15", "input_p50", "input_p85")


def judge(records: Sequence[Record], settings: ConvergenceSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        judge_speed(records, settings.target_accuracy),
        judge_accuracy(records),
        judge_drift(records, relative=False),
        judge_drift(records, relative=True),
    ]


def judge_speed(records: Sequence[Record], target: float) -> Claim:
    """Whether batch norm reaches the target accuracy in fewer steps."""
    steps, plain = series(records, PLAIN, "test_accuracy")
    _, normalised = series(records, NORMALISED, "test_accuracy")
    plain, normalised = (steps_to_target(steps, a, target) for a in (plain, normalised))
    last = float(steps[-1])
    logs = log_speed_up(plain, normalised, last)
    interval = paired_interval(logs)
    factor = as_factor(interval)
    found = (
        f"steps to {target:.0%}: {count_steps(normalised, last)} with, "
        f"{count_steps(plain, last)} without; "
        f"{with_interval(factor, '#.3g')} times fewer"
    )
    return Claim(
        claim="trains faster",
        paper="Fig. 1a: the same accuracy in far fewer of 50,000 steps",
        found=found,
        verdict=verdict(interval),
        test=f"log ratio of steps to {target:.0%} test accuracy. {VERDICT_RULE}",
        numbers={
            "target_accuracy": target,
            "steps_without": plain.tolist(),  # infinite (null in JSON): never reached
            "steps_with": normalised.tolist(),
            "times_fewer": factor.mean,
            "interval": [factor.low, factor.high],
        },
    )


def judge_accuracy(records: Sequence[Record]) -> Claim:
    """Whether batch norm ends at a higher test accuracy."""
    plain, normalised = (final(records, n, "test_accuracy") for n in (PLAIN, NORMALISED))
    interval = paired_interval(normalised - plain)
    found = (
        f"{normalised.mean():.2%} with, {plain.mean():.2%} without; "
        f"{with_interval(as_percent(interval), '+.2f')} points"
    )
    return Claim(
        claim="ends at a higher test accuracy",
        paper="Fig. 1a: higher to the end",
        found=found,
        verdict=verdict(interval),
        test=f"difference of accuracy over the last tenth of training. {VERDICT_RULE}",
        numbers={
            "accuracy_without": plain.tolist(),
            "accuracy_with": normalised.tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def judge_drift(records: Sequence[Record], *, relative: bool) -> Claim:
    """Whether the input of a sigmoid moves less with batch norm once training is under way."""
    plain, normalised = (_drift(records, n, relative) for n in (PLAIN, NORMALISED))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(plain) - np.log(normalised)
    interval = paired_interval(logs)
    factor = as_factor(interval)
    found = (
        f"percentiles drift by {normalised.mean():.2f} with, {plain.mean():.2f} without; "
        f"{with_interval(factor, '#.3g')} times less"
    )
    unit = "relative to their spread" if relative else "in absolute terms"
    return Claim(
        claim=f"sigmoid inputs steadier {unit}",
        paper="Fig. 1b, c: much more stable over training",
        found=found,
        verdict=verdict(interval),
        test=f"log ratio of drift {unit} after the first tenth of training. {VERDICT_RULE}",
        numbers={
            "drift_without": plain.tolist(),
            "drift_with": normalised.tolist(),
            "times_less": factor.mean,
            "interval": [factor.low, factor.high],
        },
    )


def _drift(records: Sequence[Record], network: str, relative: bool) -> np.ndarray:
    """The drift of the module's docstring, (seeds,)."""
    steps, _ = series(records, network, PERCENTILES[0])
    values = np.stack([series(records, network, name)[1] for name in PERCENTILES])
    settled = values[:, :, steps >= 0.1 * steps[-1]]  # (percentiles, seeds, evaluations)
    drift = settled.std(-1).mean(0)
    spread = (settled[-1] - settled[0]).mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a network that diverged has no spread
        return drift / spread if relative else drift
