"""One update of the running statistics out of several batches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import DTypeLike

from bnjax.core._axes import compute_dtype, real_dtype
from bnjax.core._batch_stats import BatchStats, Update, all_finite, widened
from bnjax.core._checks import check_type
from bnjax.core._moments import Moments, merge
from bnjax.core._sharding import sharded_like
from bnjax.core._statistics import MeanVariance


class PendingUpdate(NamedTuple):
    r"""Running statistics in the middle of a step that is made of several batches.

    Each batch merges its moments; the update is always the one that all batches so far would
    have made together:

    .. math::
        M \leftarrow M \oplus M_B, \qquad \mathrm{after} = \mathrm{update}(\mathrm{before}, M)

    with :math:`\oplus` = :func:`bnjax.merge`. So ``k`` micro-batches, or several forward passes
    of one step, move the running statistics once, and as far as one batch of all examples does.

    Pass it to :func:`bnjax.batch_norm` in place of ``batch_stats``; it comes back in its place.

    Attributes:
      before: :class:`bnjax.BatchStats` as they were before the step.
      moments: :class:`bnjax.Moments` of all batches of the step so far.
      after: :class:`bnjax.BatchStats` to go on with after the step.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> stats, x = bnjax.init_batch_stats(1), jnp.array([[1.0], [3.0], [11.0], [13.0]])
      >>> pending = bnjax.begin_update(stats)
      >>> for micro in (x[:2], x[2:]):
      ...     y, pending = bnjax.batch_norm(micro, None, None, pending, train=True, decay=0.9)
      >>> _, whole = bnjax.batch_norm(x, None, None, stats, train=True, decay=0.9)
      >>> print(pending.after.mean, whole.mean, pending.after.count)
      [0.7] [0.7] 1

    Source: Chan, Golub & LeVeque (1983) for the merge. PyTorch and Flax have nothing like it:
    there ``k`` micro-batches are ``k`` updates, and the spread of their means is lost from the
    variance.
    """

    before: BatchStats
    moments: Moments
    after: BatchStats

    def take(self, moments: MeanVariance, update: Update) -> PendingUpdate:
        """This update with one batch more."""
        old = jax.tree.map(lambda v: sharded_like(v, moments.mean), self.moments)
        wide = compute_dtype(old.mean.dtype, moments.mean.dtype)
        merged = merge(_as(old, wide), _as(moments, wide))
        if update.skip_nonfinite:
            keep = all_finite(moments)
            merged = jax.tree.map(lambda m, p: jnp.where(keep, m, p), merged, _as(old, wide))
        after = self.before.take(merged, update)
        # In the dtypes of before, so that a scan can carry it; but complex numbers stay complex.
        real = jnp.iscomplexobj(merged.mean) == jnp.iscomplexobj(old.mean)
        return PendingUpdate(self.before, _as(merged, old.mean.dtype) if real else merged, after)


export.register_namedtuple_serialization(PendingUpdate, serialized_name="bnjax.PendingUpdate")


def begin_update(batch_stats: BatchStats) -> PendingUpdate:
    """Open an update of ``batch_stats`` that several batches will make together.

    Args:
      batch_stats: running statistics before the step.

    Returns:
      :class:`PendingUpdate` without any batch: its ``after`` is ``batch_stats``, in float32 where
      those are in half precision. Moments count each feature by itself, so that shapes and dtypes
      are the same before and after each batch, whatever its mask: a carry for ``jax.lax.scan``.
      (Where batches are complex, ``batch_stats`` must be complex from the start for that.)

    Raises:
      TypeError: ``batch_stats`` is of another type.

    Example:
      >>> import bnjax
      >>> pending = bnjax.begin_update(bnjax.init_batch_stats(2))
      >>> print(pending.moments.count, pending.after.count)
      [0. 0.] 0

    Source: see :class:`PendingUpdate`.
    """
    remedy = (
        "For the collection of a linen model use bnjax.training.begin_update, for an nnx model "
        "bnjax.nnx.one_update."
    )
    check_type("batch_stats", batch_stats, BatchStats, remedy)
    before = widened(batch_stats)
    zeros = (sharded_like(jnp.zeros_like(v), v) for v in (before.var, before.mean, before.var))
    return PendingUpdate(before, Moments(*zeros), before)


def _as(moments: Moments | MeanVariance, dtype: DTypeLike) -> Moments:
    real = real_dtype(dtype)
    count, m2 = jnp.asarray(moments.count, real), jnp.asarray(moments.m2, real)
    return Moments(count, jnp.asarray(moments.mean, dtype), m2)
