"""The images that are learned: half of the classes, a few examples, mini-batches."""

import numpy as np

from experiments.common.data import Dataset, Split
from experiments.lab.transfer.settings import HALF


def half(data: Dataset, first: int) -> Dataset:
    """The images of the `HALF` classes from `first` on, their labels counted from 0."""

    def choose(split: Split) -> Split:
        rows = (split.labels >= first) & (split.labels < first + HALF)
        return Split(split.images[rows], split.labels[rows] - np.int32(first))

    return data._replace(train=choose(data.train), test=choose(data.test))


def draw_examples(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Rows of `each` random examples of every class, fewer where there are not as many."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == c][:each] for c in range(HALF)])


def draw_batches(rows: np.ndarray, steps: int, size: int, seed: int) -> np.ndarray:
    """Mini-batches (steps, size) that go through `rows` in a new order in each epoch."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * size // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(epochs)])[: steps * size].reshape(
        steps, size
    )
