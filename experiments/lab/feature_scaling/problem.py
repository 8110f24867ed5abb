"""The two pixels of a seed, and what is made of them before the model sees them."""

import numpy as np

import bnjax
from experiments.common.data import Dataset
from experiments.lab.feature_scaling.settings import (
    NORMALISED,
    STANDARDISED,
    FeatureScalingSettings,
)

LEAST_STD = 0.2  # of a pixel that may be drawn: one that is almost always white tells nothing


def draw_problem(
    seed: int, settings: FeatureScalingSettings, data: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two pixels x (n, 2) of n images, targets (n,) and first weights (2,)."""
    rng = np.random.default_rng(seed)
    images, labels = data.train
    chosen = rng.choice(len(images), settings.batch_size, replace=False)
    pixels = rng.choice(np.flatnonzero(images.std(0) > LEAST_STD), 2, replace=False)
    x = images[chosen][:, pixels] * np.array([1, settings.scale])
    return x, 1.0 - 2 * (labels[chosen] % 2), rng.standard_normal(2)


def prepare(inputs: str, x: np.ndarray) -> np.ndarray:
    """What the linear model gets to see of the pixels x (n, 2)."""
    if inputs == STANDARDISED:
        return (x - x.mean(0)) / x.std(0)
    if inputs == NORMALISED:
        y, _ = bnjax.batch_norm(
            x.astype(np.float32), None, None, bnjax.init_batch_stats(2), train=True
        )
        return np.asarray(y)
    return x
