"""The network of a run: its norm and its precision."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bnjax.linen import BatchNorm
from experiments.common.models import MLP, ConvNet, Norm
from experiments.common.resnet import ResNet
from experiments.train.settings import Settings


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
