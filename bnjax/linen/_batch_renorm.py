"""Batch renormalisation as a linen module: batch norm but for the function of the core it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from bnjax._flax import renorm_of
from bnjax.core._batch_renorm import Average, Limit
from bnjax.core._programs import SingleValue
from bnjax.linen._batch_norm import BatchNorm, field


class BatchRenorm(BatchNorm):
    r"""Batch norm for small or skewed batches: normalised by the batch, then corrected.

    .. math::
        y = \gamma \left( \frac{x - \mu_B}{\sigma_B}\, r + d \right) + \beta, \qquad
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]} \frac{\sigma_B}{\sigma}, \qquad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]} \frac{\mu_B - \mu}{\sigma}

    with :math:`\mu, \sigma` of ``batch_stats``. Training and evaluation agree as far as the limits
    let them; with ``r_max=1, d_max=0, average="var"`` it is :class:`bnjax.linen.BatchNorm`. The
    arithmetic is that of :func:`bnjax.batch_renorm`.

    Fields, call and variables are those of :class:`bnjax.linen.BatchNorm`. ``batch_stats/count``
    is always there: schedules of the limits follow it, so they go on where a checkpoint left them.

    Attributes:
      single_value: as in batch norm, but "allow" by default: a batch of one is normalised by the
        running statistics, as far as ``d_max`` lets it.
      r_max: at least 1; a number, or a function of ``count`` such as a schedule of optax.
      d_max: at least 0, likewise, in standard deviations.
      warmup_steps: for this many updates, by ``count``, it is batch norm in training.
      average: what the running variance averages: "std", as in the paper, or "var".

    Raises:
      ValueError: ``r_max`` is below 1 or ``d_max`` below 0, or as batch norm.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from bnjax.linen import BatchRenorm
      >>> r_max = optax.linear_schedule(1.0, 3.0, 1000)
      >>> norm = BatchRenorm(use_running_average=False, r_max=r_max)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> print(y.round().ravel(), updates["batch_stats"]["count"])
      [1. 3.] 1

    Source: Ioffe (2017), *Batch renormalization*, Algorithm 1. PyTorch and Flax have none; Keras
    has numbers for limits, no schedules.
    """

    single_value: SingleValue = field(default="allow", kw_only=True)
    r_max: Limit = field(default=3.0, kw_only=True)
    d_max: Limit = field(default=5.0, kw_only=True)
    warmup_steps: int = field(default=0, kw_only=True)
    average: Average = field(default="std", kw_only=True)

    @nn.nowrap
    def _core(self) -> Callable[..., Any]:
        return renorm_of(self)

    @nn.nowrap
    def _counts(self) -> bool:
        return True
