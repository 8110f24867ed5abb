"""Gradients and accuracies by depth, from what was logged."""

from collections.abc import Sequence

import numpy as np

from experiments.common.histories import final_mean
from experiments.common.records import Record, series
from experiments.lab.depth.settings import DepthSettings, gradient_name, trial_name

TINY = float(np.finfo(np.float32).tiny)  # stands for a gradient that float32 cannot tell from 0


def logged_gradients(
    records: Sequence[Record], settings: DepthSettings, activation: str, network: str, depth: int
) -> np.ndarray:
    """Norms of one network, (evaluations, layers, seeds), at least `TINY`."""
    name = trial_name(activation, network, depth)
    norms = [series(records, name, gradient_name(layer))[1].T for layer in range(1, depth + 1)]
    return np.maximum(np.stack(norms, 1), TINY)


def final_accuracy(
    records: Sequence[Record], settings: DepthSettings, activation: str, network: str
) -> np.ndarray:
    """Test accuracy over the last tenth of training, (seeds, depths); NaN counts as 0."""
    names = [trial_name(activation, network, depth) for depth in settings.depths]
    histories = [series(records, name, "test_accuracy") for name in names]
    return np.stack([final_mean(steps, np.nan_to_num(a)) for steps, a in histories], 1)
