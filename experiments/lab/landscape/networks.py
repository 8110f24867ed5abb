"""The five networks: one architecture, five norms."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax.linen import BatchNorm
from experiments.common.data import Dataset
from experiments.common.loop import one_by_one
from experiments.common.models import MLP, ConvNet, Norm, OfPixels
from experiments.common.settings import NORMALISED, PLAIN
from experiments.common.trials import Trial, training
from experiments.lab.landscape.explore import explore, unrolled
from experiments.lab.landscape.lp_norm import LpBatchNorm
from experiments.lab.landscape.settings import L1, LINF, NETWORKS, NOISY, LandscapeSettings

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


NORMS: dict[str, Norm | None] = {
    PLAIN: None,
    NORMALISED: BatchNorm,
    NOISY: NoisyBatchNorm,
    L1: partial(LpBatchNorm, 1),
    LINF: partial(LpBatchNorm, math.inf),
}


def trials(settings: LandscapeSettings, data: Dataset) -> list[Trial]:
    """One trial a network; its records hold what `explore` measures."""
    return [_trial(name, settings, data) for name in NETWORKS]


def make_model(norm: Norm | None, settings: LandscapeSettings, data: Dataset) -> nn.Module:
    """Fully connected on digits, convolutional on larger images."""
    if data.name == "digits":
        return MLP(
            hidden=settings.hidden,
            batch_norm=norm is not None,
            norm=norm or BatchNorm,
            activation=nn.relu,
            init_std=settings.init_std,
            momentum=settings.momentum,
        )
    network = ConvNet(norm, widths=settings.widths, momentum=settings.momentum)
    return OfPixels(network, data.shape)


def _trial(name: str, settings: LandscapeSettings, data: Dataset) -> Trial:
    rows = slice(settings.images)
    probe = jnp.asarray(data.train.images[rows]), jnp.asarray(data.train.labels[rows])
    convolutional = data.name != "digits"
    over = unrolled if convolutional else jax.lax.map
    return training(
        name,
        make_model(NORMS[name], settings, data),
        optax.sgd(settings.learning_rate),
        data,
        settings,
        evaluate=partial(explore, probe=probe, settings=settings, over=over),
        across_seeds=one_by_one if convolutional else jax.vmap,
    )
