"""Images in other colours."""

import numpy as np

from experiments.common.data import Dataset, Split
from experiments.lab.covariate_shift.settings import Colour


def paint(split: Split, shape: tuple[int, ...], ground: Colour, ink: Colour) -> Split:
    """The images with 0 painted in the colour `ground`, 1 in `ink`; three channels, (n, pixels)."""
    images = split.images.reshape(len(split.images), -1, shape[-1])  # 1 channel or 3
    low, high = (np.asarray(colour, np.float32) for colour in (ground, ink))
    return split._replace(images=(low + (high - low) * images).reshape(len(images), -1))


def paint_all(data: Dataset, ground: Colour, ink: Colour) -> Dataset:
    """Training and test images painted."""
    train, test = (paint(split, data.shape, ground, ink) for split in (data.train, data.test))
    return data._replace(train=train, test=test, shape=(*data.shape[:2], 3))
