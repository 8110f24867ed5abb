"""Count, mean and sum of squared deviations: one stable reduction, one merge, one derivative."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import (
    Axes,
    canonical_axes,
    check_inexact,
    check_mask,
    compute_dtype,
    other_axes,
    real_dtype,
    size_of,
)
from bnjax.core._checkpoint import remember_inputs
from bnjax.core._xla import holder, pin


class Moments(NamedTuple):
    r"""Sufficient statistics of a set of numbers: how many, their mean, their squared deviations.

    .. math::
        n = |S|, \qquad \mu = \tfrac1n \sum_{i \in S} x_i, \qquad
        M_2 = \sum_{i \in S} |x_i - \mu|^2, \qquad \mathrm{var} = M_2 / (n - \mathrm{ddof})

    Moments of disjoint sets combine with :func:`merge`; all zeros is its identity. That is what
    makes masks, virtual batches, micro-batches and devices of unequal size one idea:
    means are never averaged, moments are merged.

    Attributes:
      count: number of elements a feature, real floating point. A scalar ``()``, or shaped like
        ``mean`` when a mask counts differently from feature to feature.
      mean: arithmetic mean, shape ``(*features)``, float32 at least (complex for complex data).
      m2: sum of squared absolute deviations from the mean, shape ``(*features)``, real.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> m = bnjax.moments(jnp.array([[1.0, 10.0], [3.0, 30.0]]), axes=0)
      >>> print(m.mean, m.var(), m.var(ddof=1))
      [ 2. 20.] [  1. 100.] [  2. 200.]

    Source: Chan, Golub & LeVeque (1983), *Algorithms for computing the sample variance*.
    PyTorch and Flax keep no such type; they pass a mean and a variance and lose the count.
    """

    count: jax.Array | float  # () or (*features)
    mean: jax.Array  # (*features)
    m2: jax.Array  # (*features)

    def var(self, ddof: int = 0) -> jax.Array:
        """``m2 / (count - ddof)``; 0 where ``count <= ddof``, so it is always finite."""
        degrees = self.count - ddof
        if isinstance(degrees, (int, float)):  # known at trace time
            return self.m2 / degrees if degrees > 0 else jnp.zeros_like(self.m2)
        return jnp.where(degrees > 0, self.m2 / jnp.where(degrees > 0, degrees, 1), 0)


def merge(a: Moments, b: Moments) -> Moments:
    r"""Moments of the union of two disjoint sets.

    .. math::
        n = n_a + n_b, \quad \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \delta\, n_b / n, \quad
        M_2 = M_{2,a} + M_{2,b} + |\delta|^2\, n_a n_b / n

    Associative and commutative up to rounding (of a mean to its dtype: at an offset of 10⁶ standard
    deviations a float32 mean is off by some hundredths of one), safe for counts of zero,
    differentiable. The identity is ``Moments(0., 0., 0.)`` (or zeros of any shape that broadcasts).

    Args:
      a, b: moments of the same features and dtype.

    Returns:
      The merged moments.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.arange(6.0)
      >>> both = bnjax.merge(bnjax.moments(x[:2], 0), bnjax.moments(x[2:], 0))
      >>> print(both.count, both.mean, both.var())
      6.0 2.5 2.9166667

    Source: Chan, Golub & LeVeque (1983), eq. 2.1. PyTorch's SyncBatchNorm merges counts, means
    and variances alike; Flax averages means over devices, wrong for unequal counts (flax#2417).
    """
    a, b = jax.tree.map(jnp.asarray, (a, b))
    count = a.count + b.count
    share = b.count / jnp.where(count > 0, count, 1)
    delta = b.mean - a.mean
    mean = a.mean + delta * share.astype(delta.dtype)
    return Moments(count, mean, a.m2 + b.m2 + abs_sq(delta) * (a.count * share))


def moments(x, axes: Axes, *, mask=None, axis_name=None) -> Moments:
    r"""Count, mean and sum of squared deviations of ``x`` over ``axes``.

    The corrected two-pass algorithm: with :math:`K = \mathrm{round}(\sum x / n)` and
    :math:`d = x - K` (exact or nearly so),

    .. math::
        s = \tfrac1n \sum d, \qquad \mu = K + s, \qquad
        M_2 = \sum |d|^2 - n |s|^2

    so neither a large offset nor an outlier costs digits, unlike
    :math:`E[x^2] - E[x]^2`. Differentiable in both modes to any order:
    :math:`\dot\mu = \tfrac1n \sum \dot x` and
    :math:`\dot M_2 = 2 \sum \mathrm{Re}\, \overline{(x - \mu)}\, \dot x`; keeps ``x`` in its own
    dtype for the backward pass, and nothing else of its size.

    Args:
      x: floating or complex array of any shape.
      axes: axis or axes to reduce.
      mask: boolean, broadcastable to ``x``; True counts. What it hides, even NaN, takes no part
        in values or gradients. The count is one of elements of ``x``, not of the mask.
      axis_name: name or names of mapped axes (``jax.shard_map``, ``jax.vmap``) to merge over.

    Returns:
      :class:`Moments` with the shape of the axes that are left; float32 at least. Squares are
      summed in that dtype: beyond 10¹⁹ in float32 they overflow.

    Raises:
      TypeError: ``x`` is integer or boolean, or ``mask`` is not boolean.
      ValueError: an axis is out of range, or ``mask`` does not broadcast to ``x``.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> m = bnjax.moments(jnp.array([1e6 + 1, 1e6 + 2, 1e6 + 3]), axes=0)
      >>> print(m.count, m.mean, m.m2)
      3.0 1.000002e+06 2.0

    Source: Chan, Golub & LeVeque (1983), corrected two-pass algorithm, eq. 1.7. PyTorch uses
    Welford's update, Flax by default the difference of squares, which is 100 % off at an
    offset of 10⁴ standard deviations.
    """
    x = jnp.asarray(x)
    check_inexact(x)
    axes = canonical_axes(axes, x.ndim, "axes")
    return _moments(x, check_mask(mask, x), axes, canonical_axis_name(axis_name))


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _moments(x, mask, axes, sync) -> Moments:
    return compact(statistics(x, mask, axes, sync), axes)


class Sync(NamedTuple):
    """Where statistics are merged across devices (static)."""

    axis_name: tuple = ()
    axis_index_groups: tuple | None = None


def canonical_axis_name(axis_name, axis_index_groups=None) -> Sync:
    """``axis_name`` (a name, several, or None) as a hashable :class:`Sync`."""
    if axis_name is None:
        return Sync()
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    if axis_index_groups is None:
        return Sync(names)
    return Sync(names, tuple(tuple(int(i) for i in group) for group in axis_index_groups))


def devices(sync: Sync) -> int:
    """How many devices (or mapped lanes) are merged; known at trace time."""
    if sync.axis_index_groups is not None:
        return len(sync.axis_index_groups[0])
    return lax.axis_size(sync.axis_name) if sync.axis_name else 1


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


def compact(stats: Statistics, axes: tuple[int, ...], known: float | None = None) -> Moments:
    """Statistics as users see them: reduced axes removed, the mean rounded once.

    ``known`` takes the place of the count where that is known at trace time.
    """
    if known is not None:
        count = known
    else:
        one = stats.count.size == 1
        count = stats.count.reshape(()) if one else lax.squeeze(stats.count, axes)
    m2 = lax.squeeze(stats.var * (stats.count if known is None else known), axes)
    return Moments(count, lax.squeeze(stats.mean, axes), m2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def statistics(x, mask, axes: tuple[int, ...], sync: Sync) -> Statistics:
    """Statistics of ``x`` over ``axes`` and ``sync``, differentiable."""
    return compute_statistics(x.astype(compute_dtype(x.dtype)), mask, axes, sync)


@statistics.defjvp
def _statistics_jvp(axes, sync, primals, tangents):
    def tangent(x, mask, stats, dx):
        x, dx = x.astype(stats.mean.dtype), dx.astype(stats.mean.dtype)
        return statistics_tangent(x, mask, stats, dx, axes, sync, holder(stats.var))

    x, mask = primals
    stats = statistics(x, mask, axes, sync)
    return stats, remember_inputs(tangent)(x, mask, stats, tangents[0])


def compute_statistics(x, mask, axes: tuple[int, ...], sync: Sync) -> Statistics:
    """The corrected two-pass algorithm on ``x`` of compute dtype, merged over ``sync``."""
    count, weight = _count_and_weight(x, mask, axes)
    shift = _shift(x, mask, axes, weight)
    # Two sums about two nearby shifts: about one, XLA would store x - shift for both to read.
    other = pin(shift, 2)
    s = pin(_times(_sum(_where(mask, x - shift), axes), weight))
    q = _times(_sum(abs_sq(_where(mask, x - other)), axes), weight)
    var = jnp.maximum(q - abs_sq(s + (shift - other)), 0)
    mean, mean_lo = _double_word(shift, s)
    stats = Statistics(count, holder(q)(mean), mean_lo, var)
    return merge_devices(stats, sync, equal_counts=mask is None) if sync.axis_name else stats


def _shift(x, mask, axes, weight):
    r"""A number near the mean of each feature: the mean of every eighth part of ``x``.

    By the Cauchy-Schwarz inequality the mean of a fraction ``f`` of the data lies within
    ``sqrt((1 - f) / f)`` standard deviations of the mean of all, whatever the data: for
    ``f = 1/8`` the sum of squares about it is at most eight times that about the mean. That costs
    three of float32's 24 bits at the very worst, and saves seven eighths of a pass. A mask may
    hide any part of the data, so then all of it is averaged.
    """
    sampled = None if mask is not None else _sampled_axis(x, axes)
    if sampled is not None:
        x = lax.slice_in_dim(x, 0, None, stride=8, axis=sampled)
        _, weight = _count_and_weight(x, mask, axes)
    return pin(_times(_sum(_where(mask, x), axes), weight))


def _sampled_axis(x, axes) -> int | None:
    """The axis to take every eighth part of, if there is one that is whole on each device."""
    if 0 in x.shape:
        return None
    spec = tuple(jax.typeof(x).sharding.spec) + (None,) * x.ndim
    # Under jit, axis 0 may be spread over devices without this being known here.
    whole = [a for a in axes if spec[a] is None and (a > 0 or jax.device_count() == 1)]
    # A symbolic size (jax.export) is no int and compares with none.
    return next((a for a in whole if isinstance(x.shape[a], int) and x.shape[a] >= 8), None)


def statistics_tangent(x, mask, stats: Statistics, dx, axes, sync: Sync, hold) -> Statistics:
    r"""Tangents of the statistics, through two sums over the data.

    :math:`\dot\mu = \sum \dot x / n` and
    :math:`\dot v = 2 \sum \mathrm{Re}\,\overline{(x-\mu)}\,\dot x / n`. The deviation is taken
    from the rounded mean and corrected afterwards, as in the forward pass. The transpose is one
    elementwise pass; one collective each way.
    """
    dx = _where(mask, dx)
    # Not about the mean, for the same reason as above: other kernels read x - mean.
    shift = pin(stats.mean)
    cov = _sum(_inner(_where(mask, x - shift), dx), axes).astype(dx.dtype)
    dmean, cov = _sum_devices(hold(_sum(dx, axes)), hold(cov), sync=sync)
    _, weight = _count_and_weight(x, mask, axes)
    weight = weight / devices(sync) if isinstance(weight, float) else _reciprocal(stats.count)
    dmean, cov = _times(dmean, weight), _times(cov, weight)
    dvar = 2 * (_real(cov) - _inner((stats.mean - shift) + stats.mean_lo, dmean))
    return Statistics(jnp.zeros_like(stats.count), dmean, jnp.zeros_like(stats.mean_lo), dvar)


def _sum_devices(*sums, sync: Sync):
    """Each of ``sums`` over all devices on ``sync``, in one collective."""
    if not sync.axis_name:
        return sums
    stacked, _ = _vary(jnp.stack(sums), sync.axis_name)
    return lax.psum(stacked, sync.axis_name, axis_index_groups=sync.axis_index_groups)


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
        return count, (1 / max(size, 1) if known else _reciprocal(count))
    repeats = size_of(x.shape, tuple(a for a in axes if mask.shape[a] == 1))
    # Integers: a float32 running sum of ones stops growing at 2**24.
    hits = jnp.sum(mask, axes, dtype=jnp.int32, keepdims=True)
    count = hits.astype(dtype) * repeats
    if all(mask.shape[a] == 1 for a in other_axes(axes, x.ndim)):
        count = count.reshape(())
    return count, _reciprocal(count)


def known_count(shape, mask, axes, sync: Sync):
    """The merged count as a Python float, or None where a mask or a symbolic size decides."""
    size = size_of(shape, axes)
    return float(size * devices(sync)) if mask is None and isinstance(size, int) else None


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


def merge_devices(local: Statistics, sync: Sync, equal_counts: bool) -> Statistics:
    """Merge the statistics of all devices on ``sync`` with one all-gather.

    Of 3C numbers, and the counts where a mask makes them unequal.
    """
    dtype = local.mean.dtype
    travelling = local[1:] if equal_counts else local
    packed = jnp.concatenate([v.astype(dtype).ravel() for v in travelling])
    packed = _all_gather(packed, sync)
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
    share = stack.count * _reciprocal(total)[None]
    share = share.reshape(share.shape + (1,) * (stack.mean.ndim - share.ndim))
    shift = pin(jnp.sum(share.astype(dtype) * stack.mean, 0))
    d = (stack.mean - shift[None]) + stack.mean_lo
    s = pin(jnp.sum(share.astype(dtype) * d, 0))
    var = jnp.sum(share * (stack.var + abs_sq(d - s[None])), 0)
    return Statistics(total, *_double_word(shift, s), var)


def _all_gather(v: jax.Array, sync: Sync) -> jax.Array:
    """``v`` of every device, stacked on a new leading axis."""
    if sync.axis_index_groups is not None:
        return lax.all_gather(v, sync.axis_name, axis_index_groups=sync.axis_index_groups)
    mesh_names = jax.sharding.get_abstract_mesh().axis_names
    mesh = tuple(name for name in sync.axis_name if name in mesh_names)
    stacked = v[None]
    for name in sync.axis_name:
        if name not in mesh:  # an axis of vmap, which gathers one name at a time
            stacked = lax.all_gather(stacked, name).reshape(-1, *v.shape)
    if mesh:
        # Checked shard_map must be told that all devices hold the same, for the statistics to
        # leave it replicated; unchecked, nothing is known to vary.
        stacked, checked = _vary(stacked, mesh)
        stacked = lax.all_gather(stacked, mesh, to="invarying" if checked else "varying")
    return stacked.reshape(-1, *v.shape)


def _vary(v, mesh_names):
    """``v`` as varying over ``mesh_names``, where shard_map tracks that; and whether it does."""
    varying = jax.typeof(v).manual_axis_type.varying
    missing = tuple(name for name in mesh_names if name not in varying)
    checked = len(missing) < len(mesh_names)
    return (lax.pcast(v, missing, to="varying") if checked and missing else v), checked


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


def _where(mask, x):
    return x if mask is None else jnp.where(mask, x, 0)


def _reciprocal(count):
    """``1 / count``, and 0 for an empty set so that its mean and variance are 0, not NaN."""
    return jnp.where(count > 0, 1 / jnp.where(count > 0, count, 1), 0)
