"""The explicit state of batch norm: running statistics, and the one rule that updates them."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import DTypeLike

from bnjax.core._axes import at_least_float32, compute_dtype, real_dtype
from bnjax.core._checks import (
    as_dtype,
    check_ddof,
    check_decay,
    check_switch,
    check_type,
    whole_number,
)
from bnjax.core._moments import Moments
from bnjax.core._sharding import sharded_like
from bnjax.core._statistics import MeanVariance

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
      before, after: these statistics themselves: what a :class:`PendingUpdate` has under these
        names, so that either can be asked.

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

    @property
    def before(self) -> BatchStats:
        """These statistics."""
        return self

    @property
    def after(self) -> BatchStats:
        """These statistics."""
        return self

    def take(self, moments: MeanVariance | Moments, update: Update) -> BatchStats:
        """:func:`update_batch_stats` of what has been checked."""
        return _moved(self, moments, update)


export.register_namedtuple_serialization(BatchStats, serialized_name="bnjax.BatchStats")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight"],
    meta_fields=["ddof", "debias", "cumulative", "skip_nonfinite", "std_epsilon"],
)
@dataclasses.dataclass(frozen=True)
class Update:
    """How one update moves the running statistics; all but ``weight`` is static."""

    weight: Any  # of the new value, 1 - decay: an array, so that numbers and schedules are alike
    ddof: int = 0
    debias: bool = False
    cumulative: bool = False  # the average of all updates, whatever the weight
    skip_nonfinite: bool = False
    std_epsilon: float | None = None  # average sqrt(var + this), as batch renorm has it

    def of_std(self, epsilon: float) -> Update:
        """The same, of deviations in place of variances."""
        return dataclasses.replace(self, std_epsilon=epsilon)


def update_for(
    decay: float | jax.Array | None, ddof: int, debias: bool, skip_nonfinite: bool
) -> Update:
    """The update with these options, or an error that names the one that is illegal."""
    check_decay(decay)
    known = decay is None or isinstance(decay, numbers.Real)
    return Update(
        # In Python's precision: 1 - 0.99 in float32 is wrong by 5e-7 of itself.
        np.asarray(1 - float(decay or 0)) if known else 1 - jnp.asarray(decay),
        check_ddof(ddof),
        check_switch("debias", debias),
        decay is None,
        check_switch("skip_nonfinite", skip_nonfinite),
    )


def init_batch_stats(
    num_features: int | Sequence[int], dtype: DTypeLike = jnp.float32
) -> BatchStats:
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
      decay: weight of the old value (``momentum`` in Flax, ``1 - momentum`` in PyTorch), in
        [0, 1], or None: a number, or a scalar array, perhaps traced, for a schedule; both are the
        same program.
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
    check_type("stats", stats, BatchStats, MAKE_ONE)
    check_type("moments", moments, Moments, "Take them with bnjax.moments(x, axes).")
    _check_same_features(stats, moments)
    return stats.take(moments, update_for(decay, ddof, debias, skip_nonfinite))


def _moved(stats: BatchStats, moments: MeanVariance | Moments, update: Update) -> BatchStats:
    like = jnp.asarray(moments.mean)
    stats = BatchStats(*(sharded_like(v, like) for v in widened(stats)))
    # A Python bool where the count is known at trace time.
    valid = (moments.count > update.ddof) & bool(stats.mean.size)
    if update.skip_nonfinite:
        valid &= all_finite(moments)
    t = _updates_before(stats, update) if update.debias or update.cumulative else stats.count
    weight = _choose(valid, _weight(t, update, stats.var.dtype), 0)
    seen = jnp.any(valid) if t.ndim == 0 else sharded_like(jnp.broadcast_to(valid, t.shape), t)

    def step(old, new):
        wide = compute_dtype(old.dtype, new.dtype)
        o, n = old.astype(wide), _choose(valid, new, jnp.zeros_like(new)).astype(wide)
        w = jnp.asarray(weight, wide)
        # This form stays put when n == o; and with w = 1 the initial variance leaves no trace.
        o = jnp.where(w == 1, 0, o)
        moved = o + w * (n - o)
        return moved if jnp.iscomplexobj(new) else moved.astype(old.dtype)

    var = jnp.asarray(moments.var(update.ddof))
    if update.std_epsilon is None:
        var = step(stats.var, var)
    else:
        std = step(jnp.sqrt(stats.var + update.std_epsilon), jnp.sqrt(var + update.std_epsilon))
        # The root and the square leave a rounding error, even where nothing moved.
        square = jnp.maximum(jnp.square(std) - update.std_epsilon, 0)
        var = jnp.where(valid, square, stats.var)
    mean = step(stats.mean, jnp.asarray(moments.mean))
    return BatchStats(mean, var, jnp.where(seen, t + 1, stats.count))


def _weight(count: jax.Array | np.ndarray, update: Update, dtype) -> jax.Array:
    """Weight of the newest batch in the running average, given ``count`` updates before it."""
    t, weight = jnp.asarray(count, dtype), jnp.asarray(update.weight, dtype)
    if update.cumulative:
        return 1 / (t + 1)
    if not update.debias:
        return weight
    # 1 - decay**(t + 1), with all its digits for a decay near 1, where the limit is 1 / (t + 1).
    total = -jnp.expm1((t + 1) * jnp.log1p(-weight))
    debiased = jnp.where(weight > 0, weight / jnp.where(weight > 0, total, 1), 1 / (t + 1))
    # Exactly 1 at first: a rounding error here would leave a trace of the initial variance.
    return jnp.where(t == 0, 1, debiased)


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


def _updates_before(stats: BatchStats, update: Update) -> jax.Array:
    """The number of updates that ``stats`` have seen; as if, where that was not counted."""
    uncounted = (stats.count == 0) & ~never_updated(stats)
    if update.cumulative:
        return stats.count + uncounted.astype(stats.count.dtype)
    # So many that the start weighs less than rounding.
    weight = jnp.asarray(update.weight, jnp.float32)
    most = jnp.log(jnp.finfo(jnp.float32).eps / 2) / jnp.log1p(-jnp.where(weight > 0, weight, 0.5))
    settled = jnp.where(weight > 0, jnp.ceil(most), 2**30).clip(1, 2**30).astype(stats.count.dtype)
    return jnp.where(uncounted, settled, stats.count)


def all_finite(moments: MeanVariance | Moments):
    """Whether every moment is finite."""
    return jnp.all(jnp.isfinite(moments.mean)) & jnp.all(jnp.isfinite(moments.var()))


def _choose(condition, a, b):
    """``where``, decided at once for a condition that is known."""
    if isinstance(condition, (bool, np.bool_)):
        return a if condition else b
    return jnp.where(condition, a, b)


def _check_same_features(stats: BatchStats, moments: Moments) -> None:
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
