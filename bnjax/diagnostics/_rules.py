"""What can be wrong with the numbers of one layer: which channels, how badly, in a phrase.

A rule takes a layer and settings, and gives a :class:`Hit`, or None where it does not apply.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bnjax.diagnostics._layers import Estimate, LayerStatistics
from bnjax.diagnostics._limits import FLOAT16_MAX, ROUNDING, Settings, active_quantile


class Hit(NamedTuple):
    """What a check says: which channels, the worst number, and a phrase with it."""

    bad: np.ndarray  # bool (C,)
    value: float
    message: str
    error: bool = False


def shift(new: Any, old: Estimate, epsilon: float) -> np.ndarray:
    """How far ``new`` has moved from ``old``, in standard deviations of the old; (C,)."""
    with np.errstate(all="ignore"):
        return np.abs(new.mean - old.mean) / np.sqrt(np.maximum(old.var, 0) + epsilon)


def _least(values: np.ndarray, bad: np.ndarray) -> float:
    return float(np.min(values, where=bad, initial=np.inf))


def _most(values: np.ndarray, bad: np.ndarray) -> float:
    return float(np.max(values, where=bad, initial=-np.inf))


def not_finite(layer: LayerStatistics, settings: Settings) -> Hit:
    stored = {name: getattr(layer, name) for name in ("mean", "var", "scale", "bias")}
    bad = {name: ~np.isfinite(v) for name, v in stored.items() if v is not None}
    names = [name for name, where in bad.items() if where.any()]
    return Hit(np.any(list(bad.values()), axis=0), np.nan, f"in {', '.join(names)}", error=True)


def negative_variance(layer: LayerStatistics, settings: Settings) -> Hit:
    bad = layer.var < 0
    value = _least(layer.var, bad)
    return Hit(bad, value, f"variance down to {value:.2g}", error=True)


def never_updated(layer: LayerStatistics, settings: Settings) -> Hit:
    bad = _unseen(layer)
    counted = "" if layer.updates is None else "count 0, "
    return Hit(bad, 0, f"{counted}mean 0, variance 1", error=True)


def _unseen(layer: LayerStatistics) -> np.ndarray:
    """Channels with initial values, and, where they are counted, no update.

    A count of 0 beside other values tells of a program that does not count, like Keras, and not of
    the statistics.
    """
    initial = (layer.mean == 0) & (layer.var == 1)
    # A single channel may have mean 0 and variance 1 by chance; not all of them to the last bit.
    if layer.updates is None:
        return np.full(layer.mean.shape, initial.all())
    counted_together = np.all(layer.updates == layer.updates[0])
    return (layer.updates == 0) & (initial.all() if counted_together else initial)


def stuck(layer: LayerStatistics, settings: Settings) -> Hit | None:
    if len(layer.history) < 2:
        return None
    first, *later = layer.history
    same = np.all([(e.mean == first.mean) & (e.var == first.var) for e in later], axis=0)
    message = f"the same in all {len(layer.history)} snapshots"
    return Hit(np.full(layer.mean.shape, same.all()) & ~_unseen(layer), 0, message)


def momentum(layer: LayerStatistics, settings: Settings) -> Hit | None:
    updates = layer.updates
    if settings.steps is not None:
        updates = np.full(layer.var.shape, float(settings.steps))
    if settings.decay is None or updates is None:
        return None
    weight = settings.decay**updates
    bad = (weight > settings.limits.initial) & (updates > 0) & ~_unseen(layer)
    value = _most(weight, bad)
    message = f"after {_least(updates, bad):,.0f} updates the initial values weigh {value:.2g}"
    return Hit(bad, value, message, error=value > 0.5)


def gap(layer: LayerStatistics, settings: Settings) -> Hit | None:
    if layer.batch is None:
        return None
    return _moved(layer, layer.batch, "running", settings)


def drift(layer: LayerStatistics, settings: Settings) -> Hit | None:
    if len(layer.history) < 2:
        return None
    old, new = layer.history[-2:]
    return _moved(new, old, "newest", settings)._replace(error=False)


def _moved(new: Any, old: Estimate, name: str, settings: Settings) -> Hit:
    """Means or variances that lie further apart than the limits, and than chance explains."""
    shifts = shift(new, old, settings.epsilon)
    ratio = (np.maximum(new.var, 0) + settings.epsilon) / (old.var + settings.epsilon)
    fold = np.maximum(ratio, 1 / ratio)
    # The mean of few values, and their variance, are uncertain by themselves.
    most = max(settings.limits.shift, 4 / np.sqrt(old.count))
    spread = max(settings.limits.spread, np.exp(4 * np.sqrt(2 / old.count)))
    far, wide = shifts > most, fold > spread
    parts = []
    if far.any():
        parts.append(f"the {name} mean is off by up to {_most(shifts, far):.2g} σ")
    if wide.any():
        parts.append(f"the {name} variance by up to a factor of {_most(fold, wide):.2g}")
    value = _most(shifts, far) if far.any() else _most(fold, wide)
    severe = (shifts > 4 * most) | (fold > spread**4)
    return Hit(far | wide, value, ", ".join(parts), error=bool(severe.any()))


def tiny_variance(layer: LayerStatistics, settings: Settings) -> Hit:
    bad = (layer.var >= 0) & (layer.var < settings.epsilon)
    value = _least(layer.var, bad)
    return Hit(bad, value, f"variance down to {value:.2g}, epsilon is {settings.epsilon:g}")


def dead(layer: LayerStatistics, settings: Settings) -> Hit | None:
    if layer.scale is None:
        return None
    size = np.abs(layer.scale)
    updates = settings.steps if layer.updates is None else layer.updates.max()
    if not size.any() and (updates or 0) <= 1:
        return None  # not trained yet
    bad = size < settings.limits.scale
    value = _least(size, bad)
    return Hit(bad, value, f"|scale| down to {value:.2g}")


def dead_under_relu(layer: LayerStatistics, settings: Settings) -> Hit | None:
    quantile, place = active_quantile(settings), relative_bias(layer, settings)
    if place is None:
        return None
    bad = place < quantile
    value = _least(place, bad)
    return Hit(bad, value, f"bias / |scale| down to {value:.2g} (limit {quantile:.2g})")


def saturated(layer: LayerStatistics, settings: Settings) -> Hit | None:
    if layer.scale is None or layer.bias is None or np.iscomplexobj(layer.bias):
        return None
    low = layer.bias + active_quantile(settings) * np.abs(layer.scale)
    bad = (low > settings.limits.saturated) & (np.abs(layer.scale) >= settings.limits.scale)
    return Hit(bad, _most(low, bad), f"nearly all outputs are above {_most(low, bad):.2g}")


def relative_bias(layer: LayerStatistics, settings: Settings) -> np.ndarray | None:
    """``bias / |scale|``, the mean of the output in its own σ; NaN for dead channels."""
    if layer.scale is None or layer.bias is None or np.iscomplexobj(layer.bias):
        return None
    size = np.abs(layer.scale)
    return layer.bias / np.where(size < settings.limits.scale, np.nan, size)


def overflow(layer: LayerStatistics, settings: Settings) -> Hit:
    reach = settings.limits.reach
    std = layer.std(settings.epsilon)
    scale = np.ones_like(std) if layer.scale is None else np.abs(layer.scale)
    bias = 0 if layer.bias is None else np.abs(layer.bias)
    sizes = {
        f"inputs up to {{:.2g}} (|mean| + {reach:g} σ)": np.abs(layer.mean) + reach * std,
        "a variance of {:.2g}": np.maximum(layer.var, 0),
        "a factor scale / σ of {:.2g}": scale / std,
        f"outputs up to {{:.2g}} (|bias| + {reach:g} |scale|)": bias + reach * scale,
    }
    over = {phrase: size > FLOAT16_MAX for phrase, size in sizes.items()}
    bad = np.any(list(over.values()), axis=0)
    phrases = [p.format(_most(sizes[p], over[p])) for p in sizes if over[p].any()]
    worst = max(_most(sizes[p], over[p]) for p in sizes)
    return Hit(bad, worst, ", ".join(phrases))


def offset(layer: LayerStatistics, settings: Settings) -> Hit:
    offset = layer.offset(settings.epsilon)
    bad = offset * ROUNDING["bfloat16"] > settings.limits.rounding
    bad &= layer.var >= settings.epsilon  # below, there is no signal to lose
    value = _most(offset, bad)
    errors = " and ".join(f"{value * u:.2g} σ in {name}" for name, u in ROUNDING.items())
    return Hit(bad, value, f"|mean| up to {value:.3g} σ: rounding errors of {errors}")
