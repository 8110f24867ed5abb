"""The loss of every classifier here, as `bnjax.training` wants it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax

LossFn = Callable[..., Any]
Batch = dict[str, jax.Array]  # images (n, ...), labels (n,), and in an evaluation weights (n,)


def make_loss_fn(model: nn.Module) -> LossFn:
    """Mean cross-entropy in training, sums in evaluation.

    An evaluation returns as metrics the sums over images, `loss_sum`, `correct` and `count`, each
    weighted by `weights`, 0 for an image that fills up a batch.
    """

    def loss_fn(params: Any, collections: dict[str, Any], batch: Batch, train: bool):
        variables = {"params": params, **collections}
        mutable = list(collections) if train else []
        logits, updated = model.apply(variables, batch["images"], train=train, mutable=mutable)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        if train:
            return losses.mean(), ({**collections, **updated}, {})
        return losses.mean(), (collections, _sums(logits, losses, batch))

    return loss_fn


def _sums(logits: jax.Array, losses: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    weights = batch["weights"]
    correct = (logits.argmax(-1) == batch["labels"]).astype(weights.dtype)
    return {
        "loss_sum": (losses * weights).sum(),
        "correct": (correct * weights).sum(),
        "count": weights.sum(),
    }
