"""Batch norm with noise after it, and by other deviations than the root mean square.

Of `experiments.lab.landscape`; Santurkar et al. (2018), sections 2.1 and 3.3.
"""

from functools import partial
from math import inf
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import bnjax
from bnjax.linen import BatchNorm
from experiments.common.models import Norm
from experiments.common.settings import NORMALISED, PLAIN

MEAN, STD = 0.5, 1.25  # a channel's shift is drawn from +-0.5, its scale from 1 to 1.25 ...
JITTER = 0.1  # ... and each activation's from within 0.1 of that


class NoisyBatchNorm(nn.Module):
    r"""Batch norm, and in training noise of a mean and a scale that change at every step.

    .. math::
        z_{ij} = s_{ij} y_{ij} + m_{ij}, \quad m_{ij} \sim U(\mu_j \pm 0.1), \quad
        s_{ij} \sim N(\sigma_j, 0.1^2), \quad \mu_j \sim U(\pm 0.5), \quad \sigma_j \sim U(1, 1.25)

    for activation i of channel j. The count of calls is kept beside the running statistics: it
    makes the noise new at every step, and the same for all losses that are compared at one step. In
    evaluation there is none.
    """

    use_running_average: bool
    momentum: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises and, in training, disturbs `x` (..., channels)."""
        y = BatchNorm(self.use_running_average, momentum=self.momentum, dtype=self.dtype)(x)
        seed = self.variable("batch_stats", "seed", self._first_seed)
        calls = self.variable("batch_stats", "calls", jnp.zeros, (), jnp.int32)
        if self.use_running_average:
            return y
        key = jax.random.fold_in(jax.random.wrap_key_data(seed.value), calls.value)
        if not self.is_initializing():
            calls.value += 1
        return disturb(key, y)

    @nn.nowrap
    def _first_seed(self) -> jax.Array:
        return jax.random.key_data(self.make_rng("params"))


def disturb(key: jax.Array, y: jax.Array) -> jax.Array:
    """The noise of `NoisyBatchNorm` for `y` (..., channels)."""
    means, stds, shifts, scales = jax.random.split(key, 4)
    mean = jax.random.uniform(means, y.shape[-1:], y.dtype, -MEAN, MEAN)
    std = jax.random.uniform(stds, y.shape[-1:], y.dtype, 1, STD)
    mean, std = (jnp.broadcast_to(v, y.shape) for v in (mean, std))
    shift = mean + jax.random.uniform(shifts, y.shape, y.dtype, -JITTER, JITTER)
    return (std + JITTER * jax.random.normal(scales, y.shape, y.dtype)) * y + shift


class LpBatchNorm(nn.Module):
    """`lp_batch_norm` in training; in evaluation batch norm, by the running statistics of that.

    Attributes:
      p: 1 or infinity.
      use_running_average: whether to evaluate.
      momentum: weight of the old value in the running averages.
      dtype: of the output, by default that of the input.
    """

    p: float
    use_running_average: bool
    momentum: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x` (..., channels)."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        stats: Any = self.variable("batch_stats", "stats", bnjax.init_batch_stats, channels)
        dtype = self.dtype or x.dtype
        if self.use_running_average:
            options: Any = {"train": False, "unseen": "allow", "dtype": dtype}
            return bnjax.batch_norm(x, scale, bias, stats.value, **options)[0]
        y, batch = lp_batch_norm(x, scale, bias, p=self.p)
        if not self.is_initializing():
            stats.value = bnjax.update_batch_stats(stats.value, batch, decay=self.momentum)
        return y.astype(dtype)


def lp_batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, p: float
) -> tuple[jax.Array, bnjax.Moments]:
    r"""Batch norm in training by another norm of the deviations than their root mean square.

    .. math::
        y = \gamma \frac{x - \mu}{\sqrt{s^2 + \epsilon}} + \beta, \qquad
        s = \begin{cases}
            \frac1n \sum |x - \mu| & p = 1 \\
            \max |x - \mu| & p = \infty
        \end{cases}

    Differentiated as it is written.

    Args:
      x: (..., channels).
      scale, bias: (channels,).
      p: 1 or infinity.

    Returns:
      `y`, float32 at least, and the moments of the batch with s² in the place of its variance.

    Source: Santurkar et al. (2018), section 3.3; Hoffer et al. (2018), *Norm matters*.
    """
    axes = tuple(range(x.ndim - 1))
    batch = bnjax.moments(x, axes)
    deviation = x.astype(batch.mean.dtype) - jnp.broadcast_to(batch.mean, x.shape)
    deviation -= jnp.mean(deviation, axes, keepdims=True)  # the mean was rounded
    measure = jnp.mean if p == 1 else jnp.max
    var = jnp.square(measure(jnp.abs(deviation), axes))
    y = bnjax.scale_shift(bnjax.normalize(deviation, 0.0, var), scale, bias)
    return y, batch._replace(m2=batch.count * var)


NOISY, L1, LINF = "with noise after it", "l1 norm", "l-infinity norm"
NORMS: dict[str, Norm | None] = {
    PLAIN: None,
    NORMALISED: BatchNorm,
    NOISY: NoisyBatchNorm,
    L1: partial(LpBatchNorm, 1),
    LINF: partial(LpBatchNorm, inf),
}
