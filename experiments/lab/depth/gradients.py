"""Norms of the gradient of every layer's weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.training import TrainState
from experiments.common.loop import Batch, Metrics
from experiments.common.metrics import evaluate, gradient
from experiments.lab.depth.settings import gradient_name

GRADIENT_BATCH = 250  # test images


def evaluate_with_gradients(state: TrainState, test: Batch, *, model: nn.Module) -> Metrics:
    """Test metrics, and for each hidden layer the norm of the gradient of its weights."""
    images, labels = test
    batch = images[:GRADIENT_BATCH], labels[:GRADIENT_BATCH]
    norms = gradient_norms(state, batch, model=model)
    named = {gradient_name(layer): norm for layer, norm in enumerate(norms, 1)}
    return evaluate(state, test, model=model) | named


def gradient_norms(state: TrainState, batch: Batch, *, model: nn.Module) -> jax.Array:
    """Norms of the loss's gradient with respect to each hidden layer's weights, (depth,)."""
    grads = gradient(state, batch, model=model)
    first, others = (grads[name]["Dense_0"]["kernel"] for name in ("first", "others"))
    norms = jnp.linalg.norm(others, axis=(1, 2))
    return jnp.concatenate([jnp.linalg.norm(first)[None], norms])
