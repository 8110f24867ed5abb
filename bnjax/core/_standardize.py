"""Normalise data by its own statistics: the one derivative rule of every mean-variance norm."""

from __future__ import annotations

import functools
import math

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
    live_entries,
)
from bnjax.core._statistics import (
    Statistics,
    merge_devices,
    merge_stack,
    statistics,
    statistics_tangent,
)
from bnjax.core._xla import holder


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6, 7))
def standardize(x, mask, scale, bias, axes, epsilon, dtype, sync):
    """Normalise ``x`` by its statistics over ``axes`` and ``sync``: ``(y, Statistics)``.

    ``scale`` and ``bias`` (or None) have the rank of ``x``. One function with one rule for the
    whole layer, not a composition of two, so that a half-precision gradient is rounded once.
    """
    y, stats, _ = _standardize(x, mask, scale, bias, axes, epsilon, dtype, sync)
    return y, stats


def _standardize(x, mask, scale, bias, axes, epsilon, dtype, sync):
    wide = x.astype(compute_dtype(x.dtype, dtype))
    stats = name_statistics(statistics(wide, mask, axes, sync))
    # Only a mask can leave a feature without data (and an empty batch has no output).
    inv_std = inverse_std(stats.var, epsilon, None if mask is None else stats.count)
    centred, live = centre(x, stats.mean, mask), live_entries(x, mask)
    y = affine_of(centred, stats.mean_lo, inv_std, scale, bias, live)
    return y.astype(dtype), stats, inv_std


@standardize.defjvp
def _standardize_jvp(axes, epsilon, dtype, sync, primals, tangents):
    """The tangent of the statistics, fed to the tangent of the affine map."""

    def tangent(x, mask, scale, stats, inv_std, dx, dscale, dbias):
        x, dx = x.astype(stats.mean.dtype), dx.astype(stats.mean.dtype)
        hold = holder(inv_std)
        dstats = statistics_tangent(x, mask, stats, dx, axes, sync, hold)
        # d rsqrt(v) = -1/2 rsqrt(v)**3 dv, and 0 where there are no data.
        dinv_std = -0.5 * inv_std * inv_std * inv_std * dstats.var
        deviation = deviation_for_tangent(x, stats.mean, stats.mean_lo, mask)
        live = live_entries(x, mask)
        dy = affine_tangent(
            *deviation, inv_std, scale, dx, dstats.mean, dinv_std, dscale, dbias, live, hold
        )
        return dy.astype(dtype), dstats

    x, mask, scale, bias = primals
    dx, _, dscale, dbias = tangents
    # In the open, so that the policy can keep the statistics and repeat the rest.
    y, stats, inv_std = _standardize(x, mask, scale, bias, axes, epsilon, dtype, sync)
    linear = remember_inputs(tangent)
    # The variance itself is not read by the tangent, hence not kept.
    return (y, stats), linear(x, mask, scale, stats, inv_std, dx, dscale, dbias)


def standardize_batches(x, mask, scale, bias, axes, epsilon, dtype, sync, virtual_batch_size):
    """:func:`standardize` of the batch, or of its virtual batches with merged statistics.

    Virtual batches never leave their device; only their merged statistics are merged on.
    """
    if virtual_batch_size is None:
        return standardize(x, mask, scale, bias, axes, epsilon, dtype, sync)
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape[:1] + mask.shape[1:])
    outputs, stacks = [], []
    runs = virtual_batches(x.shape[0], virtual_batch_size)
    _check_explicit_sharding(x, runs, virtual_batch_size)
    for start, groups, size in runs:
        cut = functools.partial(_cut, start=start, groups=groups, size=size)
        inner = tuple(a + 1 for a in axes)
        y, stats = standardize(
            cut(x), cut(mask), _add_axis(scale), _add_axis(bias), inner, epsilon, dtype, Sync()
        )
        outputs.append(y.reshape(groups * size, *x.shape[1:]))
        stacks.append(stats._replace(count=_count_each(stats)))
    stats = merge_stack(jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks))
    y = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
    if sync.axis_name:
        stats = merge_devices(stats, sync, equal_counts=mask is None)
    return y, stats


def virtual_batches(examples: int, virtual_batch_size: int) -> list[tuple[int, int, int]]:
    """Cut ``examples`` as evenly as can be: ``(start, number of virtual batches, their size)``.

    A remainder is spread over the others, never left as a small batch of its own: 70 examples in
    virtual batches of 32 are two of 35.
    """
    number = max(1, examples // virtual_batch_size)
    size, longer = divmod(examples, number)
    runs = [(0, longer, size + 1), (longer * (size + 1), number - longer, size)]
    return [run for run in runs if run[1]]


def _check_explicit_sharding(x, runs, virtual_batch_size):
    """On an explicit mesh JAX moves no data of its own accord, so virtual batches must not cross
    from one device to the next."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[0] if sharding.spec else None
    if names is None or runs == [(0, 1, x.shape[0])]:
        return
    names = names if isinstance(names, tuple) else (names,)
    shards = math.prod(sharding.mesh.shape[name] for name in names)
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


def _add_axis(v):
    return None if v is None else v[None]


def _count_each(stats: Statistics):
    """The count of each virtual batch, of the rank of the other statistics."""
    groups, rank = stats.mean.shape[0], stats.mean.ndim
    if stats.count.ndim == 0:
        return jnp.broadcast_to(stats.count, (groups,) + (1,) * (rank - 1))
    return stats.count
