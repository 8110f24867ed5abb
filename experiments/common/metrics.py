"""What is measured on the test set."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax.training import TrainState
from experiments.common.loop import Examples, Metrics, variables_of
from experiments.common.loss import make_loss_fn
from experiments.common.scales import percentiles

OF_EACH_UNIT = (15, 50, 85)  # percentiles, those of Ioffe & Szegedy 2015, Fig. 1
LOOKED_AT = 100  # test images, in the percentiles over all units of a layer


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the rows of `logits` (n, classes) whose largest entry is the label's, in [0, 1]."""
    return jnp.mean(logits.argmax(-1) == labels)


def test_metrics(logits: jax.Array, labels: jax.Array) -> Metrics:
    """Accuracy and mean cross-entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"test_accuracy": accuracy(logits, labels), "test_loss": losses.mean()}


def evaluate(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics by the running statistics, `test_accuracy` and `test_loss`."""
    images, labels = test
    variables = variables_of(state)
    logits: Any = model.apply(variables, images, train=False)
    return test_metrics(logits, labels)


def in_training(model: nn.Module, variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """Logits as in training, with `images` as one batch, and the running statistics after it."""
    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, updated.get("batch_stats", {})


def gradient(state: TrainState, batch: Examples, *, model: nn.Module) -> Any:
    """The gradient of the mean loss, with `batch` normalised by its own statistics as in training.

    Args:
      state: weights and running statistics.
      batch: images (n, pixels) and labels (n,).
      model: the network.

    Returns:
      A tree like that of the parameters.
    """
    images, labels = batch
    loss_fn, collections = make_loss_fn(model), {"batch_stats": state.batch_stats}

    def loss(params: Any) -> jax.Array:
        return loss_fn(params, collections, {"images": images, "labels": labels}, train=True)[0]

    return jax.grad(loss)(state.params)


def evaluate_with_inputs(
    state: TrainState, test: Examples, *, model: nn.Module, layer: int = -1
) -> Metrics:
    """Test metrics, and percentiles of what the activations get.

    Batch norm uses its running statistics here, as it would in use. What one layer gets is asked
    unit by unit over the test set; what each layer gets, of all its units at once, over the first
    `LOOKED_AT` images, as millions of numbers would take longer to sort than to make.

    Args:
      state: weights and running statistics.
      test: images (n, pixels) and labels (n,).
      model: the network.
      layer: hidden layer; -1 is the last.

    Returns:
      `test_accuracy`, `test_loss`, `percentiles` (3, units) of `layer`, those `OF_EACH_UNIT`, and
      of every hidden layer, counted from 1, those of `experiments.common.scales` such as
      `input_1_50`.
    """
    images, labels = test
    variables = variables_of(state)
    applied: Any = model.apply(variables, images, train=False, mutable=["intermediates"])
    logits, seen = applied
    inputs = seen["intermediates"]["activation_input"]
    wanted = jnp.array(OF_EACH_UNIT, logits.dtype)
    found = test_metrics(logits, labels)
    found["percentiles"] = jnp.percentile(inputs[layer], wanted, axis=0)
    for number, units in enumerate(inputs, 1):
        found |= percentiles(f"input_{number}", units[:LOOKED_AT])
    return found
