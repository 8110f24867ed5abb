"""The network of a run: its norm, its precision, and its loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax.linen import BatchNorm
from experiments.common.models import MLP, ConvNet, Norm
from experiments.common.resnet import ResNet
from experiments.train.settings import Settings

Batch = dict[str, jax.Array]  # images (n, height, width, channels), labels (n,), weights (n,)


def _batch_norm(settings: Settings, axis_name: str | None) -> Norm:
    """Running statistics are merged over `axis_name` whatever a batch is to the norm."""
    size = settings.virtual_batch_size
    return partial(BatchNorm, axis_name=axis_name, virtual_batch_size=size)


def _mlp(norm: Norm | None, dtype: Any) -> nn.Module:
    # Smooth: sums taken in another order, as on more devices, move the loss by rounding alone. At
    # the kink of a ReLU they now and then switch a unit, and the runs part from there.
    mlp = MLP(activation=nn.silu, dtype=dtype)
    return mlp if norm is None else mlp.clone(batch_norm=True, norm=norm)


NORMS: dict[str, Callable[[Settings, str | None], Norm | None]] = {
    "batch": _batch_norm,
    "none": lambda settings, axis_name: None,
}
MODELS: dict[str, Callable[[Norm | None, Any], nn.Module]] = {
    "mlp": _mlp,
    "convnet": ConvNet,
    "resnet": ResNet,
}


def make_model(settings: Settings, axis_name: str | None) -> nn.Module:
    """The network; `axis_name` is the mesh axis that a batch is spread over, if there is one."""
    norm = NORMS[settings.norm](settings, axis_name)
    return MODELS[settings.model](norm, jnp.dtype(settings.precision))


def make_loss_fn(model: nn.Module):
    """The loss of `bnjax.training`: mean cross-entropy in training, sums in evaluation.

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
