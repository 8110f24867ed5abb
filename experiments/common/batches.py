"""Mini-batches chosen on the host, for programs with a loop of their own."""

from collections.abc import Sequence

import numpy as np


def draw_batches(rows: np.ndarray, steps: int, size: int, seed: int) -> np.ndarray:
    """Mini-batches (steps, size) that go through `rows` in a new order in each epoch.

    Arrays in memory need no more than this; grain would read, shuffle and shard files.
    """
    rng = np.random.default_rng(seed)
    epochs = -(-steps * size // len(rows))
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    return order[: steps * size].reshape(steps, size)


def batches_of_seeds(rows: Sequence[np.ndarray], steps: int, size: int) -> np.ndarray:
    """`draw_batches` from each seed's own `rows`, (seeds, steps, size)."""
    return np.stack([draw_batches(own, steps, size, seed) for seed, own in enumerate(rows)])
