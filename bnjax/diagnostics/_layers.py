"""What is known of each layer with running statistics, as flat NumPy arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from bnjax import _variables
from bnjax._printable import printable
from bnjax._variables import Flat, Path
from bnjax.core import BatchStats, Moments, PendingUpdate


class Estimate(NamedTuple):
    """Mean and variance of one layer's channels, from elsewhere than its running statistics."""

    mean: np.ndarray  # (C,)
    var: np.ndarray  # (C,)
    count: float = math.inf  # values a channel that they were taken of

    def take(self, keep: np.ndarray) -> Estimate:
        """These channels alone."""
        return Estimate(self.mean[keep], self.var[keep], self.count)


class LayerStatistics(NamedTuple):
    """All there is to judge one layer by; several feature axes are one axis of C channels here.

    Attributes:
      name: path such as ``"layer1/0/bn"``.
      mean, var: running statistics, float64 (C,); a complex mean stays complex.
      scale, bias: float64 (C,), or None where the layer has none.
      updates: number of updates of each channel, (C,), or None where the layer does not count.
      batch: what the layer saw in training, if ``data`` tell.
      history: earlier running statistics, oldest first.

    Example:
      >>> import numpy as np
      >>> from bnjax.diagnostics import report
      >>> stats = {"bn": {"mean": np.array([3.0, 0.0]), "var": np.array([4.0, 1.0])}}
      >>> layer, = report({"batch_stats": stats}).layers
      >>> print(layer.name, layer.offset(epsilon=0.0))
      bn [1.5 0. ]

    Source: bnjax's own. PyTorch and Flax have nothing like it.
    """

    name: str
    mean: np.ndarray  # (C,)
    var: np.ndarray  # (C,)
    scale: np.ndarray | None  # (C,)
    bias: np.ndarray | None  # (C,)
    updates: np.ndarray | None  # (C,)
    batch: Estimate | None = None
    history: tuple[Estimate, ...] = ()

    def std(self, epsilon: float) -> np.ndarray:
        """What the layer divides by, ``sqrt(var + epsilon)``; a negative variance counts as 0."""
        return np.sqrt(np.maximum(self.var, 0) + epsilon)

    def offset(self, epsilon: float) -> np.ndarray:
        """``|mean|`` in standard deviations."""
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 of a constant zero is NaN
            return np.abs(self.mean) / self.std(epsilon)

    def take(self, keep: np.ndarray) -> LayerStatistics:
        """These channels alone; ``keep`` is bool (C,)."""
        arrays = {k: getattr(self, k) for k in ("mean", "var", "scale", "bias", "updates")}
        taken = {k: v[keep] for k, v in arrays.items() if v is not None}
        batch = None if self.batch is None else self.batch.take(keep)
        return self._replace(
            **taken, batch=batch, history=tuple(e.take(keep) for e in self.history)
        )

    def finite(self) -> np.ndarray:
        """Where all that is stored of a channel is finite."""
        stored = [v for v in (self.mean, self.var, self.scale, self.bias) if v is not None]
        return np.all(np.isfinite(stored), axis=0)


def read_layers(variables: Any, history: Any, data: Any) -> list[LayerStatistics]:
    """Every layer with running statistics, in the order that people count: 2 before 10."""
    flat, _ = _variables.flatten(variables)
    _variables.refuse_shapes(flat)
    paths = sorted(_variables.norms(flat), key=_natural)
    if not paths:
        collections = printable(", ".join(sorted({str(p[0]) for p in flat})))
        raise ValueError(
            "variables hold no running statistics: no layer with mean and var in batch_stats. "
            f"The collections are {collections or 'none'}. If bnjax.surgery.fold took the norms "
            "away, report on what it was given."
        )
    names = {_variables.name(path) for path in paths}
    seen = _batches(data if data is not None else _pending(flat), names)
    past = [_snapshot(stats, names, i) for i, stats in enumerate(history or ())]
    return [_layer(flat, path, seen, past) for path in paths]


def shown(name: str) -> str:
    """A layer's name as it is printed; that of a model which is one layer is empty."""
    return printable(name, 200) or "(the model itself)"


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", _variables.name(path))
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def _layer(flat: Flat, path: Path, seen, past) -> LayerStatistics:
    name = _variables.name(path)
    shape = np.shape(flat["batch_stats", *path, "mean"])

    def leaf(collection: str, field: str) -> np.ndarray | None:
        value = flat.get((collection, *path, field))
        return None if value is None else _channels(value, shape, f"{shown(name)}/{field}")

    stats = {field: leaf("batch_stats", field) for field in ("mean", "var")}
    affine = {field: leaf("params", field) for field in ("scale", "bias")}
    updates = flat.get(("batch_stats", *path, "count"))
    layer = LayerStatistics(
        name,
        **stats,  # pyright: ignore[reportArgumentType]
        **affine,
        updates=None if updates is None else _counts(updates, shape, f"{shown(name)}/count"),
        batch=seen.get(name),
        history=tuple(snapshot[name] for snapshot in past),
    )
    others = (*layer.history, *([layer.batch] if layer.batch else []))
    for size in {size for e in others for size in (e.mean.size, e.var.size)} - {layer.mean.size}:
        raise ValueError(
            f"{shown(name)} has {layer.mean.size} channels in variables, {size} in data or history."
        )
    return layer


def _channels(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """``value`` of that shape as float64 or complex128 (C,)."""
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number) or array.shape != shape:
        raise ValueError(
            f"{name} must be numbers of shape {shape} like the layer's mean, got {array.dtype} of "
            f"shape {array.shape}."
        )
    return array.ravel().astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _counts(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A count of the layer, of each feature, or of each of several stacked layers, as (C,)."""
    array = np.asarray(value)
    if array.shape != shape[: array.ndim]:
        raise ValueError(f"{name} has shape {array.shape}, which does not fit features {shape}.")
    array = array.reshape(array.shape + (1,) * (len(shape) - array.ndim))
    return _channels(np.broadcast_to(array, shape), shape, name)


def _pending(flat: Flat) -> dict[str, PendingUpdate]:
    """Open updates among the variables: linen's collection, or nnx's variables of that kind."""
    return {
        _variables.name(path[1:-1]): leaf
        for path, leaf in flat.items()
        if isinstance(leaf, PendingUpdate)
    }


def _batches(data: Any, names: Iterable[str]) -> dict[str, Estimate]:
    """What each layer saw, from any of the legal forms of ``data``."""
    if not isinstance(data, Mapping):
        raise TypeError(
            "data must be a mapping from layers to bnjax.Moments, or the collection batch_moments, "
            f"got {type(data).__name__}."
        )
    found = {}
    for path, leaf in traverse_util.flatten_dict(dict(data)).items():
        path = path[1:] if path[0] == "batch_moments" else path
        path = path[:-1] if path and path[-1] == "pending" else path
        found[_variables.name(path)] = _estimate(leaf, _variables.name(path))
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(
            f"data name layers that variables do not have: {', '.join(map(shown, unknown))}. The "
            f"layers are {', '.join(map(shown, names))}."
        )
    return {name: estimate for name, estimate in found.items() if estimate.count > 0}


def _estimate(leaf: Any, name: str) -> Estimate:
    if isinstance(leaf, PendingUpdate):
        leaf = leaf.moments
    if isinstance(leaf, Moments):
        count = float(np.min(np.asarray(leaf.count)))
        return Estimate(np.ravel(leaf.mean), np.ravel(leaf.var()), count)
    if isinstance(leaf, BatchStats):
        return Estimate(np.ravel(leaf.mean), np.ravel(leaf.var))
    raise TypeError(
        f"data of {shown(name)} must be bnjax.Moments, a PendingUpdate or BatchStats, got "
        f"{type(leaf).__name__}."
    )


def _snapshot(stats: Any, names: Iterable[str], number: int) -> dict[str, Estimate]:
    """Running statistics of all layers at an earlier time."""
    argument = f"history[{number}]"
    if not isinstance(stats, nnx.State) and "batch_stats" not in stats:
        stats = {"batch_stats": stats}
    flat, _ = _variables.flatten(stats, argument)
    found = {
        _variables.name(path): Estimate(
            np.ravel(flat["batch_stats", *path, "mean"]),
            np.ravel(flat["batch_stats", *path, "var"]),
        )
        for path in _variables.norms(flat)
    }
    missing = [shown(name) for name in names if name not in found]
    if missing:
        raise ValueError(f"{argument} lacks layers that variables have: {', '.join(missing)}.")
    return found
