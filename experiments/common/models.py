"""The networks of the experiments."""

from collections.abc import Callable

import flax.linen as nn
import jax

from bnjax.linen import BatchNorm


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

    Sows the input of each activation, (batch, units), as `intermediates/activation_input`, one
    entry a hidden layer.
    """

    hidden: tuple[int, ...] = (100, 100, 100)
    num_classes: int = 10
    batch_norm: bool = False
    activation: Callable[[jax.Array], jax.Array] = nn.sigmoid
    init_std: float = 0.1
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps inputs (batch, pixels) to logits (batch, classes)."""
        kernel_init = nn.initializers.normal(self.init_std)
        for units in self.hidden:
            x = nn.Dense(units, use_bias=not self.batch_norm, kernel_init=kernel_init)(x)
            if self.batch_norm:
                x = BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
            self.sow("intermediates", "activation_input", x)
            x = self.activation(x)
        return nn.Dense(self.num_classes, kernel_init=kernel_init)(x)
