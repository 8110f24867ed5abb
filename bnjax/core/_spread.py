"""Batch norm with another measure of spread than the standard deviation."""

from __future__ import annotations

import jax.numpy as jnp

from bnjax.core._axes import compute_dtype, zero_unless
from bnjax.core._normalize import affine_of, centre, inverse_std, live_entries
from bnjax.core._standardize import Rule
from bnjax.core._statistics import reciprocal, statistics


def standardize_by_spread(x, mask, scale, bias, rule: Rule, spread: str):
    r"""Normalise ``x`` by the mean and a spread of another kind: ``(y, Statistics)``.

    The ``var`` of the statistics is the square of the spread, the mean absolute deviation ("l1")
    or the largest ("linf"), so that everything that follows is as ever. Differentiated as it is
    written.
    """
    wide = x.astype(compute_dtype(x.dtype, rule.dtype))
    stats = statistics(wide, mask, rule.axes, rule.sync)
    centred, live = centre(x, stats.mean, mask), live_entries(x, mask)
    deviation = jnp.abs(zero_unless(mask, centred - stats.mean_lo))
    if spread == "l1":
        weight = reciprocal(stats.count).astype(deviation.dtype)
        size = jnp.sum(deviation, rule.axes, keepdims=True) * weight
    else:
        size = jnp.max(deviation, rule.axes, keepdims=True, initial=0)  # of an empty batch
    stats = stats._replace(var=jnp.square(size))
    inv_std = inverse_std(stats.var, rule.epsilon, None if mask is None else stats.count)
    y = affine_of(centred, stats.mean_lo, inv_std, scale, bias, live)
    return y.astype(rule.dtype), stats
