"""What Equinox's batch norm keeps between steps, and what it evaluates with."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bnjax.interop._values import is_empty

# So many updates that 1 - momentum ** MANY is 1 and adding to it stays an int32.
MANY = 2**30


def held(norm: Any, state: Any) -> list[Any]:
    """Both averages of ``norm``, and what tells how many updates they have seen."""
    return jax.tree.leaves([state.get(index) for index in _indices(norm)])


def evaluated(norm: Any, kept: list[Any]) -> dict[str, Any]:
    """Mean and variance as ``norm`` evaluates with them, and its count if it counts."""
    names = ("mean", "var", "count") if counts(norm) else ("mean", "var")
    if any(map(is_empty, kept)):
        return dict(zip(names, kept, strict=False))
    mean, var, seen = np.asarray(kept[0], float), np.asarray(kept[1], float), np.asarray(kept[2])
    if counts(norm):
        weight = _weight(norm, seen)
        return {"mean": mean / weight, "var": var / weight, "count": seen}
    # Before the first update they are what memory held.
    fresh = seen[..., None]
    return {"mean": np.where(fresh, 0, mean), "var": np.where(fresh, 1, var)}


def averages(
    norm: Any, mean: np.ndarray, var: np.ndarray, count: np.ndarray | None
) -> list[np.ndarray]:
    """What ``norm`` keeps when it evaluates with ``mean`` and ``var``."""
    fresh = np.all((mean == 0) & (var == 1), axis=-1) & (count is None or count == 0)
    if not counts(norm):
        return [mean, var, fresh]
    counter = np.where(fresh, 0, MANY if count is None else np.where(count == 0, MANY, count))
    weight = _weight(norm, counter)
    return [mean * weight, var * weight, counter]


def _weight(norm: Any, counter: np.ndarray) -> np.ndarray:
    """What the layer divides its averages by: of each layer, with an axis for the features."""
    return np.where(counter == 0, 1.0, 1 - np.power(float(norm.momentum), counter))[..., None]


def counts(norm: Any) -> bool:
    """Whether ``norm`` counts its updates and debiases its averages, as ``mode="batch"`` does."""
    return getattr(norm, "mode", "ema") == "batch"


def _indices(norm: Any) -> tuple[Any, Any]:
    if counts(norm):
        return norm.batch_state_index, norm.batch_counter
    if hasattr(norm, "ema_state_index"):
        return norm.ema_state_index, norm.ema_first_time_index
    return norm.state_index, norm.first_time_index  # before 0.13
