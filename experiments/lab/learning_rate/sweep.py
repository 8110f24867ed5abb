"""One kind of network at all learning rates, from what was logged."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.common.histories import final_mean, steps_to_target
from experiments.common.records import Record, series
from experiments.lab.learning_rate.settings import LearningRateSettings, trial_name


class Sweep(NamedTuple):
    """One kind of network at all rates."""

    accuracy: np.ndarray  # (seeds, rates), mean over the last tenth of training
    steps: np.ndarray  # (seeds, rates) to the target accuracy; inf where it was not reached


def sweep(
    records: Sequence[Record], settings: LearningRateSettings, activation: str, network: str
) -> Sweep:
    """Gathers one kind of network over all rates; an accuracy that is NaN counts as 0."""
    accuracy, reached = [], []
    for rate in settings.grid:
        name = trial_name(activation, network, rate)
        steps, history = series(records, name, "test_accuracy")
        accuracy.append(final_mean(steps, np.nan_to_num(history)))
        reached.append(steps_to_target(steps, history, settings.target_accuracy))
    return Sweep(np.stack(accuracy, 1), np.stack(reached, 1))


def best(found: Sweep) -> int:
    """Index of the rate with the highest accuracy, mean over seeds."""
    return int(found.accuracy.mean(0).argmax())


def times(settings: LearningRateSettings, index: int, factor: float) -> int:
    """Index of the rate of the grid nearest to `factor` times that at `index`."""
    ratio = settings.grid[1] / settings.grid[0]
    return index + round(np.log(factor) / np.log(ratio))
