"""Batch norm whose scale and shift undo the normalisation."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from bnjax.linen import BatchNorm
from experiments.common.data import Dataset
from experiments.common.records import Record
from experiments.lab.affine.settings import ROUNDING, AffineSettings


def identity(settings: AffineSettings, data: Dataset) -> Iterator[Record]:
    """What `undo` finds for random linear units, a record a seed."""
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        images = rng.choice(data.train.images, settings.batch_size, replace=False)
        weights = rng.standard_normal((images.shape[1], settings.hidden[0]))
        x = (images @ weights / np.sqrt(images.shape[1])).astype(np.float32)
        yield {"seed": seed, "step": 0, "roundings": undo(x)}


def undo(x: np.ndarray) -> float:
    """How far batch norm with scale = sqrt(var + epsilon), shift = mean is from leaving x as it is.

    Args:
      x: (batch, features), float32.

    Returns:
      The largest error, in roundings to float32 of the largest |x| of the same feature.
    """
    layer = BatchNorm(use_running_average=False)
    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    params = {"scale": np.sqrt(var + layer.epsilon), "bias": mean}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    stats = {"mean": jnp.zeros(x.shape[1]), "var": jnp.ones(x.shape[1])}
    y, _ = layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    error = np.abs(np.asarray(y, np.float64) - x)
    return float((error.max(0) / (ROUNDING * np.abs(x).max(0))).max())
