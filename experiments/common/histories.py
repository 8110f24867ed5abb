"""What a history of one metric, as `experiments.common.records.series` gives it, comes down to."""

from collections.abc import Sequence

import numpy as np

from experiments.common.records import Record, series


def steps_to_target(steps: np.ndarray, accuracy: np.ndarray, target: float) -> np.ndarray:
    """The first step with at least the `target` accuracy, inf if there is none, (seeds,).

    Args:
      steps: (evaluations,).
      accuracy: (seeds, evaluations); NaN counts as below the target.
    """
    reached = accuracy >= target
    return np.where(reached.any(1), steps[reached.argmax(1)], np.inf)


def final_mean(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of values (seeds, evaluations) over the last tenth of training, (seeds,)."""
    return values[:, steps >= 0.9 * steps[-1]].mean(1)


def final(records: Sequence[Record], network: str, name: str) -> np.ndarray:
    """Mean of one metric of one network over the last tenth of training, (seeds,)."""
    return final_mean(*series(records, network, name))


def first(records: Sequence[Record], network: str, name: str) -> np.ndarray:
    """One metric of one network at its first evaluation, (seeds,)."""
    return series(records, network, name)[1][:, 0]


def last(records: Sequence[Record], network: str, name: str) -> np.ndarray:
    """One metric of one network after the last step, (seeds,)."""
    return series(records, network, name)[1][:, -1]


def geometric_mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean over seeds of what is compared by ratios, such as steps or learning rates."""
    return float(np.exp(np.log(values).mean()))


def log_speed_up(slow: np.ndarray, fast: np.ndarray, last: float) -> np.ndarray:
    """Logarithm of the ratio of steps to a target, `slow` over `fast`, (seeds,).

    Never reached (inf) counts as reached at the `last` step. Where that is `slow`, the ratio is
    too small; where it is `fast`, it is at most 1 either way.
    """
    return np.log(np.minimum(slow, last) / np.minimum(fast, last))


def count_steps(steps: np.ndarray, last: float) -> str:
    """The geometric mean, and how often the target was never reached."""
    mean = geometric_mean(np.minimum(steps, last))
    missed = int(np.isinf(steps).sum())
    if missed:
        return f"over {mean:,.0f} (never in {missed} of {len(steps)} seeds)"
    return f"{mean:,.0f}"
