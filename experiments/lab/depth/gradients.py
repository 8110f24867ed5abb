"""Norms of the gradient of every layer's weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.training import TrainState
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate, gradient
from experiments.lab.depth.settings import gradient_name

GRADIENT_BATCH = 250  # test images


def evaluate_with_gradients(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and for each hidden layer the norm of the gradient of its weights."""
    images, labels = test
    batch = images[:GRADIENT_BATCH], labels[:GRADIENT_BATCH]
    by_layer = gradient_norms(state, batch, model=model)
    named = {gradient_name(layer): norm for layer, norm in enumerate(by_layer, 1)}
    return evaluate(state, test, model=model) | named


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
