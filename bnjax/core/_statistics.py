"""What a norm divides by: stable statistics, their derivative, and their merging."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import Shape, real_dtype, zero_unless
from bnjax.core._centre import centred
from bnjax.core._merge import Groups, Over, all_gather, single_lane, sum_over
from bnjax.core._rule import Rule
from bnjax.core._shift import deviations
from bnjax.core._sums import (
    abs_sq,
    count_and_weight,
    double_word,
    inner,
    mean_square_of,
    real_of,
    reciprocal,
    sum_of,
    times,
)
from bnjax.core._xla import once, pin, remember_inputs, settled


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def statistics(
    x: jax.Array, mask: jax.Array | None, guess: jax.Array | None, rule: Rule
) -> Statistics:
    """Statistics of ``x``, differentiable; they do not depend on the ``guess`` of its mean.

    Unless they are about the mean, the mean is zero by decree, and the variance the mean square.
    """
    count, weight = count_and_weight(x, mask, rule.axes, real_dtype(rule.wide))
    if rule.about_mean:
        local = Statistics(count, *centred(x, mask, guess, weight, rule))
    else:
        x = zero_unless(mask, x.astype(rule.wide))
        var = mean_square_of(x, weight, rule.axes)
        zero = jnp.zeros_like(var, dtype=rule.wide)
        local = Statistics(count, zero, zero, var)
    if rule.over.groups:
        local = merge_groups(local, rule.over.groups)
    if rule.over.axis_name:
        local = merge_devices(local, rule.over, equal_counts=mask is None)
    return local


@statistics.defjvp
def _statistics_jvp(rule: Rule, primals, tangents):
    def tangent(x, mask, stats, dx):
        return statistics_tangent(x, mask, stats, dx.astype(rule.wide), rule, like=stats.var)

    x, mask, guess = primals
    stats = statistics(x, mask, guess, rule)
    return stats, remember_inputs(tangent)(x, mask, stats, tangents[0])


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
    elementwise pass; one collective each way. ``dx`` is of compute dtype; ``like`` is a vector for
    :func:`once`.
    """
    axes, over = rule.axes, rule.over
    dx = zero_unless(mask, dx)
    known = known_count(x.shape, mask, rule)
    weight = reciprocal(stats.count) if known is None else 1 / max(known, 1)
    nothing = jnp.zeros_like(stats.count), jnp.zeros_like(stats.mean), jnp.zeros_like(stats.mean)
    if not rule.about_mean:
        x = zero_unless(mask, x.astype(rule.wide))
        (cov,) = sum_over(once(sum_of(inner(x, dx), axes), like), over=over)
        return Statistics(*nothing, 2 * times(cov, weight))
    d, rest = deviations(x, stats.mean, mask, 1, rule.short_rows)
    sums = sum_of(dx, axes), sum_of(inner(d, dx), axes).astype(dx.dtype)
    dmean, cov = (times(v, weight) for v in sum_over(*(once(v, like) for v in sums), over=over))
    dvar = 2 * (real_of(cov) - inner(rest + stats.mean_lo, dmean))
    return Statistics(nothing[0], dmean, nothing[1], dvar)


def known_count(shape: Shape, mask: jax.Array | None, rule: Rule) -> float | None:
    """The merged count, or None where a mask or a symbolic size decides."""
    values = rule.values_a_mean(shape)
    return float(values) if mask is None and isinstance(values, int) else None


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
    return merge_stack(Statistics(real_of(count), mean, mean_lo, real_of(var)))


def merge_stack(stack: Statistics) -> Statistics:
    """Merge statistics stacked on a leading axis.

    Chan's update for many sets at once, about a common shift so that no digits are lost.
    """
    dtype = stack.mean.dtype
    total = jnp.sum(stack.count, 0)
    share = stack.count * reciprocal(total)[None]
    share = share.reshape(share.shape + (1,) * (stack.mean.ndim - share.ndim))
    shift = pin(settled(jnp.sum(share.astype(dtype) * stack.mean, 0)))
    d = (stack.mean - shift[None]) + stack.mean_lo
    s = settled(jnp.sum(share.astype(dtype) * d, 0))
    var = jnp.sum(share * (stack.var + abs_sq(d - s[None])), 0)
    return Statistics(total, *double_word(shift, s, var), var)
