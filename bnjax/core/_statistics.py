"""What a norm divides by: stable statistics, their derivative, and their merging."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import Shape, other_axes, real_dtype, size_of, zero_unless
from bnjax.core._merge import Groups, Over, all_gather, single_lane, sum_over
from bnjax.core._rule import Rule
from bnjax.core._shift import deviations, sample
from bnjax.core._xla import once, pin, remember_inputs


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

    def compact(self, axes: tuple[int, ...], known: float | None = None) -> MeanVariance:
        """These statistics as users see them: reduced axes removed, the mean rounded once.

        ``known`` takes the place of the count where that is known at trace time.
        """
        if known is not None:
            count = known
        else:
            one = self.count.size == 1
            count = self.count.reshape(()) if one else lax.squeeze(self.count, axes)
        return MeanVariance(count, lax.squeeze(self.mean, axes), lax.squeeze(self.var, axes))


class MeanVariance(NamedTuple):
    """Moments by their variance: ``m2`` is ``count`` times as large, and overflows that earlier."""

    count: jax.Array | float  # () or (*features)
    mean: jax.Array  # (*features)
    variance: jax.Array  # (*features)

    def var(self, ddof: int = 0) -> jax.Array:
        """As of :class:`bnjax.Moments`."""
        if ddof == 0:
            return self.variance
        degrees = self.count - ddof
        if isinstance(degrees, (int, float)):  # known at trace time
            return self.variance * (self.count / degrees if degrees > 0 else 0.0)
        ratio = self.count / jnp.where(degrees > 0, degrees, 1)
        return jnp.where(degrees > 0, self.variance * ratio, 0)

    @property
    def m2(self) -> jax.Array:
        """The sum of squared deviations."""
        return self.variance * self.count


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def statistics(x: jax.Array, mask: jax.Array | None, rule: Rule) -> Statistics:
    """Statistics of ``x``, differentiable.

    Unless they are about the mean, the mean is zero by decree, and the variance the mean square.
    """
    x = x.astype(rule.wide)
    local = _about_mean(x, mask, rule.axes) if rule.about_mean else _about_zero(x, mask, rule.axes)
    if rule.over.groups:
        local = merge_groups(local, rule.over.groups)
    if rule.over.axis_name:
        local = merge_devices(local, rule.over, equal_counts=mask is None)
    return local


@statistics.defjvp
def _statistics_jvp(rule: Rule, primals, tangents):
    def tangent(x, mask, stats, dx):
        x, dx = x.astype(rule.wide), dx.astype(rule.wide)
        return statistics_tangent(x, mask, stats, dx, rule, like=stats.var)

    x, mask = primals
    stats = statistics(x, mask, rule)
    return stats, remember_inputs(tangent)(x, mask, stats, tangents[0])


def _about_mean(x, mask, axes: tuple[int, ...]) -> Statistics:
    """The algorithm of :func:`bnjax.moments` on ``x`` of compute dtype."""
    count, weight = _count_and_weight(x, mask, axes)
    part = sample(x, mask, axes)
    share = weight if part is x else _count_and_weight(part, None, axes)[1]
    shift = _mean(zero_unless(mask, part), axes, share)
    d, _ = deviations(x, shift, mask, 0)
    s = _mean(d, axes, weight)
    d, rest = deviations(x, shift, mask, 2)
    q = _mean_abs_sq(d, axes, weight)
    var = jnp.maximum(q - abs_sq(s + rest), 0)
    mean, mean_lo = _double_word(shift, s)
    return Statistics(count, once(mean, q), mean_lo, var)


def _about_zero(x, mask, axes: tuple[int, ...]) -> Statistics:
    """Statistics about zero: one sum, of squares."""
    count, weight = _count_and_weight(x, mask, axes)
    q = _mean_abs_sq(zero_unless(mask, x), axes, weight)
    zero = jnp.zeros_like(q, dtype=x.dtype)
    return Statistics(count, zero, zero, q)


def statistics_tangent(
    x: jax.Array,
    mask: jax.Array | None,
    stats: Statistics,
    dx: jax.Array,
    rule: Rule,
    like: jax.Array,
) -> Statistics:
    r"""Tangents of the statistics, through two sums over the data (one about zero).

    :math:`\dot\mu = \sum \dot x / n` and
    :math:`\dot v = 2 \sum \mathrm{Re}\,\overline{(x-\mu)}\,\dot x / n`. The deviation is taken
    from the rounded mean and corrected afterwards, as in the forward pass. The transpose is one
    elementwise pass; one collective each way. ``x`` and ``dx`` are of compute dtype; ``like`` is a
    vector for :func:`once`.
    """
    axes, over = rule.axes, rule.over
    dx = zero_unless(mask, dx)
    known = known_count(x.shape, mask, rule)
    weight = reciprocal(stats.count) if known is None else 1 / max(known, 1)
    nothing = jnp.zeros_like(stats.count), jnp.zeros_like(stats.mean), jnp.zeros_like(stats.mean)
    if not rule.about_mean:
        (cov,) = sum_over(once(_sum(_inner(zero_unless(mask, x), dx), axes), like), over=over)
        return Statistics(*nothing, 2 * _times(cov, weight))
    d, rest = deviations(x, stats.mean, mask, 1)
    sums = _sum(dx, axes), _sum(_inner(d, dx), axes).astype(dx.dtype)
    dmean, cov = (_times(v, weight) for v in sum_over(*(once(v, like) for v in sums), over=over))
    dvar = 2 * (_real(cov) - _inner(rest + stats.mean_lo, dmean))
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


def known_count(shape: Shape, mask: jax.Array | None, rule: Rule) -> float | None:
    """The merged count, or None where a mask or a symbolic size decides."""
    values = rule.values_a_mean(shape)
    return float(values) if mask is None and isinstance(values, int) else None


def _mean(v, axes, weight):
    """The mean, the same number wherever it is subtracted."""
    return pin(_times(_sum(v, axes), weight))


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


def merge_groups(local: Statistics, groups: Groups) -> Statistics:
    """Merge the statistics of the features of each group; each feature gets those of its group."""
    count = jnp.broadcast_to(local.count, local.var.shape)
    # The sums over positions are long, and those over the group short.
    members = Statistics(count, *(once(v, local.var) for v in local[1:]))
    return jax.tree.map(groups.share, merge_stack(jax.tree.map(groups.stack, members)), members)


def merge_devices(local: Statistics, over: Over, equal_counts: bool) -> Statistics:
    """Merge the statistics of all devices with one all-gather.

    Of 3C numbers, and the counts where a mask makes them unequal. A single lane of ``vmap`` is only
    told that its statistics are those of all lanes.
    """
    if single_lane(over):
        return jax.tree.map(lambda v: lax.psum(v, over.axis_name), local)
    dtype = local.mean.dtype
    travelling = local[1:] if equal_counts else local
    packed = jnp.concatenate([v.astype(dtype).ravel() for v in travelling])
    packed = all_gather(packed, over)
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
