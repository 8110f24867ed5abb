"""Judges the claims by speed, and by accuracy at the end."""

from collections.abc import Sequence

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
from experiments.common.models import ACTIVATIONS
from experiments.common.records import Record, series
from experiments.lab.placement.settings import (
    AFTER,
    BEFORE,
    NONE,
    PLACES,
    STARTS,
    USUAL,
    PlacementSettings,
    trial_name,
)


def judge(records: Sequence[Record], settings: PlacementSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        *(judge_place(records, settings, place) for place in (BEFORE, AFTER)),
        *(judge_sigmoid(records, settings, start) for start in STARTS),
    ]


def speed_up(
    records: Sequence[Record],
    settings: PlacementSettings,
    activation: str,
    start: str,
    places: tuple[str, str],
) -> Interval:
    """The log ratio of steps to the target at the first of two places over the second."""
    histories = (
        series(records, trial_name(activation, place, start), "test_accuracy") for place in places
    )
    slow, fast = (steps_to_target(*history, settings.target_accuracy) for history in histories)
    return paired_interval(log_speed_up(slow, fast, settings.steps))


def final_accuracy(
    records: Sequence[Record], activation: str, place: str, start: str
) -> np.ndarray:
    """Test accuracy over the last tenth of training, (seeds,)."""
    return final(records, trial_name(activation, place, start), "test_accuracy")


def judge_place(records: Sequence[Record], settings: PlacementSettings, place: str) -> Claim:
    """Whether batch norm at one place speeds up training with every activation."""
    speeds = {a: speed_up(records, settings, a, USUAL, (NONE, place)) for a in ACTIVATIONS}
    found = ", ".join(
        f"{activation} {with_interval(as_factor(logs), '#.3g')}"
        for activation, logs in speeds.items()
    )
    accuracies = ", ".join(
        f"{a} {final_accuracy(records, a, place, USUAL).mean():.1%} "
        f"(without {final_accuracy(records, a, NONE, USUAL).mean():.1%})"
        for a in ACTIVATIONS
    )
    target = settings.target_accuracy
    return Claim(
        claim=f"{place} the activation, batch norm speeds training up",
        paper="both places work (Lee; Raschka)",
        found=f"times fewer steps to {target:.0%}: {found}; in the end {accuracies}",
        verdict=overall(verdict(logs) for logs in speeds.values()),
        test=(
            f"for each activation the log ratio of steps to {target:.0%} without and with, never "
            f"reached counting as {settings.steps:,}. {VERDICT_RULE}. In part, if that differs "
            "between activations"
        ),
        numbers={activation: list(as_factor(logs)) for activation, logs in speeds.items()},
    )


def judge_sigmoid(records: Sequence[Record], settings: PlacementSettings, start: str) -> Claim:
    """Whether a sigmoid fares better with batch norm before it than after it."""
    accuracy = {place: final_accuracy(records, "sigmoid", place, start) for place in PLACES}
    interval = paired_interval(accuracy[BEFORE] - accuracy[AFTER])
    speed = as_factor(speed_up(records, settings, "sigmoid", start, (AFTER, BEFORE)))
    found = ", ".join(f"{accuracy[place].mean():.1%} {place}" for place in PLACES)
    return Claim(
        claim=f"sigmoid, {start}: before is better than after",
        paper="before is advised: inputs then stay off the flat parts (Lee)",
        found=(
            f"{found}; before minus after "
            f"{with_interval(as_percent(interval), '+.2f')} points; "
            f"{with_interval(speed, '#.3g')} times fewer steps to {settings.target_accuracy:.0%}"
        ),
        verdict=verdict(interval),
        test=f"difference of accuracy over the last tenth of training. {VERDICT_RULE}",
        numbers={
            "accuracy_before": accuracy[BEFORE].tolist(),
            "accuracy_after": accuracy[AFTER].tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
            "times_fewer_steps": list(speed),
        },
    )
