"""Networks of any depth, with and without batch norm."""

from collections.abc import Callable
from itertools import product
from typing import Any, cast

import flax.linen as nn
import jax
import optax

from bnjax.linen import BatchNorm
from experiments.common.data import NUM_CLASSES, Dataset
from experiments.common.models import ACTIVATIONS
from experiments.common.settings import NETWORKS, NORMALISED
from experiments.common.trials import Trial, training
from experiments.lab.depth.gradients import evaluate_with_gradients
from experiments.lab.depth.settings import DepthSettings, trial_name


class Layer(nn.Module):
    """`activation(W x + b)`, or with batch norm `activation(BN(W x))`."""

    width: int
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """Maps (batch, features) to (batch, width); None is what `nn.scan` collects."""
        x = nn.Dense(self.width, use_bias=False)(x)
        if self.batch_norm:
            x = BatchNorm(use_running_average=not train, momentum=0.9)(x)
        else:
            # Not the bias of Dense: under nn.scan that would change how the weights are drawn.
            x += self.param("bias", nn.initializers.zeros, (self.width,))[None]
        return self.activation(x), None


class DeepNet(nn.Module):
    """Hidden layers of one width, all but the first in a scan: depth costs no compile time."""

    depth: int
    width: int
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, pixels) to logits (batch, classes)."""
        options = (self.width, self.activation, self.batch_norm)
        x, _ = Layer(*options, name="first")(x, train)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=cast(Any, nn.broadcast),  # legal, though not annotated so
            length=self.depth - 1,
        )
        x, _ = scanned(*options, name="others")(x, train)
        return nn.Dense(NUM_CLASSES)(x)


def trials(settings: DepthSettings, data: Dataset) -> list[Trial]:
    """One trial a network."""
    optimizer = optax.sgd(settings.learning_rate)
    made = []
    for (activation, function), depth, network in product(
        ACTIVATIONS.items(), settings.depths, NETWORKS
    ):
        model = DeepNet(depth, settings.width, function, network == NORMALISED)
        name = trial_name(activation, network, depth)
        made.append(
            training(name, model, optimizer, data, settings, evaluate=evaluate_with_gradients)
        )
    return made
