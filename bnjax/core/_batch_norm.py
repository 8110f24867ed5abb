"""Batch normalisation: moments, normalise, scale and shift, and the running statistics."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import Axes
from bnjax.core._batch_stats import update_for
from bnjax.core._merge import AxisName, IndexGroups
from bnjax.core._programs import MISSING, SingleValue, State, Unseen, check_state, mode_for, run
from bnjax.core._rule import of_batch


def batch_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    batch_stats: State = MISSING,
    *,
    train: bool,
    decay: float | jax.Array | None = 0.99,
    epsilon: float = 1e-5,
    axis: Axes = -1,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    ddof: int = 0,
    debias: bool = False,
    virtual_batch_size: int | None = None,
    update_stats: bool | None = None,
    skip_nonfinite: bool = False,
    single_value: SingleValue = "error",
    unseen: Unseen = "warn",
    dtype: DTypeLike | None = None,
    axis_index_groups: IndexGroups | None = None,
) -> tuple[jax.Array, State]:
    r"""Normalise each feature of ``x`` over the batch, or by running statistics.

    .. math::
        \mu = \tfrac1n \sum_i x_i, \qquad v = \tfrac1n \sum_i (x_i - \mu)^2, \qquad
        y_i = \gamma\, \frac{x_i - \mu}{\sqrt{v + \epsilon}} + \beta

    In training :math:`\mu, v` are those of the batch, by the corrected two-pass algorithm of
    :func:`bnjax.moments`; the mean is kept to twice the working precision until it has been
    subtracted, so ``y`` and its gradients are right to a few units in the last place at any
    offset. (Compiled for TPU, sums are taken about the running mean, while the operation before
    writes ``x``, and once more where that is more than 2.6 deviations off; the result is the same
    up to rounding.) In evaluation they are ``batch_stats``.

    Which statistics normalise (``train``) and whether they are updated (``update_stats``) are
    two choices:

    ===========  ==================  =======================================================
    ``train``    ``update_stats``    use
    ===========  ==================  =======================================================
    True         None or True        training
    True         False               a second forward pass in the same step; test-time batches
    False        None or False       evaluation
    False        True                train with frozen normalisation while tracking the data
    ===========  ==================  =======================================================

    Derivatives: forward and reverse mode, to any order, in ``x``, ``scale`` and ``bias``. The
    backward pass keeps ``x`` in its own dtype and four vectors, and reads each activation twice.
    The *returned* ``batch_stats`` carry no gradient (they are stopped): state is not a path for
    learning. For differentiable running statistics compose :func:`bnjax.moments` and
    :func:`bnjax.update_batch_stats`.

    Magnitude: a variance is kept in float32 (float64 for such input), so ``y`` is right for
    deviations up to 1.8·10¹⁹ and its gradient up to 10¹⁶; beyond, ``y`` is ``bias`` or NaN. Below
    10⁻¹⁵ ``epsilon`` alone decides; it must be a normal number, 1.2·10⁻³⁸ at least, or 0.

    Args:
      x: floating or complex, for example ``(N, F)``, ``(N, L, C)``, ``(N, H, W, C)``.
      scale: γ, shape ``(*features)``, a scalar, or None for 1.
      bias: β, likewise, or None for 0.
      batch_stats: running statistics, from :func:`bnjax.init_batch_stats`; or a
        :class:`bnjax.PendingUpdate` of them, where several batches make one update. Needed; by
        name where ``scale`` and ``bias`` are left out.
      train: True to normalise by the batch, False by ``batch_stats``. A Python bool.
      decay: weight of the old running value (``momentum`` in Flax, ``1 - momentum`` in PyTorch);
        None averages all updates. A number, or for a schedule a scalar array, perhaps traced: both
        are the same program.
      epsilon: added to the variance, in units of ``x`` squared. With 0, a constant feature gives
        NaN in training, and one of running variance 0 in evaluation.
      axis: the feature axis or axes, which are *kept*: -1 for NHWC and (N, F), 1 for NCHW and
        (N, C, L), (1, 2) to normalise every (channel, row) by itself.
      mask: boolean, broadcastable to ``x``; True counts. Hidden entries take no part in the
        statistics or their gradients; they are normalised like the rest, and come out as
        ``bias`` where they are not finite. A feature with nothing to count comes out as ``bias``.
      axis_name: name or names of mapped axes (``jax.shard_map``, ``jax.vmap``) whose batches
        are merged: one all-gather forward, one all-reduce backward. Under ``jax.jit`` with
        sharded arrays leave it None. Under ``shard_map(check_vma=False)`` gradients of
        replicated ``scale`` and ``bias`` are local sums, as everywhere in JAX.
      ddof: 0 or 1, for the *running* variance only; the batch is normalised with 0.
      debias: correct the running statistics for their start, see
        :func:`bnjax.update_batch_stats`.
      virtual_batch_size: normalise slices of about this many examples of axis 0 separately (ghost
        batch norm), in training only. A batch of ``N`` is cut into ``max(1, N // size)`` virtual
        batches whose sizes differ by one at most. Running statistics get the merged moments.
      update_stats: see the table; None means the same as ``train``.
      skip_nonfinite: a batch with infinite or NaN moments leaves ``batch_stats`` untouched.
      single_value: what to do in training when each feature has one value only (by the shape of
        ``x``; a mask is not looked at), so that ``y`` would be ``bias`` whatever ``x`` is:
        "error"; "warn" and "allow" compute that; "running" normalises by ``batch_stats`` and
        leaves them untouched.
      unseen: what to do in evaluation when ``batch_stats`` are the initial ones, a count of 0
        beside a mean of 0 and a variance of 1: "warn" (where they are known, that is outside
        ``jit``), "nan" (fill ``y`` with NaN, under ``jit`` too) or "allow". Other values beside a
        count of 0 came without their counter and are used as they are, see
        :class:`bnjax.BatchStats`.
      dtype: dtype of ``y``; that of ``x`` unless given.
      axis_index_groups: groups of indices of ``axis_name`` to merge separately, where JAX
        supports them (``jax.pmap``, unchecked ``shard_map``); elsewhere name a mesh axis.

    Returns:
      ``(y, batch_stats)``: ``y`` of the shape of ``x``; statistics that are the argument itself
      when nothing was updated. A batch without examples, or without features, is no update: it
      leaves statistics and count as they were, in every mode.

    Raises:
      TypeError: ``x`` is integer or boolean, ``mask`` is not boolean, or there are no
        ``batch_stats``.
      ValueError: shapes do not fit, an option has an illegal value, or each feature has one
        value in training; each message names the argument and a remedy. All at trace time.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> stats = bnjax.init_batch_stats(2)
      >>> y, stats = bnjax.batch_norm(x, jnp.ones(2), jnp.zeros(2), stats, train=True, decay=0.9)
      >>> print(y.round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(stats.mean, stats.count)
      [0.2 2. ] 1
      >>> y, _ = bnjax.batch_norm(x, batch_stats=stats, train=False)  # neither scale nor bias

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2; Chan, Golub & LeVeque (1983) for the
    statistics; Hoffer et al. (2017) for virtual batches. PyTorch's ``momentum`` is ``1 - decay``
    and its running variance has ddof=1. Flax computes ``E[x²] - E[x]²`` by default, averages
    means over devices and has no count.
    """
    check_state(batch_stats)
    options = epsilon, dtype, axis_name, axis_index_groups, virtual_batch_size
    inputs, rule = of_batch(x, mask, scale, bias, axis, *options)
    update = update_for(decay, ddof, debias, skip_nonfinite)
    mode = mode_for(train, update_stats, single_value, unseen)
    return run(inputs, batch_stats, None, rule, update, mode)
