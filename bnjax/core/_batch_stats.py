"""The explicit state of batch norm: running statistics, and the one rule that updates them."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.core._axes import at_least_float32, compute_dtype, real_dtype, whole_number
from bnjax.core._checks import as_dtype, check_switch, check_type, is_real, known_value
from bnjax.core._moments import MeanVariance, Moments
from bnjax.core._sharding import sharded_like

MAKE_ONE = (
    "Make one with bnjax.init_batch_stats(num_features), or BatchStats(**d) of a restored dict."
)


class BatchStats(NamedTuple):
    """Running statistics of one batch-norm layer: a pytree that goes in and comes out.

    Attributes:
      mean: running mean, shape ``(*features)``.
      var: running variance, shape ``(*features)``, real.
      count: number of updates seen, int32 scalar. Zero beside a mean of 0 and a variance of 1
        means that there was none: these are the initial values, which describe no data. Zero
        beside any other value means that the statistics came without their counter, as those of
        Flax and Keras do: evaluation takes them as they are, and :func:`update_batch_stats` says
        how the next batch is weighed. Where a mask may leave a feature without any data for a
        whole batch, replace it by zeros of shape ``(*features)``: each feature then counts, and is
        debiased, by itself.

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

    Statistics that came without their counter (a count of 0 beside other values than the initial
    ones) have seen data, nobody knows how often. With ``debias`` they count as settled,
    :math:`\lambda^t \approx 0`, so that the next batch gets the plain weight :math:`1 - \lambda`;
    in an average of all updates they count as one update. The new count goes on from there.

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
      The new :class:`BatchStats`, in the dtypes of the old, but float32 and int32 at least, since
      a running average in half precision or integers stops moving. A complex mean makes it
      complex: start from ``init_batch_stats(n, complex64)`` where dtypes must not change.

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
    check_type("moments", moments, Moments, "Take them with bnjax.moments(x, axes).")
    check_same_features(stats, moments)
    check_switch("debias", debias)
    check_switch("skip_nonfinite", skip_nonfinite)
    return move(stats, moments, None, decay, ddof, debias, skip_nonfinite)


def move(
    stats: BatchStats, moments: MeanVariance | Moments, epsilon, decay, ddof, debias, skip_nonfinite
) -> BatchStats:
    """:func:`update_batch_stats` of what has been checked.

    What is averaged is the variance, or with ``epsilon`` its root, ``sqrt(var + epsilon)``, as
    batch renorm has it.
    """
    like = jnp.asarray(moments.mean)
    stats = BatchStats(*(sharded_like(v, like) for v in widened(stats)))
    # A Python bool where the count is known at trace time.
    valid = (moments.count > ddof) & bool(stats.mean.size)
    if skip_nonfinite:
        valid &= all_finite(moments)
    t = _updates_before(stats, decay) if debias or decay is None else stats.count
    weight = _choose(valid, _update_weight(t, decay, debias, stats.var.dtype), 0)
    seen = jnp.any(valid) if t.ndim == 0 else sharded_like(jnp.broadcast_to(valid, t.shape), t)

    def step(old, new):
        wide = compute_dtype(old.dtype, new.dtype)
        o, n = old.astype(wide), _choose(valid, new, jnp.zeros_like(new)).astype(wide)
        w = weight.astype(wide) if isinstance(weight, jax.Array) else weight
        # This form stays put when n == o; and with w = 1 the initial variance leaves no trace.
        o = _choose(w == 1, jnp.zeros_like(o), o)
        moved = o + w * (n - o)
        return moved if jnp.iscomplexobj(new) else moved.astype(old.dtype)

    var = moments.var(ddof)
    if epsilon is None:
        var = step(stats.var, jnp.asarray(var))
    else:
        std = step(jnp.sqrt(stats.var + epsilon), jnp.sqrt(var + epsilon))
        # The root and the square leave a rounding error, even where nothing moved.
        var = jnp.where(valid, jnp.maximum(jnp.square(std) - epsilon, 0), stats.var)
    return BatchStats(
        step(stats.mean, jnp.asarray(moments.mean)),
        var,
        jnp.where(seen, t + 1, stats.count),
    )


def widened(stats: BatchStats) -> BatchStats:
    """``stats`` with a mean and variance of float32 and a count of int32 at least."""
    mean, var, count = map(jnp.asarray, stats)
    whole = jnp.issubdtype(count.dtype, jnp.integer) and count.dtype.itemsize >= 4
    return BatchStats(
        at_least_float32(mean), at_least_float32(var), count if whole else count.astype(jnp.int32)
    )


def never_updated(stats: BatchStats) -> Any:
    """Whether ``stats`` are the initial values; of each feature, where each is counted."""
    initial = (stats.mean == 0) & (stats.var == 1)
    # Methods: NumPy arrays, of statistics that are known, stay what they are under a trace.
    return (stats.count == 0) & (initial.all() if jnp.ndim(stats.count) == 0 else initial)


def _updates_before(stats: BatchStats, decay) -> jax.Array:
    """The number of updates that ``stats`` have seen; as if, where that was not counted."""
    uncounted = (stats.count == 0) & ~never_updated(stats)
    if decay is None:
        return stats.count + uncounted.astype(stats.count.dtype)
    # So many that the start weighs less than rounding.
    decay = jnp.asarray(decay, jnp.float32)
    most = jnp.log(jnp.finfo(jnp.float32).eps / 2) / jnp.log(jnp.where(decay < 1, decay, 0.5))
    settled = jnp.where(decay < 1, jnp.ceil(most), 2**30).clip(1, 2**30).astype(stats.count.dtype)
    return jnp.where(uncounted, settled, stats.count)


def all_finite(moments: MeanVariance | Moments):
    """Whether every moment is finite."""
    return jnp.all(jnp.isfinite(moments.mean)) & jnp.all(jnp.isfinite(moments.var()))


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
    for name, count in (("stats.count", stats.count), ("moments.count", moments.count)):
        if jnp.shape(count) not in ((), want):
            raise ValueError(
                f"{name} has shape {jnp.shape(count)}, but stats.mean has {want}: it must be a "
                "scalar, or count each feature."
            )


def check_ddof(ddof) -> None:
    """Raise ``ValueError`` unless ``ddof`` is 0 or 1."""
    if isinstance(ddof, bool) or ddof not in (0, 1):
        raise ValueError(
            f"ddof must be 0 (population variance) or 1 (sample variance), got {ddof!r}."
        )
