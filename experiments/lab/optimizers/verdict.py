"""Judges the claims optimizer by optimizer."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    as_factor,
    as_percent,
    overall,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.histories import final, log_speed_up, steps_to_target
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.lab.optimizers.settings import OPTIMIZERS, STARTS, OptimizerSettings, trial_name

MOVED = 0.01  # a root mean square change below this is none
MARGIN = 0.005  # of accuracy, within which one network is as good as another


def judge(records: Sequence[Record], settings: OptimizerSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [judge_moves(records), judge_accuracy(records), judge_speed(records, settings)]


def histories(
    records: Sequence[Record], optimizer: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps (evaluations,) and test accuracy (seeds, evaluations) without and with batch norm."""
    steps, plain = series(records, trial_name(optimizer, PLAIN), "test_accuracy")
    _, normalised = series(records, trial_name(optimizer, NORMALISED), "test_accuracy")
    return steps, plain, normalised


def judge_moves(records: Sequence[Record]) -> Claim:
    """Whether scale and shift leave their first values under every optimizer."""
    names = product(OPTIMIZERS, STARTS)
    moved = {(o, n): _last(records, o, f"moved_{n}") for o, n in names}
    found = ", ".join(
        f"{o} {moved[o, 'scale'].mean():.2f} and {moved[o, 'bias'].mean():.2f}" for o in OPTIMIZERS
    )
    return Claim(
        claim="scale and shift move away from 1 and 0 under every optimizer",
        paper="gradient descent, momentum, RMSprop and Adam update them like weights (Ng)",
        found=f"root mean square change of scale and shift: {found}",
        verdict=overall(verdict(paired_interval(each - MOVED)) for each in moved.values()),
        test=f"each change minus {MOVED}. {VERDICT_RULE}. In part, if that differs between them",
        numbers={f"{o}, {name}": each.tolist() for (o, name), each in moved.items()},
    )


def _last(records: Sequence[Record], optimizer: str, name: str) -> np.ndarray:
    """The metric `name` with batch norm at the end, (seeds,)."""
    return series(records, trial_name(optimizer, NORMALISED), name)[1][:, -1]


def judge_accuracy(records: Sequence[Record]) -> Claim:
    """Whether batch norm ends as accurate as none, or more, under every optimizer."""
    gains = {optimizer: _gain(records, optimizer) for optimizer in OPTIMIZERS}
    found = ", ".join(
        f"{optimizer} {with_interval(as_percent(paired_interval(gain)), '+.1f')}"
        for optimizer, gain in gains.items()
    )
    return Claim(
        claim="as accurate as without batch norm or more, under every optimizer",
        paper="it works with all of them (Ng)",
        found=f"points of test accuracy with minus without: {found}",
        verdict=overall(verdict(paired_interval(gain + MARGIN)) for gain in gains.values()),
        test=(
            "difference of accuracy over the last tenth of training, with minus without, plus the "
            f"{100 * MARGIN:g} points that count as equal. {VERDICT_RULE}. In part, if that "
            "differs between optimizers"
        ),
        numbers={optimizer: gain.tolist() for optimizer, gain in gains.items()},
    )


def _gain(records: Sequence[Record], optimizer: str) -> np.ndarray:
    """Accuracy with minus without batch norm at the end, (seeds,)."""
    plain, normalised = (
        final(records, trial_name(optimizer, network), "test_accuracy") for network in NETWORKS
    )
    return normalised - plain


def judge_speed(records: Sequence[Record], settings: OptimizerSettings) -> Claim:
    """Whether batch norm needs fewer steps under every optimizer."""
    target = settings.target_accuracy
    speeds: dict[str, Interval] = {}
    for optimizer in OPTIMIZERS:
        steps, *accuracies = histories(records, optimizer)
        plain, normalised = (steps_to_target(steps, each, target) for each in accuracies)
        speeds[optimizer] = paired_interval(log_speed_up(plain, normalised, steps[-1]))
    found = ", ".join(
        f"{optimizer} {with_interval(as_factor(logs), '#.3g')}"
        for optimizer, logs in speeds.items()
    )
    return Claim(
        claim="faster than without batch norm, under every optimizer",
        paper="it speeds learning up (Ng)",
        found=f"times fewer steps to {target:.0%}: {found}",
        verdict=overall(verdict(logs) for logs in speeds.values()),
        test=(
            f"log ratio of steps to {target:.0%} test accuracy without and with, never reached "
            f"counting as the last. {VERDICT_RULE}. In part, if that differs between optimizers"
        ),
        numbers={optimizer: list(as_factor(logs)) for optimizer, logs in speeds.items()},
    )
