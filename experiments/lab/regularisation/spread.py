"""How far the statistics of a batch are from those of the population."""

from collections.abc import Iterator

import numpy as np

from experiments.common.data import Dataset
from experiments.common.records import Record
from experiments.lab.regularisation.settings import SIZES, RegularisationSettings

DRAWN = 200  # batches of each size
UNITS = 100


def spreads(settings: RegularisationSettings, data: Dataset) -> Iterator[Record]:
    """The spread of batch statistics of random linear units, a record a batch size."""
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        images = data.train.images[: settings.images]
        x = images @ rng.standard_normal((images.shape[1], UNITS)).astype(np.float32)
        for size in SIZES:
            yield {"seed": seed, "step": size} | measure_spread(x, size, rng)


def measure_spread(x: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, float]:
    """Standard deviations of the mean and of the standard deviation of a batch.

    Args:
      x: the population (n, units).
      size: number of rows of a batch, drawn independently.
      rng: draws `DRAWN` batches.

    Returns:
      `mean_spread` and `std_spread`, in standard deviations of the population, mean over units.
    """
    batches = (x[rng.integers(len(x), size=size)] for _ in range(DRAWN))
    means, stds = zip(*((batch.mean(0), batch.std(0)) for batch in batches), strict=True)
    scale = x.std(0)
    return {
        "mean_spread": float((np.std(means, 0) / scale).mean()),
        "std_spread": float((np.std(stds, 0) / scale).mean()),
    }
