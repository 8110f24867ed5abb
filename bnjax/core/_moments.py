"""Moments: count, mean and sum of squared deviations, and their merge."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import ArrayLike

from bnjax.core._axes import Axes
from bnjax.core._checks import as_inexact, as_mask, canonical_axes, check_type
from bnjax.core._merge import AxisName
from bnjax.core._rule import Rule, rule_for
from bnjax.core._statistics import statistics
from bnjax.core._sums import abs_sq


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


export.register_namedtuple_serialization(Moments, serialized_name="bnjax.Moments")


def merge(a: Moments, b: Moments) -> Moments:
    r"""Moments of the union of two disjoint sets.

    .. math::
        n = n_a + n_b, \quad \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \delta\, n_b / n, \quad
        M_2 = M_{2,a} + M_{2,b} + |\delta|^2\, n_a n_b / n

    Associative and commutative up to rounding (of a mean to its dtype: at an offset of 10⁶ standard
    deviations a float32 mean is off by some hundredths of one), safe for counts of zero,
    differentiable. The identity is ``Moments(0., 0., 0.)`` (or zeros of the shape of the other).

    Args:
      a, b: moments of the same features and dtype.

    Returns:
      The merged moments.

    Raises:
      TypeError: ``a`` or ``b`` is no :class:`Moments`.
      ValueError: their features differ in shape.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.arange(6.0)
      >>> both = bnjax.merge(bnjax.moments(x[:2], 0), bnjax.moments(x[2:], 0))
      >>> print(both.count, both.mean, both.var())
      6.0 2.5 2.9166667

    Source: Chan, Golub & LeVeque (1983), eq. 2.1. PyTorch's SyncBatchNorm merges counts, means
    and variances alike; Flax averages means over devices, wrong for unequal counts (flax#2417).
    """
    for name, part in (("a", a), ("b", b)):
        check_type(name, part, Moments, "Take them with bnjax.moments(x, axes).")
    a, b = jax.tree.map(jnp.asarray, (a, b))
    if a.mean.ndim and b.mean.ndim and a.mean.shape != b.mean.shape:
        raise ValueError(
            f"a and b must be of the same features, got means of shape {a.mean.shape} and "
            f"{b.mean.shape}."
        )
    count = a.count + b.count
    share = b.count / jnp.where(count > 0, count, 1)
    delta = b.mean - a.mean
    mean = a.mean + delta * share.astype(delta.dtype)
    return Moments(count, mean, a.m2 + b.m2 + abs_sq(delta) * (a.count * share))


def moments(
    x: ArrayLike,
    axes: Axes,
    *,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Moments:
    r"""Count, mean and sum of squared deviations of ``x`` over ``axes``.

    The corrected two-pass algorithm: with a shift :math:`K` near the mean (the mean of every
    eighth part of the data, or of all that a mask leaves) and :math:`d = x - K` (exact or nearly
    so),

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
      :class:`Moments` with the shape of the axes that are left; float32 at least. ``m2`` is in that
      dtype: in float32 it overflows beyond a deviation of :math:`1.8 \cdot 10^{19} / \sqrt n`.

    Raises:
      TypeError: ``x`` is integer or boolean, or ``mask`` is not boolean.
      ValueError: an axis is out of range, or ``mask`` does not broadcast to ``x``.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> m = bnjax.moments(jnp.array([1e6 + 1, 1e6 + 2, 1e6 + 3]), axes=0)
      >>> print(m.count, m.mean, m.m2)
      3.0 1.000002e+06 2.0

    Source: Chan, Golub & LeVeque (1983), corrected two-pass algorithm, eq. 1.7, with a shift that a
    sample is enough for. PyTorch uses Welford's update, Flax by default the difference of squares,
    which is 100 % off at an offset of 10⁴ standard deviations.
    """
    x = as_inexact(x, "x")
    rule = rule_for(x, canonical_axes(axes, x.ndim, "axes"), (), 0.0, None, axis_name)
    return _moments(x, as_mask(mask, x), rule)


@functools.partial(jax.jit, static_argnames="rule")
def _moments(x: jax.Array, mask: jax.Array | None, rule: Rule) -> Moments:
    stats = statistics(x, mask, None, rule).compact(rule.axes)
    return Moments(stats.count, stats.mean, stats.m2)
