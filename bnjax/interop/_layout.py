"""How a foreign array lies in a leaf of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """A foreign array is reshaped, transposed, flipped and reshaped to be ours."""

    split: Shape  # the foreign shape, with axes apart that we order differently
    order: Shape  # our axes by theirs, as for np.transpose
    shape: Shape  # ours
    flip: Shape = ()  # axes, of ours before the last reshape, that run backwards

    def read(self, x: np.ndarray) -> np.ndarray:
        return np.flip(x.reshape(self.split).transpose(self.order), self.flip).reshape(self.shape)

    def write(self, x: np.ndarray, shape: Shape) -> np.ndarray:
        x = np.flip(x.reshape([self.split[a] for a in self.order]), self.flip)
        return x.transpose(np.argsort(self.order)).reshape(shape)

    def differs(self, other: Layout) -> bool:
        """Whether some array of this shape is read differently by ``other``."""
        return self.shape != other.shape or self._effect() != other._effect()

    def _effect(self) -> tuple:
        """Split, order and flips, but for axes of one element, which can lie anywhere."""
        long = [axis for axis in self.order if self.split[axis] > 1]
        back = {self.order[axis] for axis in self.flip}.intersection(long)
        return [self.split[axis] for axis in sorted(long)], long, back


def transposed(shape: Shape, order: Sequence[int], flip: Shape = ()) -> Layout:
    """Axes in another order."""
    return Layout(shape, tuple(order), tuple(shape[a] for a in order), flip)


def reshaped(shape: Shape, ours: Shape | None = None) -> Layout:
    """Elements in the same order, in the shape ``ours``, by default the same."""
    return Layout(shape, tuple(range(len(shape))), shape if ours is None else ours)


def channels_last(shape: Shape) -> Layout:
    """The first axis becomes the last."""
    return transposed(shape, [*range(1, len(shape)), 0])
