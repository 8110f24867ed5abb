"""Ghost batch norm: each virtual batch is normalised by itself, and their statistics are merged."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import size_of
from bnjax.core._merge import Over
from bnjax.core._rule import Rule
from bnjax.core._sharding import spec_of
from bnjax.core._standardize import Correction, standardize
from bnjax.core._statistics import Statistics, merge_devices, merge_stack


def standardize_virtual_batches(
    x: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    correction: Correction | None,
    rule: Rule,
) -> tuple[jax.Array, Statistics]:
    """:func:`standardize` of each virtual batch, with the statistics of all of them.

    Virtual batches never leave their device; only their merged statistics are merged on.
    """
    assert rule.virtual_batch_size is not None
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape[:1] + mask.shape[1:])
    inner = rule._replace(axes=tuple(a + 1 for a in rule.axes), over=Over())
    params = jax.tree.map(lambda v: v[None], (scale, bias, correction))
    outputs, stacks = [], []
    runs = virtual_batches(x.shape[0], rule.virtual_batch_size)
    _check_explicit_sharding(x, runs, rule.virtual_batch_size)
    for start, groups, size in runs:
        cut = functools.partial(_cut, start=start, groups=groups, size=size)
        # No guess: they would have to ask each other whether any is too far from it.
        y, stats = standardize(cut(x), cut(mask), *params, None, inner)
        outputs.append(y.reshape(groups * size, *x.shape[1:]))
        stacks.append(stats._replace(count=_count_each(stats)))
    stats = merge_stack(jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks))
    y = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
    if rule.over.axis_name:
        stats = merge_devices(stats, rule.over, equal_counts=mask is None)
    return y, stats


def virtual_batches(examples: int, virtual_batch_size: int) -> list[tuple[int, int, int]]:
    """Cut ``examples`` as evenly as can be: ``(start, number of virtual batches, their size)``.

    A remainder goes to the others, one each, and is never left as a small batch of its own: 70
    examples in virtual batches of 32 are two of 35.
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


def fewest_values(shape: tuple[int, ...], rule: Rule) -> int:
    """How many values the mean of the smallest virtual batch is taken of."""
    if rule.virtual_batch_size is None:
        return rule.values_a_mean(shape)
    runs = virtual_batches(shape[0], rule.virtual_batch_size)
    return min(size for *_, size in runs) * size_of(shape, rule.axes[1:])


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
