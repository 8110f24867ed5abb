"""The networks of the experiments."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.linen import BatchNorm
from experiments.common.data import NUM_CLASSES
from experiments.common.settings import MLPSettings

ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "ReLU": nn.relu}

# Called with `use_running_average`, `momentum` and `dtype`, it makes the layer.
Norm = Callable[..., nn.Module]


class MLP(nn.Module):
    """Fully connected layers, with or without batch norm before each activation.

    A hidden layer computes  `activation(W x + b)`,  and with batch norm
    `activation(BN(W x))`: batch norm takes the mean away, so a bias before it would do nothing,
    and its own shift stands in for it (Ioffe & Szegedy 2015, section 3.2).

    Attributes:
      hidden: units of each hidden layer.
      num_classes: number of outputs.
      batch_norm: whether to normalise the input of each activation.
      activation: elementwise function.
      init_std: standard deviation of the Gaussian that the weights are drawn from.
      momentum: weight of the old value in the running averages of batch norm.
      norm: class of the norm, if there is to be one; see `experiments.common.norms` for others.
      after_activation: whether the norm follows the activation, `BN(activation(W x + b))`.
      use_bias: whether hidden layers have a bias; by default only where no norm takes it away.
      dtype: of the activations; parameters and statistics are float32.

    Sows the input of each activation, (batch, units), as `intermediates/activation_input`, one
    entry a hidden layer.
    """

    hidden: tuple[int, ...] = (100, 100, 100)
    num_classes: int = NUM_CLASSES
    batch_norm: bool = False
    activation: Callable[[jax.Array], jax.Array] = nn.sigmoid
    init_std: float = 0.1
    momentum: float = 0.9
    norm: Norm = BatchNorm
    after_activation: bool = False
    use_bias: bool | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps inputs (batch, pixels) or images to logits (batch, classes), float32."""
        x = x.reshape(len(x), -1)
        dense = partial(nn.Dense, kernel_init=nn.initializers.normal(self.init_std))
        before = self.batch_norm and not self.after_activation
        bias = not before if self.use_bias is None else self.use_bias
        for units in self.hidden:
            x = dense(units, use_bias=bias, dtype=self.dtype)(x)
            if before:
                x = _norm(self, x, train)
            self.sow("intermediates", "activation_input", x)
            x = self.activation(x)
            if self.batch_norm and self.after_activation:
                x = _norm(self, x, train)
        return dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def lecun_mlp(hidden: tuple[int, ...], **options: Any) -> MLP:
    """An `MLP` whose weights start with a variance of one over the units of a hidden layer."""
    return MLP(hidden, init_std=hidden[0] ** -0.5, **options)


def relu_mlp(
    settings: MLPSettings, num_classes: int = NUM_CLASSES, norm: Norm | None = BatchNorm
) -> MLP:
    """An `MLP` of ReLUs with batch norm, another norm in its place, or none."""
    return MLP(
        settings.hidden,
        num_classes,
        batch_norm=norm is not None,
        norm=norm or BatchNorm,
        activation=nn.relu,
        init_std=settings.init_std,
        momentum=settings.momentum,
    )


class OfPixels(nn.Module):
    """A network of images that takes rows of pixels, as data sets hold them.

    Attributes:
      network: maps images (batch, height, width, channels).
      shape: (height, width, channels) of an image.
    """

    network: nn.Module
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps rows (batch, pixels) to what `network` makes of the images."""
        return self.network(x.reshape(-1, *self.shape), train=train)


class ConvNet(nn.Module):
    """3x3 convolutions, each with a norm, a ReLU and 2x2 max pooling, and a linear layer.

    Attributes:
      norm: class of the norm after each convolution; None for biases instead.
      dtype: of the activations; parameters and statistics are float32.
      widths: channels of each convolution.
      num_classes: number of outputs.
      momentum: weight of the old value in the running averages of the norm.
    """

    norm: Norm | None
    dtype: Any = None
    widths: tuple[int, ...] = (32, 64)
    num_classes: int = NUM_CLASSES
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, classes), float32."""
        for width in self.widths:
            x = nn.Conv(width, (3, 3), use_bias=self.norm is None, dtype=self.dtype)(x)
            if self.norm is not None:
                x = _norm(self, x, train)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2), padding="SAME")
        x = nn.Dense(self.num_classes, dtype=self.dtype)(x.reshape(len(x), -1))
        return x.astype(jnp.float32)


def _norm(module: Any, x: jax.Array, train: bool) -> jax.Array:
    norm = module.norm(use_running_average=not train, momentum=module.momentum, dtype=module.dtype)
    return norm(x)
