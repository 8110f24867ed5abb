"""Batch renormalisation: batch norm whose training output is corrected towards evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.core._axes import Axes, whole_number
from bnjax.core._batch_norm import SingleValue, Unseen, run
from bnjax.core._batch_stats import BatchStats
from bnjax.core._checks import check_choice, is_real, known_value
from bnjax.core._pending_update import PendingUpdate

Average = Literal["std", "var"]
Limit = float | jax.Array | Callable[[jax.Array], jax.Array]


def batch_renorm(
    x,
    scale,
    bias,
    batch_stats: BatchStats | PendingUpdate,
    *,
    train: bool,
    r_max: Limit = 3.0,
    d_max: Limit = 5.0,
    warmup_steps: int = 0,
    average: Average = "std",
    decay: float | jax.Array | None = 0.99,
    epsilon: float = 1e-5,
    axis: Axes = -1,
    mask=None,
    axis_name=None,
    ddof: int = 0,
    debias: bool = False,
    virtual_batch_size: int | None = None,
    update_stats: bool | None = None,
    skip_nonfinite: bool = False,
    single_value: SingleValue = "allow",
    unseen: Unseen = "warn",
    dtype=None,
    axis_index_groups=None,
) -> tuple[jax.Array, BatchStats | PendingUpdate]:
    r"""Batch norm for small or skewed batches: normalised by the batch, then corrected.

    .. math::
        y = \gamma \left( \frac{x - \mu_B}{\sigma_B}\, r + d \right) + \beta, \qquad
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]} \frac{\sigma_B}{\sigma}, \qquad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]} \frac{\mu_B - \mu}{\sigma}

    with :math:`\sigma_B^2 = v_B + \epsilon` of the batch and :math:`\mu, \sigma` of
    ``batch_stats``. Without clipping ``y`` is that of evaluation, so training and evaluation
    agree however small the batch; with ``r_max=1, d_max=0`` it is that of
    :func:`bnjax.batch_norm`. Of complex ``x`` the limit is one of the size of ``d``, whose
    direction stays. No gradient flows through ``r`` and ``d``.

    The running statistics average :math:`\mu_B` and, as in the paper, :math:`\sigma_B`: the
    running variance is then the square of a mean of deviations, smaller than the mean of variances
    that batch norm keeps. With ``average="var"`` it is that mean, the state of batch norm.

    Args:
      x, scale, bias, batch_stats: as in :func:`bnjax.batch_norm`.
      train: True for the above, False to normalise by ``batch_stats``.
      r_max: at least 1; a number, a scalar array, or a schedule of the number of updates:
        a function of ``batch_stats.count`` such as optax makes, called in training.
      d_max: at least 0, likewise, in standard deviations.
      warmup_steps: for this many updates, by ``batch_stats.count``, ``y`` is that of batch norm
        (``r_max=1, d_max=0``): at first the running statistics are no guide.
      average: what the running variance averages: "std", or "var" as batch norm does.
      decay, epsilon, axis, mask, axis_name, ddof, debias, virtual_batch_size, update_stats,
        skip_nonfinite, unseen, dtype, axis_index_groups: as in :func:`bnjax.batch_norm`.
      single_value: as there, but "allow": a batch of one is normalised by the running
        statistics, as far as ``d_max`` lets it.

    Returns:
      ``(y, batch_stats)``.

    Raises:
      TypeError, ValueError: as :func:`bnjax.batch_norm`; ``r_max`` is below 1 or ``d_max`` below
        0.

    Example:
      >>> import jax.numpy as jnp, optax, bnjax
      >>> x = jnp.array([[1.0], [3.0]])
      >>> stats = bnjax.BatchStats(jnp.array([1.0]), jnp.array([4.0]), jnp.array(9))
      >>> r_max = optax.linear_schedule(1.0, 3.0, transition_steps=10)
      >>> y, _ = bnjax.batch_renorm(x, None, None, stats, train=True, r_max=r_max, d_max=5.0)
      >>> print(y.round(3).ravel())
      [0. 1.]

    Source: Ioffe (2017), *Batch renormalization*, Algorithm 1; its schedule is r_max from 1 to 3
    and d_max from 0 to 5. Bhatt et al. (2024), *CrossQ*, warm up by steps and average variances:
    ``warmup_steps=100_000, average="var"``. Keras' ``renorm=True`` clips only what it is told to;
    PyTorch and Flax have nothing like it.
    """
    before = batch_stats.before if isinstance(batch_stats, PendingUpdate) else batch_stats
    warmup_steps = whole_number(warmup_steps, "warmup_steps", 0)
    check_choice("average", average, get_args(Average))
    limits = tuple(
        _warmed_up(_limit(limit, name, least, before), least, before, warmup_steps)
        for limit, name, least in ((r_max, "r_max", 1.0), (d_max, "d_max", 0.0))
    )
    return run(
        x,
        scale,
        bias,
        batch_stats,
        limits,
        train=train,
        decay=decay,
        epsilon=epsilon,
        axis=axis,
        mask=mask,
        axis_name=axis_name,
        ddof=ddof,
        debias=debias,
        virtual_batch_size=virtual_batch_size,
        update_stats=update_stats,
        skip_nonfinite=skip_nonfinite,
        single_value=single_value,
        unseen=unseen,
        dtype=dtype,
        axis_index_groups=axis_index_groups,
        average_std=average == "std",
    )


def _warmed_up(limit, least, stats, warmup_steps: int):
    """``limit``, but for the first updates ``least``, with which there is no correction."""
    if warmup_steps == 0:
        return limit
    return jnp.where(jnp.asarray(stats.count) < warmup_steps, least, limit)


def _limit(limit, name, least, stats):
    """The value of a limit now; one that is known is checked."""
    value = limit(getattr(stats, "count", 0)) if callable(limit) else limit
    if not is_real(value):
        raise TypeError(f"{name} must be a real number or a schedule of them, got {limit!r}.")
    known = known_value(value)
    if known is not None and not np.all(known >= least):
        raise ValueError(f"{name} must be at least {least}, got {limit!r}.")
    return value
