"""A small residual network for images of CIFAR's size."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.common.models import Norm


class Block(nn.Module):
    """Two convolutions and norms, and the input added."""

    features: int
    stride: int
    norm: Norm | None
    dtype: Any
    momentum: float
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Maps (batch, height, width, channels) to `features` channels, `stride` times smaller."""
        y = _conv(self, self.features, self.stride)(x)
        y = self.activation(_norm(self, y, train))
        y = _norm(self, _conv(self, self.features)(y), train)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.stride, use_bias=False, dtype=self.dtype)(x)
        return self.activation(x + y)


class ResNet(nn.Module):
    """A stem and residual blocks of two 3x3 convolutions (He et al. 2016, section 4.2).

    Attributes:
      norm: class of the norm after each convolution; None for biases instead.
      dtype: of the activations; parameters and statistics are float32.
      widths: channels of each stage; every stage but the first halves height and width.
      stem_stride: 2 lets the stem halve them too, for a quarter of the work.
      blocks: number of blocks of each stage.
      num_classes: number of outputs.
      momentum: weight of the old value in the running averages of the norm.
      activation: elementwise function.
    """

    norm: Norm | None
    dtype: Any = None
    widths: Sequence[int] = (16, 32, 64)
    stem_stride: int = 1
    blocks: int = 2
    num_classes: int = 10
    momentum: float = 0.9
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, classes), float32."""
        x = _conv(self, self.widths[0], self.stem_stride)(x)
        x = self.activation(_norm(self, x, train))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                options = (self.norm, self.dtype, self.momentum, self.activation)
                x = Block(width, stride, *options)(x, train=train)
        x = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return x.astype(jnp.float32)


def _conv(module: Any, features: int, stride: int = 1) -> nn.Conv:
    bias = module.norm is None
    return nn.Conv(features, (3, 3), stride, use_bias=bias, dtype=module.dtype)


def _norm(module: Any, x: jax.Array, train: bool) -> jax.Array:
    if module.norm is None:
        return x
    norm = module.norm(use_running_average=not train, momentum=module.momentum, dtype=module.dtype)
    return norm(x)
