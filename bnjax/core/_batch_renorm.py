"""Batch renormalisation: batch norm whose training output is corrected towards evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import Axes
from bnjax.core._batch_stats import update_for
from bnjax.core._checks import (
    check_choice,
    is_real,
    known_value,
    whole_number,
)
from bnjax.core._merge import AxisName, IndexGroups
from bnjax.core._programs import (
    MISSING,
    Limits,
    SingleValue,
    State,
    Unseen,
    check_state,
    mode_for,
    run,
)
from bnjax.core._rule import of_batch

Average = Literal["std", "var"]
# A number, an array, or a schedule: a function of the number of updates such as optax makes.
Limit = float | jax.Array | Callable[[jax.Array], ArrayLike]


def batch_renorm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    batch_stats: State = MISSING,
    *,
    train: bool,
    r_max: Limit = 3.0,
    d_max: Limit = 5.0,
    warmup_steps: int = 0,
    average: Average = "std",
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
    single_value: SingleValue = "allow",
    unseen: Unseen = "warn",
    dtype: DTypeLike | None = None,
    axis_index_groups: IndexGroups | None = None,
) -> tuple[jax.Array, State]:
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
      decay, epsilon, axis, mask, axis_name, ddof, debias: as in :func:`bnjax.batch_norm`.
      virtual_batch_size, update_stats, skip_nonfinite, unseen, dtype: likewise.
      axis_index_groups: likewise.
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
      >>> y, _ = bnjax.batch_renorm(x, batch_stats=stats, train=True, r_max=r_max, d_max=5.0)
      >>> print(y.round(3).ravel())
      [0. 1.]

    Source: Ioffe (2017), *Batch renormalization*, Algorithm 1; its schedule is r_max from 1 to 3
    and d_max from 0 to 5. Bhatt et al. (2024), *CrossQ*, warm up by steps and average variances:
    ``warmup_steps=100_000, average="var"``. Keras' ``renorm=True`` clips only what it is told to;
    PyTorch and Flax have nothing like it.
    """
    check_state(batch_stats)
    options = epsilon, dtype, axis_name, axis_index_groups, virtual_batch_size
    inputs, rule = of_batch(x, mask, scale, bias, axis, *options)
    check_choice("average", average, get_args(Average))
    update = update_for(decay, ddof, debias, skip_nonfinite)
    update = update.of_std(rule.epsilon) if average == "std" else update
    mode = mode_for(train, update_stats, single_value, unseen)
    limits = _limits(r_max, d_max, whole_number(warmup_steps, "warmup_steps", 0), batch_stats)
    return run(inputs, batch_stats, limits, rule, update, mode)


def _limits(r_max: Limit, d_max: Limit, warmup_steps: int, state: State) -> Limits:
    """The limits now: 1 and 0 while warming up, with which there is no correction."""
    count = state.before.count

    def now(limit: Any, name: str, least: float) -> Any:
        value = _limit(limit(count) if callable(limit) else limit, name, least)
        return jnp.where(jnp.asarray(count) < warmup_steps, least, value) if warmup_steps else value

    return Limits(now(r_max, "r_max", 1.0), now(d_max, "d_max", 0.0))


def _limit(value: Any, name: str, least: float) -> Any:
    """The value of a limit; one that is known is checked."""
    if not is_real(value):
        raise TypeError(f"{name} must be a real number or a schedule of them, got {value!r}.")
    known = known_value(value)
    if known is not None and not np.all(known >= least):
        raise ValueError(f"{name} must be at least {least}, got {value!r}.")
    return value
