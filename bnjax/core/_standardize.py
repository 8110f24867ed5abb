"""Normalise data by its own statistics: the one derivative rule of every mean-variance norm."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import compute_dtype
from bnjax.core._checkpoint import name_statistics, remember_inputs
from bnjax.core._devices import Sync
from bnjax.core._normalize import (
    affine_of,
    affine_tangent,
    centre,
    deviation_for_tangent,
    inverse_std,
    inverse_std_tangent,
    live_entries,
)
from bnjax.core._sharding import spec_of
from bnjax.core._statistics import (
    Statistics,
    merge_devices,
    merge_stack,
    statistics,
    statistics_tangent,
)
from bnjax.core._xla import holder


class Rule(NamedTuple):
    """The static half of :func:`standardize`."""

    axes: tuple[int, ...]  # reduced
    epsilon: float
    dtype: jnp.dtype  # of the output
    sync: Sync = Sync()
    about_mean: bool = True  # False: about zero, as in RMS norm


class Correction(NamedTuple):
    """What batch renorm corrects towards, of the rank of ``x``; no gradient flows into it."""

    mean: jax.Array
    inv_std: jax.Array
    r_max: jax.Array
    d_max: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def standardize(x, mask, scale, bias, correction: Correction | None, rule: Rule):
    """Normalise ``x`` by its statistics: ``(y, Statistics)``.

    ``scale`` and ``bias`` (or None) have the rank of ``x``. One function with one rule for the
    whole layer, not a composition of two, so that a half-precision gradient is rounded once.
    """
    y, stats, *_ = _standardize(x, mask, scale, bias, correction, rule)
    return y, stats


def _standardize(x, mask, scale, bias, correction, rule: Rule):
    wide = x.astype(compute_dtype(x.dtype, rule.dtype))
    stats = statistics(wide, mask, rule.axes, rule.sync, rule.about_mean)
    stats = name_statistics(stats)
    # Only a mask can leave a feature without data (and an empty batch has no output).
    inv_std = inverse_std(stats.var, rule.epsilon, None if mask is None else stats.count)
    corrected = _corrected(stats, correction, rule.epsilon)
    centred, live = centre(x, stats.mean, mask), live_entries(x, mask)
    y = affine_of(centred, stats.mean_lo, inv_std, *corrected(scale, bias), live)
    return y.astype(rule.dtype), stats, inv_std, corrected


@standardize.defjvp
def _standardize_jvp(rule: Rule, primals, tangents):
    """The tangent of the statistics, fed to the tangent of the affine map."""

    def tangent(x, mask, scale, stats, inv_std, dx, dscale, dbias):
        x, dx = x.astype(stats.mean.dtype), dx.astype(stats.mean.dtype)
        hold = holder(inv_std)
        dstats = statistics_tangent(x, mask, stats, dx, rule.axes, rule.sync, rule.about_mean, hold)
        dinv_std = inverse_std_tangent(inv_std, dstats.var)
        deviation = deviation_for_tangent(x, stats.mean, stats.mean_lo, mask)
        live = live_entries(x, mask)
        dy = affine_tangent(
            deviation, inv_std, scale, dx, dstats.mean, dinv_std, dscale, dbias, live, hold
        )
        return dy.astype(rule.dtype), dstats

    x, mask, scale, bias, correction = primals
    dx, _, dscale, dbias, _ = tangents
    # In the open, so that the policy can keep the statistics and repeat the rest.
    y, stats, inv_std, corrected = _standardize(x, mask, scale, bias, correction, rule)
    linear = remember_inputs(tangent)
    # The correction is a constant, and linear in scale and bias. The variance itself is not read
    # by the tangent, hence not kept.
    scale, _ = corrected(scale, bias)
    dscale, dbias = corrected(dscale, dbias)
    return (y, stats), linear(x, mask, scale, stats, inv_std, dx, dscale, dbias)


def _corrected(stats: Statistics, correction: Correction | None, epsilon):
    """A function that turns ``scale`` and ``bias`` into those of batch renorm."""
    if correction is None:
        return lambda scale, bias: (scale, bias)
    std = jnp.sqrt(stats.var + epsilon)
    away = (stats.mean - correction.mean) + stats.mean_lo
    r = jnp.clip(std * correction.inv_std, 1 / correction.r_max, correction.r_max)
    d = _shorten(away * correction.inv_std.astype(away.dtype), correction.d_max)
    r, d = lax.stop_gradient((r.astype(d.dtype), d))
    return lambda scale, bias: (scale * r, scale * d + bias)


def _shorten(d, d_max):
    """``d``, real or complex, with a size of at most ``d_max`` and the direction it had."""
    if not jnp.iscomplexobj(d):
        return jnp.clip(d, -d_max, d_max)
    size = jnp.abs(d)
    shorter = jnp.where(size > d_max, d_max / jnp.where(size > d_max, size, 1), 1)
    return d * shorter.astype(d.dtype)


def standardize_batches(x, mask, scale, bias, correction, rule: Rule, virtual_batch_size):
    """:func:`standardize` of the batch, or of its virtual batches with merged statistics.

    Virtual batches never leave their device; only their merged statistics are merged on.
    """
    if virtual_batch_size is None:
        return standardize(x, mask, scale, bias, correction, rule)
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape[:1] + mask.shape[1:])
    inner = rule._replace(axes=tuple(a + 1 for a in rule.axes), sync=Sync())
    params = jax.tree.map(lambda v: v[None], (scale, bias, correction))
    outputs, stacks = [], []
    runs = virtual_batches(x.shape[0], virtual_batch_size)
    _check_explicit_sharding(x, runs, virtual_batch_size)
    for start, groups, size in runs:
        cut = functools.partial(_cut, start=start, groups=groups, size=size)
        y, stats = standardize(cut(x), cut(mask), *params, inner)
        outputs.append(y.reshape(groups * size, *x.shape[1:]))
        stacks.append(stats._replace(count=_count_each(stats)))
    stats = merge_stack(jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks))
    y = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
    if rule.sync.axis_name:
        stats = merge_devices(stats, rule.sync, equal_counts=mask is None)
    return y, stats


def virtual_batches(examples: int, virtual_batch_size: int) -> list[tuple[int, int, int]]:
    """Cut ``examples`` as evenly as can be: ``(start, number of virtual batches, their size)``.

    A remainder is spread over the others, never left as a small batch of its own: 70 examples in
    virtual batches of 32 are two of 35.
    """
    if not isinstance(examples, int):
        raise ValueError(
            f"virtual_batch_size={virtual_batch_size} cuts a number of examples that is known, but "
            f"axis 0 of x has the symbolic size {examples}. Export with a fixed batch, or leave "
            "virtual_batch_size=None."
        )
    number = max(1, examples // virtual_batch_size)
    size, longer = divmod(examples, number)
    runs = [(0, longer, size + 1), (longer * (size + 1), number - longer, size)]
    return [run for run in runs if run[1]]


def _check_explicit_sharding(x, runs, virtual_batch_size):
    """On an explicit mesh JAX moves no data of its own accord, so virtual batches must not cross
    from one device to the next."""
    names = spec_of(x)[0]
    if names is None or runs == [(0, 1, x.shape[0])]:
        return
    names = names if isinstance(names, tuple) else (names,)
    shards = math.prod(jax.typeof(x).sharding.mesh.shape[name] for name in names)
    if len(runs) > 1 or runs[0][1] % shards:
        raise ValueError(
            f"virtual_batch_size={virtual_batch_size} cuts the {x.shape[0]} examples of x into "
            f"{sum(groups for _, groups, _ in runs)} virtual batches that cross the {shards} "
            f"shards of axis 0 (explicit mesh axes {names}). Choose one that divides the "
            f"{x.shape[0] // shards} examples of a shard, gather x with jax.reshard, or use a "
            "mesh of AxisType.Auto."
        )


def _cut(v, start, groups, size):
    if v is None:
        return None
    part = lax.slice_in_dim(v, start, start + groups * size)
    return part.reshape(groups, size, *v.shape[1:])


def _count_each(stats: Statistics):
    """The count of each virtual batch, of the rank of the other statistics."""
    groups, rank = stats.mean.shape[0], stats.mean.ndim
    if stats.count.ndim == 0:
        return jnp.broadcast_to(stats.count, (groups,) + (1,) * (rank - 1))
    return stats.count
