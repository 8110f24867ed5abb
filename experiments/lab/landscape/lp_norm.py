"""Batch norm by the mean absolute (l1) or the largest (l-infinity) deviation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import bnjax


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
