"""What every contestant is given, and what it must give back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DECAY, EPSILON = 0.9, 1e-5  # of every contestant; DECAY is the weight of the old value


class Problem(NamedTuple):
    """The very same arrays for all."""

    x: jax.Array
    dy: jax.Array  # shape and dtype of x
    scale: jax.Array  # (features,), float32
    bias: jax.Array  # (features,), float32
    axis: int  # the feature axis


class Layer(NamedTuple):
    """A layer as pure functions of ``x, scale, bias, stats``."""

    train: Callable[..., Any]  # gives (y, new stats)
    evaluate: Callable[..., Any] | None  # gives y
    stats: Any  # running statistics to start from, a pytree


class Outputs(NamedTuple):
    """What one training call computes."""

    y: Any
    stats: Sequence[Any]
    gradients: Sequence[Any]  # of x, scale and bias


def draw(shape: tuple[int, ...], dtype: str = "float32", axis: str = "last") -> Problem:
    """Random data of `shape`, features last; moved to axis 1 if `axis` is "first"."""
    rng = np.random.default_rng(0)
    features = shape[-1]
    x = rng.normal(size=shape) + rng.normal(size=features)
    return pose(x, rng.normal(size=shape), dtype, axis)


def pose(x: np.ndarray, dy: np.ndarray, dtype: str = "float32", axis: str = "last") -> Problem:
    """A problem about given data."""
    rng = np.random.default_rng(1)
    scale, bias = rng.uniform(0.5, 1.5, x.shape[-1]), rng.normal(size=x.shape[-1])
    if axis == "first":
        x, dy = np.moveaxis(x, -1, 1), np.moveaxis(dy, -1, 1)
    data = (jnp.asarray(np.ascontiguousarray(v), dtype) for v in (x, dy))
    params = (jnp.asarray(v, jnp.float32) for v in (scale, bias))
    return Problem(*data, *params, axis=1 if axis == "first" else -1)
