"""One network with and without scale, shift and a bias before."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import optax

from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate, gradient
from experiments.common.models import MLP
from experiments.common.norms import batch_norm
from experiments.common.trials import Trial, once, training
from experiments.lab.affine.identity import identity
from experiments.lab.affine.settings import (
    BOTH,
    GRADIENT_IMAGES,
    IDENTITY,
    NEITHER,
    REDUNDANT,
    SCALE,
    SHIFT,
    AffineSettings,
)


def trials(settings: AffineSettings, data: Dataset) -> list[Trial]:
    """One trial a network, and one for the identity."""
    optimizer = optax.sgd(settings.learning_rate)
    affine = {
        BOTH: batch_norm(),
        SCALE: batch_norm(use_bias=False),
        SHIFT: batch_norm(use_scale=False),
        NEITHER: batch_norm(use_scale=False, use_bias=False),
    }
    network = partial(MLP, settings.hidden, batch_norm=True, momentum=settings.momentum)
    return [
        *(
            training(name, network(norm=norm), optimizer, data, settings)
            for name, norm in affine.items()
        ),
        training(
            REDUNDANT,
            network(norm=affine[BOTH], use_bias=True),
            optimizer,
            data,
            settings,
            evaluate=evaluate_bias,
        ),
        once(IDENTITY, partial(identity, settings, data)),
    ]


def evaluate_bias(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and the largest gradient of a bias before batch norm.

    It is a share of the largest gradient of the shift in the same layer, which is what the bias'
    would be without the normalisation between them, up to the scale; the largest of all layers.
    """
    images, labels = test
    batch = images[:GRADIENT_IMAGES], labels[:GRADIENT_IMAGES]
    grads = gradient(state, batch, model=model)
    layers = [name for name in grads if name.startswith("BatchNorm")]
    shares = [
        jnp.abs(grads[name.replace("BatchNorm", "Dense")]["bias"]).max()
        / jnp.abs(grads[name]["bias"]).max()
        for name in layers
    ]
    return evaluate(state, test, model=model) | {"bias_gradient": jnp.stack(shares).max()}
