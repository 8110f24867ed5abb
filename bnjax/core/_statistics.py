"""What a norm divides by: stable statistics, their derivative, and their merging."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import compute_dtype, other_axes, real_dtype, size_of, zero_unless
from bnjax.core._checkpoint import remember_inputs
from bnjax.core._devices import Pool, Sync, all_gather, merged_sets, single_lane, sum_over
from bnjax.core._sharding import spec_of
from bnjax.core._xla import holder, pin

SMALL = 2**16  # elements, below which a sample saves no run time but still costs compile time


class Statistics(NamedTuple):
    """What the normalisation uses: moments with the mean held to twice the precision.

    At an offset of 10⁶ standard deviations a float32 mean is rounded by 0.03 of one; the mean is
    therefore the unevaluated sum ``mean + mean_lo`` (Dekker's double-word numbers). All fields
    have the rank of ``x`` with ones on the reduced axes; ``count`` may be a scalar.
    """

    count: jax.Array
    mean: jax.Array
    mean_lo: jax.Array
    var: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def statistics(x, mask, axes: tuple[int, ...], sync: Sync, about_mean: bool = True) -> Statistics:
    """Statistics of ``x`` over ``axes`` and ``sync``, differentiable.

    With ``about_mean=False`` the mean is zero by decree, and the variance the mean square.
    """
    x = x.astype(compute_dtype(x.dtype))
    local = compute_statistics(x, mask, axes) if about_mean else mean_square(x, mask, axes)
    if sync.pool:
        local = merge_groups(local, sync.pool)
    return merge_devices(local, sync, equal_counts=mask is None) if sync.axis_name else local


@statistics.defjvp
def _statistics_jvp(axes, sync, about_mean, primals, tangents):
    def tangent(x, mask, stats, dx):
        x, dx = x.astype(stats.mean.dtype), dx.astype(stats.mean.dtype)
        hold = holder(stats.var)
        return statistics_tangent(x, mask, stats, dx, axes, sync, about_mean, hold)

    x, mask = primals
    stats = statistics(x, mask, axes, sync, about_mean)
    return stats, remember_inputs(tangent)(x, mask, stats, tangents[0])


def compute_statistics(x, mask, axes: tuple[int, ...]) -> Statistics:
    """The algorithm of :func:`bnjax.moments` on ``x`` of compute dtype."""
    count, weight = _count_and_weight(x, mask, axes)
    shift = _shift(x, mask, axes, weight)
    # Two sums about two nearby shifts: about one, XLA would store x - shift for both to read.
    other = pin(shift, 2)
    s = pin(_times(_sum(zero_unless(mask, x - shift), axes), weight))
    q = _mean_abs_sq(zero_unless(mask, x - other), axes, weight)
    var = jnp.maximum(q - abs_sq(s + (shift - other)), 0)
    mean, mean_lo = _double_word(shift, s)
    return Statistics(count, holder(q)(mean), mean_lo, var)


def mean_square(x, mask, axes: tuple[int, ...]) -> Statistics:
    """Statistics about zero: one sum, of squares."""
    count, weight = _count_and_weight(x, mask, axes)
    q = _mean_abs_sq(zero_unless(mask, x), axes, weight)
    zero = jnp.zeros_like(q, dtype=x.dtype)
    return Statistics(count, zero, zero, q)


def _shift(x, mask, axes, weight):
    r"""A number near the mean of each feature: the mean of an eighth of ``x``.

    By the Cauchy-Schwarz inequality the mean of a fraction ``f`` of the data lies within
    ``sqrt((1 - f) / f)`` standard deviations of the mean of all, whatever the data: for
    ``f = 1/8`` the sum of squares about it is at most eight times that about the mean. That costs
    three of float32's 24 bits at the very worst, and saves seven eighths of a pass. A mask may
    hide any part of the data, so then all of it is averaged; as is an array too small to gain.
    """
    sampled = None if mask is not None else _sampled_axis(x, axes)
    if sampled is not None:
        # A stride along the last axis would touch all memory, a run of it an eighth.
        last = sampled == x.ndim - 1
        end, stride = (x.shape[sampled] // 8, 1) if last else (None, 8)
        x = lax.slice_in_dim(x, 0, end, stride=stride, axis=sampled)
        _, weight = _count_and_weight(x, mask, axes)
    return pin(_times(_sum(zero_unless(mask, x), axes), weight))


def _sampled_axis(x, axes) -> int | None:
    """The axis to take every eighth part of, if there is one that is whole on each device."""
    # A symbolic size (jax.export) is no int and compares with none.
    known = all(isinstance(size, int) for size in x.shape)
    if not known or x.size < SMALL:
        return None
    spec = spec_of(x)
    # Under jit, axis 0 may be spread over devices without this being known here.
    whole = [a for a in axes if spec[a] is None and (a > 0 or jax.device_count() == 1)]
    return next((a for a in whole if x.shape[a] >= 8), None)


def statistics_tangent(
    x, mask, stats: Statistics, dx, axes, sync: Sync, about_mean: bool, hold
) -> Statistics:
    r"""Tangents of the statistics, through two sums over the data (one about zero).

    :math:`\dot\mu = \sum \dot x / n` and
    :math:`\dot v = 2 \sum \mathrm{Re}\,\overline{(x-\mu)}\,\dot x / n`. The deviation is taken
    from the rounded mean and corrected afterwards, as in the forward pass. The transpose is one
    elementwise pass; one collective each way.
    """
    dx = zero_unless(mask, dx)
    known = known_count(x.shape, mask, axes, sync)
    weight = reciprocal(stats.count) if known is None else 1 / max(known, 1)
    nothing = jnp.zeros_like(stats.count), jnp.zeros_like(stats.mean), jnp.zeros_like(stats.mean)
    if not about_mean:
        cov = _sum(_inner(zero_unless(mask, x), dx), axes)
        (cov,) = sum_over(hold(cov), sync=sync)
        return Statistics(*nothing, 2 * _times(cov, weight))
    # Not about the mean, for the same reason as above: other kernels read x - mean.
    shift = pin(stats.mean)
    cov = _sum(_inner(zero_unless(mask, x - shift), dx), axes).astype(dx.dtype)
    dmean, cov = sum_over(hold(_sum(dx, axes)), hold(cov), sync=sync)
    dmean, cov = _times(dmean, weight), _times(cov, weight)
    dvar = 2 * (_real(cov) - _inner((stats.mean - shift) + stats.mean_lo, dmean))
    return Statistics(nothing[0], dmean, nothing[1], dvar)


def _count_and_weight(x, mask, axes):
    """Elements of ``x`` that count, a feature, and the weight of each in the mean.

    The count is a scalar unless the mask tells features apart; the weight is a Python float where
    the count is known at trace time.
    """
    dtype = real_dtype(x.dtype)
    if mask is None:
        size = size_of(x.shape, axes)
        count = jnp.asarray(size, dtype)
        known = isinstance(size, int)  # and not symbolic, as under jax.export
        return count, (1 / max(size, 1) if known else reciprocal(count))
    repeats = size_of(x.shape, tuple(a for a in axes if mask.shape[a] == 1))
    # Integers: a float32 running sum of ones stops growing at 2**24.
    hits = jnp.sum(mask, axes, dtype=jnp.int32, keepdims=True)
    count = hits.astype(dtype) * repeats
    if all(mask.shape[a] == 1 for a in other_axes(axes, x.ndim)):
        count = count.reshape(())
    return count, reciprocal(count)


def known_count(shape, mask, axes, sync: Sync):
    """The merged count as a Python float, or None where a mask or a symbolic size decides."""
    size = size_of(shape, axes)
    return float(size * merged_sets(sync)) if mask is None and isinstance(size, int) else None


def _mean_abs_sq(d, axes, weight):
    """The mean of ``|d|**2``, each element divided by about the root of their number first.

    The sum of n squares would overflow at a root of n earlier than their mean. By a power of two,
    so that no digit changes.
    """
    size = size_of(d.shape, axes)
    exponent = size.bit_length() // 2 if isinstance(size, int) else 0  # symbolic: jax.export
    if exponent == 0:
        return _times(_sum(abs_sq(d), axes), weight)
    return _times(_sum(abs_sq(d * 2.0**-exponent), axes), weight * 4.0**exponent)


def _times(v, weight):
    """``v * weight``, whatever the dtypes: a float, or a real array beside complex ``v``."""
    return v * (weight if isinstance(weight, float) else weight.astype(v.dtype))


def _double_word(a, b):
    """``a + b`` as a rounded sum and its rounding error, for ``|a| >= |b|`` or both tiny.

    The error of ``b`` itself is at least a few units in its last place; a remainder below that
    is noise. Dropping it makes the mean of a constant feature exact, hence its output ``bias``.
    """
    total = a + b
    error = b - (total - a)
    noise = 8 * jnp.finfo(b.dtype).eps * jnp.abs(b)
    return total, lax.select(jnp.abs(error) <= noise, jnp.zeros_like(error), error)


def merge_groups(local: Statistics, pool: Pool) -> Statistics:
    """Merge the statistics of the features of each group; each feature gets those of its group."""
    # Computed once: the sums over positions are long, and those over the group short.
    hold = holder(local.var)
    count = jnp.broadcast_to(local.count, local.var.shape)
    members = Statistics(count, *(hold(v) for v in local[1:]))
    return jax.tree.map(pool.share, merge_stack(jax.tree.map(pool.stack, members)), members)


def merge_devices(local: Statistics, sync: Sync, equal_counts: bool) -> Statistics:
    """Merge the statistics of all devices on ``sync`` with one all-gather.

    Of 3C numbers, and the counts where a mask makes them unequal. A single lane of ``vmap`` is only
    told that its statistics are those of all lanes.
    """
    if single_lane(sync):
        return jax.tree.map(lambda v: lax.psum(v, sync.axis_name), local)
    dtype = local.mean.dtype
    travelling = local[1:] if equal_counts else local
    packed = jnp.concatenate([v.astype(dtype).ravel() for v in travelling])
    packed = all_gather(packed, sync)
    ends = list(itertools.accumulate(v.size for v in travelling))[:-1]
    parts = [
        part.reshape(len(packed), *v.shape)
        for part, v in zip(jnp.split(packed, ends, axis=1), travelling, strict=True)
    ]
    if equal_counts:
        parts = [jnp.broadcast_to(local.count, (len(packed), *local.count.shape)), *parts]
    count, mean, mean_lo, var = parts
    return merge_stack(Statistics(_real(count), mean, mean_lo, _real(var)))


def merge_stack(stack: Statistics) -> Statistics:
    """Merge statistics stacked on a leading axis.

    Chan's update for many sets at once, about a common shift so that no digits are lost.
    """
    dtype = stack.mean.dtype
    total = jnp.sum(stack.count, 0)
    share = stack.count * reciprocal(total)[None]
    share = share.reshape(share.shape + (1,) * (stack.mean.ndim - share.ndim))
    shift = pin(jnp.sum(share.astype(dtype) * stack.mean, 0))
    d = (stack.mean - shift[None]) + stack.mean_lo
    s = pin(jnp.sum(share.astype(dtype) * d, 0))
    var = jnp.sum(share * (stack.var + abs_sq(d - s[None])), 0)
    return Statistics(total, *_double_word(shift, s), var)


def abs_sq(x: jax.Array) -> jax.Array:
    """``|x|**2``, real."""
    return _inner(x, x)


def _inner(a, b):
    """Real part of ``conj(a) * b``: the real inner product of complex numbers."""
    if jnp.iscomplexobj(a):
        return lax.real(a) * lax.real(b) + lax.imag(a) * lax.imag(b)
    return a * b


def _real(x):
    return lax.real(x) if jnp.iscomplexobj(x) else x


def _sum(x, axes):
    return jnp.sum(x, axes, keepdims=True)


def reciprocal(count):
    """``1 / count``, and 0 for an empty set so that its mean and variance are 0, not NaN."""
    return jnp.where(count > 0, 1 / jnp.where(count > 0, count, 1), 0)
