"""The explicit state of batch norm: running statistics, and the one rule that updates them."""

from __future__ import annotations

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.core._axes import compute_dtype, real_dtype, whole_number
from bnjax.core._checks import as_dtype, check_switch, check_type, is_real, known_value
from bnjax.core._moments import Moments

MAKE_ONE = (
    "Make one with bnjax.init_batch_stats(num_features), or BatchStats(**d) of a restored dict."
)


class BatchStats(NamedTuple):
    """Running statistics of one batch-norm layer: a pytree that goes in and comes out.

    Attributes:
      mean: running mean, shape ``(*features)``.
      var: running variance, shape ``(*features)``, real.
      count: number of updates seen, int32 scalar. Zero means ``mean`` and ``var`` are still the
        initial 0 and 1, which describe no data. Where a mask may leave a feature without any
        data for a whole batch, replace it by zeros of shape ``(*features)``: each feature then
        counts, and is debiased, by itself.

    Example:
      >>> import bnjax
      >>> stats = bnjax.init_batch_stats(2)
      >>> print(stats.mean, stats.var, stats.count)
      [0. 0.] [1. 1.] 0

    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 8-11. PyTorch's ``running_mean``,
    ``running_var`` and ``num_batches_tracked``; Flax has the first two and no count.
    """

    mean: jax.Array  # (*features)
    var: jax.Array  # (*features)
    count: jax.Array | np.ndarray  # () or (*features)


def init_batch_stats(num_features, dtype=jnp.float32) -> BatchStats:
    """State before the first update: mean 0, variance 1, count 0.

    Args:
      num_features: number of features, or their shape as a tuple when several axes are kept.
      dtype: dtype of the mean; the variance has its real counterpart. At least float32: a
        running average in half precision loses updates smaller than 1/256 of its value.

    Returns:
      :class:`BatchStats`.

    Raises:
      ValueError: a number of features is negative, or ``dtype`` is narrower than float32.

    Example:
      >>> import bnjax
      >>> print(bnjax.init_batch_stats((2, 3)).mean.shape)
      (2, 3)

    Source: PyTorch and Flax start from the same values.
    """
    shape = tuple(num_features) if isinstance(num_features, (tuple, list)) else (num_features,)
    shape = tuple(whole_number(n, "num_features", 0) for n in shape)
    if compute_dtype(as_dtype(dtype)) != jnp.dtype(dtype):
        raise ValueError(
            f"dtype of running statistics must be float32, float64 or complex, got "
            f"{jnp.dtype(dtype)}: a running average in half precision stops moving."
        )
    return BatchStats(
        jnp.zeros(shape, dtype), jnp.ones(shape, real_dtype(dtype)), jnp.zeros((), jnp.int32)
    )


def update_batch_stats(
    stats: BatchStats,
    moments: Moments,
    *,
    decay: float | jax.Array | None = 0.99,
    ddof: int = 0,
    debias: bool = False,
    skip_nonfinite: bool = False,
) -> BatchStats:
    r"""Move the running statistics towards those of one batch.

    .. math::
        \mu \leftarrow \mu + w (\mu_B - \mu), \qquad v \leftarrow v + w (v_B - v), \qquad
        w = \begin{cases}
            1 - \lambda & \text{plain exponential average} \\
            (1 - \lambda) / (1 - \lambda^{t+1}) & \text{debias} \\
            1 / (t + 1) & \text{decay=None: average of all updates}
        \end{cases}

    with :math:`\lambda` = ``decay`` and :math:`t` = ``stats.count``. With ``debias`` the first
    update replaces the initial 0 and 1 altogether, and what is stored is always the unbiased
    weighted average of the batches seen: after any number of identical batches it *is* the batch
    statistics, and evaluation needs no correction.

    Features without data (``moments.count <= ddof``) keep their statistics; when no feature has
    any, the count stays too (a count of each feature stays where that feature has none, see
    :class:`BatchStats`). Differentiable in ``stats`` and ``moments``.

    Args:
      stats: state before the update.
      moments: of the batch, from :func:`bnjax.moments`, merged if need be.
      decay: weight of the old value, in [0, 1], or None. For a schedule pass a scalar array,
        perhaps traced: each new Python number compiles a new program where one is compiled.
      ddof: 0 stores the population variance, 1 the sample variance ``m2 / (count - 1)``.
      debias: see above.
      skip_nonfinite: leave everything as it was if any moment is infinite or NaN, as when loss
        scaling overflows. Off by default: then the running statistics turn NaN, visibly.

    Returns:
      The new :class:`BatchStats`, in the dtypes of the old (but a complex mean makes it complex:
      start from ``init_batch_stats(n, complex64)`` where dtypes must not change).

    Raises:
      TypeError: ``stats`` or ``moments`` is of another type, or a switch is no bool.
      ValueError: ``decay`` lies outside [0, 1] (where its value is known), ``ddof`` is not 0 or 1,
        or ``moments`` is of other features than ``stats``.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> batch = bnjax.moments(jnp.array([[1.0], [3.0]]), axes=0)
      >>> stats = bnjax.init_batch_stats(1)
      >>> after = bnjax.update_batch_stats(stats, batch, decay=0.9)
      >>> print(after.mean, after.var, after.count)
      [0.2] [1.] 1
      >>> print(bnjax.update_batch_stats(stats, batch, decay=0.9, debias=True).mean)
      [2.]

    Source: Ioffe & Szegedy (2015), §3.1; Kingma & Ba (2015), §3, for the bias correction.
    PyTorch's ``momentum`` is ``1 - decay`` (its default 0.1 is decay 0.9), ``momentum=None`` is
    ``decay=None``, and it stores ddof=1; Flax's ``momentum`` is ``decay``, with ddof=0.
    """
    check_decay(decay)
    check_ddof(ddof)
    check_type("stats", stats, BatchStats, MAKE_ONE)
    stats = jax.tree.map(jnp.asarray, stats)
    check_type("moments", moments, Moments, "Take them with bnjax.moments(x, axes).")
    check_same_features(stats, moments)
    check_switch("debias", debias)
    check_switch("skip_nonfinite", skip_nonfinite)
    valid = moments.count > ddof  # a Python bool where the count is known at trace time
    if skip_nonfinite:
        valid &= all_finite(moments)
    weight = _choose(valid, _update_weight(stats.count, decay, debias, stats.var.dtype), 0)

    def step(old, new):
        wide = compute_dtype(old.dtype, new.dtype)
        o, n = old.astype(wide), _choose(valid, new, jnp.zeros_like(new)).astype(wide)
        w = weight.astype(wide) if isinstance(weight, jax.Array) else weight
        # This form stays put when n == o; and with w = 1 the initial variance leaves no trace.
        o = _choose(w == 1, jnp.zeros_like(o), o)
        moved = o + w * (n - o)
        return moved if jnp.iscomplexobj(new) else moved.astype(old.dtype)

    valid &= bool(stats.mean.size)
    seen = jnp.any(valid) if stats.count.ndim == 0 else jnp.broadcast_to(valid, stats.count.shape)
    return BatchStats(
        step(stats.mean, jnp.asarray(moments.mean)),
        step(stats.var, jnp.asarray(moments.var(ddof))),
        stats.count + seen.astype(stats.count.dtype),
    )


def update_by_std(stats: BatchStats, moments: Moments, *, epsilon, ddof, **options) -> BatchStats:
    """:func:`update_batch_stats`, but averaging ``sqrt(var + epsilon)`` as batch renorm does."""
    std = jnp.sqrt(moments.var(ddof) + epsilon)
    after = update_batch_stats(
        stats._replace(var=jnp.sqrt(stats.var + epsilon)),
        moments._replace(m2=std * moments.count),
        **options,
    )
    var = jnp.maximum(jnp.square(after.var) - epsilon, 0).astype(stats.var.dtype)
    # The root and the square leave a rounding error, even where nothing moved.
    return after._replace(var=jnp.where(after.count > stats.count, var, stats.var))


def all_finite(moments: Moments):
    """Whether every moment is finite."""
    return jnp.all(jnp.isfinite(moments.mean)) & jnp.all(jnp.isfinite(moments.m2))


def _choose(condition, a, b):
    """``where``, decided at once for a condition that is known."""
    if isinstance(condition, (bool, np.bool_)):
        return a if condition else b
    return jnp.where(condition, a, b)


def _update_weight(count, decay, debias, dtype):
    """Weight of the newest batch in the running average, given ``count`` updates before it."""
    t = jnp.asarray(count, dtype)
    if decay is None:
        return 1 / (t + 1)
    if not debias:
        known = isinstance(decay, numbers.Real)
        return 1 - float(decay) if known else jnp.asarray(1 - decay, dtype)
    decay = jnp.asarray(decay, dtype)
    # expm1 keeps the digits of 1 - decay**(t + 1) for decay near 1, where the limit is 1/(t + 1).
    total = -jnp.expm1((t + 1) * jnp.log(decay))
    weight = jnp.where(decay < 1, (1 - decay) / jnp.where(decay < 1, total, 1), 1 / (t + 1))
    # Exactly 1 at first: a rounding error here would leave a trace of the initial variance.
    return jnp.where(t == 0, 1, weight)


def check_decay(decay) -> None:
    """Raise unless ``decay`` is None, a number in [0, 1], or a scalar array (perhaps traced)."""
    if decay is None:
        return
    scalar = is_real(decay) and jnp.ndim(decay) == 0
    value = known_value(decay) if scalar else None
    if scalar and (value is None or 0 <= value <= 1):
        return
    raise ValueError(
        "decay (momentum in the Flax modules) must lie in [0, 1] or be None (average of all "
        f"updates), got {decay!r}. It is the weight of the old value: PyTorch's momentum=0.1 is "
        "decay=0.9."
    )


def check_same_features(stats: BatchStats, moments: Moments) -> None:
    """Raise ``ValueError`` unless every field of both is of the same features."""
    want = jnp.shape(stats.mean)
    shapes = {
        "stats.var": jnp.shape(stats.var),
        "moments.mean": jnp.shape(moments.mean),
        "moments.m2": jnp.shape(moments.m2),
    }
    for name, shape in shapes.items():
        if shape != want:
            raise ValueError(
                f"{name} has shape {shape}, but stats.mean has {want}: they must be of the same "
                "features."
            )


def check_ddof(ddof) -> None:
    """Raise ``ValueError`` unless ``ddof`` is 0 or 1."""
    if isinstance(ddof, bool) or ddof not in (0, 1):
        raise ValueError(
            f"ddof must be 0 (population variance) or 1 (sample variance), got {ddof!r}."
        )
