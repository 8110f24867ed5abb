"""Judges the claims from the test accuracy in new paint."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_percent,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.records import Record, series
from experiments.lab.covariate_shift.settings import (
    NEW,
    OLD,
    SHIFTS,
    SOURCE,
    CovariateShiftSettings,
    trial_name,
)

FEW = 64  # unlabelled images that are said to be enough
SHARE = 0.9  # of what all of them would give


def judge(records: Sequence[Record], settings: CovariateShiftSettings) -> list[Claim]:
    """The damage of each shift, what adapting gives back, and how many images that takes."""
    grey = accuracy_as_trained(records, SOURCE)
    damage = grey - np.mean([accuracy_as_trained(records, shift) for shift in SHIFTS], axis=0)
    return [
        _claim(
            "new paint breaks a trained network",
            "Ng: trained on black cats, a network does poorly on coloured ones",
            damage,
            f"{grey.mean():.1%} in grey, {(grey - damage).mean():.1%} in new paint",
            "accuracy in grey - mean accuracy of the three shifts, statistics as trained",
        ),
        *(_judge_shift(records, shift) for shift in SHIFTS),
        # Not of inverted images, whose gain is not expected (see the package), so no share of it.
        *(_judge_few(records, shift) for shift in SHIFTS if shift != "inverted"),
    ]


def _judge_shift(records: Sequence[Record], shift: str) -> Claim:
    old, grey = (accuracy_as_trained(records, paint) for paint in (shift, SOURCE))
    new = accuracy_adapted(records, shift)[1][:, -1]
    found = f"{old.mean():.1%} as trained, {new.mean():.1%} adapted ({grey.mean():.1%} in grey)"
    return _claim(
        f"statistics of the new data help: {shift}",
        "Li et al., section 4.2: 76.7 against 75.5 % on average (Office), without labels",
        new - old,
        found,
        f"accuracy on {shift} images, adapted - as trained",
    )


def _judge_few(records: Sequence[Record], shift: str) -> Claim:
    old, (numbers, new) = accuracy_as_trained(records, shift), accuracy_adapted(records, shift)
    few = int(np.argmin(np.abs(numbers - FEW)))
    gained, possible = new[:, few] - old, new[:, -1] - old
    found = f"{gained.mean():.1%} of {possible.mean():.1%} gained by {numbers[few]} images"
    return _claim(
        f"{FEW} unlabelled images are enough: {shift}",
        "Li et al., section 4.3: a small part of the target images is enough",
        gained - SHARE * possible,
        found,
        f"gain by {numbers[few]} images - {SHARE:.0%} of the gain by {numbers[-1]}",
        f"points above {SHARE:.0%} of it",
    )


def accuracy_as_trained(records: Sequence[Record], paint: str) -> np.ndarray:
    """Accuracy (seeds,) by the statistics of training."""
    return series(records, trial_name(paint, OLD), "test_accuracy")[1][:, 0]


def accuracy_adapted(records: Sequence[Record], paint: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of images, and accuracy (seeds, numbers) adapted to them."""
    return series(records, trial_name(paint, NEW), "test_accuracy")


def _claim(
    claim: str, paper: str, difference: np.ndarray, found: str, test: str, unit: str = "points"
) -> Claim:
    interval = paired_interval(difference)
    points = with_interval(as_percent(interval), "+.2f")
    return Claim(
        claim=claim,
        paper=paper,
        found=f"{found}; {points} {unit}",
        verdict=verdict(interval),
        test=f"{test}. {VERDICT_RULE}",
        numbers={"difference": interval.mean, "interval": [interval.low, interval.high]},
    )
