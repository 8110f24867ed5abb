"""Batch renormalisation as an nnx module: batch norm but for the function of the core it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from bnjax._flax import renorm_of
from bnjax.core._batch_renorm import Average, Limit
from bnjax.core._programs import SingleValue
from bnjax.nnx._batch_norm import BatchNorm


class BatchRenorm(BatchNorm):
    r"""Batch norm for small or skewed batches: normalised by the batch, then corrected.

    .. math::
        y = \gamma \left( \frac{x - \mu_B}{\sigma_B}\, r + d \right) + \beta, \qquad
        r = \mathrm{clip}_{[1/r_{max},\, r_{max}]} \frac{\sigma_B}{\sigma}, \qquad
        d = \mathrm{clip}_{[-d_{max},\, d_{max}]} \frac{\mu_B - \mu}{\sigma}

    with :math:`\mu, \sigma` the running statistics. Training and evaluation agree as far as the
    limits let them; with ``r_max=1, d_max=0, average="var"`` it is :class:`bnjax.nnx.BatchNorm`.
    The arithmetic is that of :func:`bnjax.batch_renorm`.

    Call and variables are those of :class:`bnjax.nnx.BatchNorm`. There is always a ``count``:
    schedules of the limits follow it, so they go on where a checkpoint left them.

    Args:
      num_features: number of features.
      r_max: at least 1; a number, or a function of ``count`` such as a schedule of optax.
      d_max: at least 0, likewise, in standard deviations.
      warmup_steps: for this many updates, by ``count``, it is batch norm in training.
      average: what the running variance averages: "std", as in the paper, or "var".
      single_value: as in batch norm, but "allow" by default: a batch of one is normalised by the
        running statistics, as far as ``d_max`` lets it.
      rngs: stream ``params`` for the initialisers.
      **options: all others of :class:`bnjax.nnx.BatchNorm`.

    Raises:
      ValueError: ``r_max`` is below 1 or ``d_max`` below 0, or as batch norm.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from bnjax.nnx import BatchRenorm
      >>> r_max = optax.linear_schedule(1.0, 3.0, 1000)
      >>> norm = BatchRenorm(1, r_max=r_max, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0], [3.0]]))
      >>> print(y.round().ravel(), norm.count[...])
      [1. 3.] 1

    Source: Ioffe (2017), *Batch renormalization*, Algorithm 1. PyTorch and Flax have none; Keras
    has numbers for limits, no schedules.
    """

    def __init__(
        self,
        num_features: int,
        *,
        r_max: Limit = 3.0,
        d_max: Limit = 5.0,
        warmup_steps: int = 0,
        average: Average = "std",
        single_value: SingleValue = "allow",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(num_features, single_value=single_value, rngs=rngs, **options)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup_steps = warmup_steps
        self.average: Average = average

    def _core(self) -> Callable[..., Any]:
        return renorm_of(self)

    def _counts(self) -> bool:
        return True
