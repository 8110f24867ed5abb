"""What was measured of one network, from what was logged."""

from collections.abc import Sequence

import numpy as np

from experiments.common.records import Record, series


def loss_range(records: Sequence[Record], network: str) -> np.ndarray:
    """Largest minus smallest loss along the gradient."""
    low, high = (history(records, network, f"loss_{end}") for end in ("low", "high"))
    return high - low


def change(records: Sequence[Record], network: str) -> np.ndarray:
    """The largest change of the gradient."""
    return history(records, network, "change_high")


def smoothness(records: Sequence[Record], network: str) -> np.ndarray:
    """The effective beta."""
    return history(records, network, "beta")


def shift(records: Sequence[Record], network: str) -> np.ndarray:
    """The change of a layer's gradient by the step of the layers before."""
    return history(records, network, "shift")


def log_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over evaluations of log(a / b), (seeds,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.log(a) - np.log(b)).mean(1)


def history(records: Sequence[Record], network: str, name: str) -> np.ndarray:
    """A metric (seeds, evaluations) after the first step."""
    steps, values = series(records, network, name)
    return values[:, steps > 0]
