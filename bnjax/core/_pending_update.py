"""One update of the running statistics out of several batches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bnjax.core._axes import compute_dtype, real_dtype
from bnjax.core._batch_stats import BatchStats, all_finite, widened
from bnjax.core._checks import check_type
from bnjax.core._moments import Moments, merge


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
    nothing = Moments(*map(_zeros_of, (before.var, before.mean, before.var)))
    return PendingUpdate(before, nothing, before)


def _zeros_of(v):
    """``jnp.zeros_like``, which from JAX 0.12 on forgets inside jit that ``v`` is on a mesh."""
    return (jnp.real(v) < -jnp.inf).astype(jnp.result_type(v))


def add_to_update(update, pending: PendingUpdate, moments: Moments, **options) -> PendingUpdate:
    """``pending`` with one batch more; ``update`` is ``update_batch_stats`` or its like."""
    old = pending.moments
    wide = compute_dtype(old.mean.dtype, moments.mean.dtype)
    merged = merge(_as(old, wide), _as(moments, wide))
    if options["skip_nonfinite"]:
        keep = all_finite(moments)
        merged = jax.tree.map(lambda m, p: jnp.where(keep, m, p), merged, _as(old, wide))
    after = update(pending.before, merged, **options)
    # In the dtypes of before, so that a scan can carry it; but complex numbers stay complex.
    real = jnp.iscomplexobj(merged.mean) == jnp.iscomplexobj(old.mean)
    return PendingUpdate(pending.before, _as(merged, old.mean.dtype) if real else merged, after)


def _as(moments: Moments, dtype) -> Moments:
    real = real_dtype(dtype)
    count, m2 = jnp.asarray(moments.count, real), jnp.asarray(moments.m2, real)
    return Moments(count, jnp.asarray(moments.mean, dtype), m2)
