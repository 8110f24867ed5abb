"""Networks of any depth, and the gradients of their layers."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.data import NUM_CLASSES
from experiments.common.loop import Examples, first_states, variables_of
from experiments.common.metrics import gradient
from experiments.common.plots import BLUE, GREEN, ORANGE, YELLOW
from experiments.common.rates import SGD
from experiments.common.settings import NORMALISED, PLAIN

RELU, RESIDUAL = "ReLU", "residual"
LOOKS = {  # colour and line of networks with and without batch norm
    f"{RELU} {PLAIN}": (ORANGE, "--"),
    f"{RELU} {NORMALISED}": (BLUE, "-"),
    f"{RESIDUAL} {PLAIN}": (YELLOW, ":"),
    f"{RESIDUAL} {NORMALISED}": (GREEN, "-."),
}
YANG = (np.pi / (np.pi - 1)) ** 0.5  # growth of the gradient a layer of ReLUs; Yang et al. 2019


def linear(x: jax.Array) -> jax.Array:
    """No activation."""
    return x


# Variance of the first weights times the number of inputs: He's rule for ReLU, LeCun's for others.
GAINS = {nn.relu: 2.0, nn.sigmoid: 1.0, nn.tanh: 1.0, linear: 1.0}


class Layer(nn.Module):
    """`activation(W x + b)`, or with batch norm `activation(BN(W x))`.

    If `branch` is given, it is instead a residual block whose branch is that many times
    `W activation(x + b)`, or `W activation(BN(x))` (He et al. 2016, "Identity mappings").
    """

    width: int
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: bool
    branch: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """Maps (batch, features) to (batch, width); None is what `nn.scan` collects."""
        gain = GAINS[self.activation]
        rule = nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
        dense = nn.Dense(self.width, use_bias=False, kernel_init=rule)
        if self.branch is None:
            x = self._shifted(dense(x), train)
            self.sow("intermediates", "activation_input", x)
            return self.activation(x), None
        y = self.branch * dense(self.activation(self._shifted(x, train)))
        self.sow("intermediates", "skip", x)
        self.sow("intermediates", "branch", y)
        return x + y, None

    def _shifted(self, x: jax.Array, train: bool) -> jax.Array:
        if self.batch_norm:
            return BatchNorm(use_running_average=not train, momentum=0.9)(x)
        # Not the bias of Dense: under nn.scan that would change how the weights are drawn.
        return x + self.param("bias", nn.initializers.zeros, (x.shape[-1],))[None]


class DeepNet(nn.Module):
    """Hidden layers of one width, all but the first in a scan: depth costs no compile time.

    Attributes:
      depth: number of hidden layers.
      width: units of each.
      activation: one of `GAINS`.
      batch_norm: whether to normalise the input of each activation.
      branch: what the branches of residual blocks are multiplied by; None for no residual blocks.

    Sows of all layers but the first, (depth - 1, batch, width) in `intermediates/others`, what
    their activations get, `activation_input`, or the two summands of a residual block, `skip` and
    `branch`.
    """

    depth: int
    width: int
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: bool
    branch: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, pixels) to logits (batch, classes)."""
        options = (self.width, self.activation, self.batch_norm)
        x, _ = Layer(*options, name="first")(x, train)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=cast(Any, nn.broadcast),  # legal, though not annotated so
            length=self.depth - 1,
        )
        x, _ = scanned(*options, self.branch, name="others")(x, train)
        if self.branch is not None and self.batch_norm:
            x = BatchNorm(use_running_average=not train, momentum=0.9, name="last")(x)
        return nn.Dense(NUM_CLASSES)(x)


def first_intermediates(model: nn.Module, seeds: int, images: jax.Array) -> dict[str, jax.Array]:
    """What `DeepNet` sows before training, as in training, (seeds, depth - 1, batch, width)."""

    @jax.jit
    @jax.vmap
    def seen(state: TrainState) -> dict[str, jax.Array]:
        variables = variables_of(state)
        collections = ["batch_stats", "intermediates"]
        applied: Any = model.apply(variables, images, train=True, mutable=collections)
        return {key: value[0] for key, value in applied[1]["intermediates"]["others"].items()}

    return seen(first_states(model, SGD, seeds, images.shape[1]))


def first_gradients(model: nn.Module, seeds: int, batch: Examples) -> np.ndarray:
    """Norms of the gradients of all hidden layers' weights before training, (seeds, depth)."""
    states = first_states(model, SGD, seeds, batch[0].shape[1])
    return np.asarray(jax.jit(jax.vmap(partial(gradient_norms, batch=batch, model=model)))(states))


def gradient_norms(state: TrainState, batch: Examples, *, model: nn.Module) -> jax.Array:
    """Norms of the loss's gradient with respect to each hidden layer's weights, (depth,)."""
    grads = gradient(state, batch, model=model)
    first, others = (grads[name]["Dense_0"]["kernel"] for name in ("first", "others"))
    return jnp.concatenate([norms(first[None]), norms(others)])


def norms(matrices: jax.Array) -> jax.Array:
    """Frobenius norms (n,) of matrices (n, rows, columns), also where their squares underflow."""
    largest = jnp.abs(matrices).max((1, 2))
    scaled = matrices / jnp.where(largest > 0, largest, 1)[:, None, None]
    return largest * jnp.sqrt(jnp.sum(scaled**2, (1, 2)))
