"""Judges the claims from the sweeps over all learning rates."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    as_percent,
    paired_interval,
    provided,
    verdict,
    with_interval,
)
from experiments.common.data import NUM_CLASSES
from experiments.common.histories import count_steps, geometric_mean, log_speed_up
from experiments.common.records import Record
from experiments.common.settings import NETWORKS
from experiments.lab.learning_rate.settings import RELU, SIGMOID, LearningRateSettings
from experiments.lab.learning_rate.sweep import Sweep, best, sweep, times

CHANCE = 1 / NUM_CLASSES
PAPER_SPEED = {
    5: "2.1 against 31.0 million steps to Inception's accuracy (BN-x5, Fig. 3)",
    30: "2.7 against 31.0 million steps to Inception's accuracy (BN-x30, Fig. 3)",
}


def judge(records: Sequence[Record], settings: LearningRateSettings) -> list[Claim]:
    """The rows of the closing table."""
    plain, normalised = (sweep(records, settings, RELU, network) for network in NETWORKS)
    sigmoid_plain, sigmoid = (sweep(records, settings, SIGMOID, network) for network in NETWORKS)
    return [
        judge_range(plain, normalised, settings),
        *(judge_speed(plain, normalised, settings, factor) for factor in PAPER_SPEED),
        judge_accuracy(plain, normalised, settings),
        judge_sigmoid(sigmoid_plain, sigmoid, settings),
    ]


def largest_usable(found: Sweep, settings: LearningRateSettings) -> np.ndarray:
    """The largest rate that ends at the target accuracy or above, NaN if none does, (seeds,)."""
    usable = found.accuracy >= settings.target_accuracy
    return np.where(usable.any(1), (usable * settings.grid).max(1), np.nan)


def judge_range(plain: Sweep, normalised: Sweep, settings: LearningRateSettings) -> Claim:
    """Whether batch norm stands larger rates."""
    without, with_norm = (largest_usable(found, settings) for found in (plain, normalised))
    interval = paired_interval(np.log(with_norm / without))
    factor = as_factor(interval)
    target = settings.target_accuracy
    found = f"{with_interval(factor, '#.3g')} times larger"
    if np.isfinite(factor.mean):
        high, low = geometric_mean(with_norm), geometric_mean(without)
        found = f"up to {high:.2g} with, {low:.2g} without; {found}"
    return Claim(
        claim="stands larger learning rates",
        paper="without it, ResNet-110 diverges at rates that suit it with it (Bjorck et al.)",
        found=found,
        verdict=verdict(interval),
        test=f"log ratio of the largest rates that end at {target:.0%} or above. {VERDICT_RULE}",
        numbers={
            "largest_without": without.tolist(),
            "largest_with": with_norm.tolist(),
            "times_larger": factor.mean,
            "interval": [factor.low, factor.high],
        },
    )


def judge_speed(
    plain: Sweep, normalised: Sweep, settings: LearningRateSettings, factor: int
) -> Claim:
    """Whether batch norm at `factor` times the plain network's best rate needs fewer steps."""
    start = best(plain)
    index = min(times(settings, start, factor), settings.rates - 1)
    rate, base = settings.grid[index], settings.grid[start]
    without, with_norm = plain.steps[:, start], normalised.steps[:, index]
    interval = paired_interval(log_speed_up(without, with_norm, settings.steps))
    fewer = as_factor(interval)
    points = 100 * (normalised.accuracy[:, index] - plain.accuracy[:, start]).mean()
    target, last = settings.target_accuracy, settings.steps
    return Claim(
        claim=f"faster at {factor} times the rate that is best without",
        paper=PAPER_SPEED[factor],
        found=(
            f"at {rate:.2g}, {rate / base:.1f} times {base:.2g}: {count_steps(with_norm, last)} "
            f"against {count_steps(without, last)} steps to {target:.0%}, "
            f"{with_interval(fewer, '#.3g')} times fewer; {points:+.1f} points in the end"
        ),
        verdict=verdict(interval),
        test=(
            f"log ratio of steps to {target:.0%} test accuracy, at most the {settings.steps:,} "
            f"trained: without at its best rate, with at the larger one. {VERDICT_RULE}"
        ),
        numbers={
            "rate_without": float(base),
            "rate_with": float(rate),
            "steps_without": without.tolist(),  # null in JSON: never reached
            "steps_with": with_norm.tolist(),
            "times_fewer": fewer.mean,
            "interval": [fewer.low, fewer.high],
        },
    )


def judge_accuracy(plain: Sweep, normalised: Sweep, settings: LearningRateSettings) -> Claim:
    """Whether the best rate with batch norm ends better than the best without."""
    without, with_norm = (found.accuracy[:, best(found)] for found in (plain, normalised))
    interval = paired_interval(with_norm - without)
    rates = [float(settings.grid[best(found)]) for found in (plain, normalised)]
    return Claim(
        claim="ends at a higher accuracy, each at its best rate",
        paper="74.8 % (BN-x30) against 72.2 % (Inception), Fig. 3",
        found=(
            f"{with_norm.mean():.1%} with at {rates[1]:.2g}, {without.mean():.1%} without at "
            f"{rates[0]:.2g}; {with_interval(as_percent(interval), '+.2f')} points"
        ),
        verdict=verdict(interval),
        test=(
            "difference of test accuracy over the last tenth of training, each at the rate with "
            f"the highest mean of it. {VERDICT_RULE}"
        ),
        numbers={
            "accuracy_without": without.tolist(),
            "accuracy_with": with_norm.tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def judge_sigmoid(plain: Sweep, normalised: Sweep, settings: LearningRateSettings) -> Claim:
    """Whether sigmoids train with batch norm, and do not without."""
    without, with_norm = (found.accuracy[:, best(found)] for found in (plain, normalised))
    trains = paired_interval(with_norm - settings.target_accuracy)
    stuck = paired_interval(2 * CHANCE - without)
    return Claim(
        claim="sigmoids train, and at no rate without batch norm",
        paper="69.8 % (BN-x5-Sigmoid); Inception with sigmoids stays at chance (4.2.2)",
        found=f"best over all rates: {with_norm.mean():.1%} with, {without.mean():.1%} without",
        verdict=provided(verdict(trains), stuck),
        test=(
            f"with batch norm, best accuracy minus {settings.target_accuracy:.0%}. {VERDICT_RULE}. "
            f"In part at most, unless without it the best is below twice chance, {2 * CHANCE:.0%}, "
            "by the same rule"
        ),
        numbers={"accuracy_without": without.tolist(), "accuracy_with": with_norm.tolist()},
    )
