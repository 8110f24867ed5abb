"""The loss of a linear model of two weights, and descent on it."""

from collections.abc import Iterator

import numpy as np

TRIED_STEPS = 300  # to find out whether a learning rate is stable


class Bowl:
    """The loss  mean (x w - t)^2 / 2  of two weights.

    Args:
      x: inputs (n, 2).
      t: targets (n,).
    """

    def __init__(self, x: np.ndarray, t: np.ndarray):
        x = x.astype(np.float64)
        self.hessian = x.T @ x / len(x)
        self._pull = x.T @ t / len(x)
        self.best = np.linalg.solve(self.hessian, self._pull)
        self.gain = quadratic(self.hessian, self.best)  # of the best weights over zero weights

    def excess(self, w: np.ndarray) -> float:
        """The loss at w (2,) above the least, in units of the gain."""
        return float(quadratic(self.hessian, w - self.best) / self.gain)

    def descend(self, w: np.ndarray, rate: float, steps: int) -> Iterator[np.ndarray]:
        """The weights before each step of gradient descent, and after the last."""
        yield w
        for _ in range(steps):
            w = w - rate * (self.hessian @ w - self._pull)
            yield w


def quadratic(hessian: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The loss at a distance `away` (..., 2) from the minimum, (...)."""
    return (away @ hessian * away).sum(-1) / 2


def largest_stable_rate(bowl: Bowl, first: np.ndarray) -> float:
    """The largest learning rate, to 0.1 %, with which descent from `first` ends lower."""
    low, high = 1e-9, 1e3
    with np.errstate(over="ignore", invalid="ignore"):
        while high > 1.001 * low:
            middle = np.sqrt(low * high)
            *_, last = bowl.descend(first, middle, TRIED_STEPS)
            stable = bowl.excess(last) < bowl.excess(first)
            low, high = (middle, high) if stable else (low, middle)
    return float(low)
