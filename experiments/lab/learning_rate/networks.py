"""One network with ReLUs or sigmoids, with and without batch norm, trained at every rate."""

import flax.linen as nn
import jax
import numpy as np

from experiments.common.data import Dataset
from experiments.common.loop import one_by_one
from experiments.common.models import ACTIVATIONS, MLP, OfPixels
from experiments.common.norms import batch_norm
from experiments.common.rates import SGD, at_rate
from experiments.common.resnet import ResNet
from experiments.common.settings import NETWORKS, NORMALISED
from experiments.common.trials import Trial, training
from experiments.lab.learning_rate.settings import RELU, SIGMOID, LearningRateSettings, trial_name


def trials(settings: LearningRateSettings, data: Dataset) -> list[Trial]:
    """One trial a rate and network."""
    # Convolutions fill the machine by themselves.
    across_seeds = one_by_one if data.name == "cifar10" else jax.vmap
    made = []
    for activation in (RELU, SIGMOID):
        for network in NETWORKS:
            model = make_model(settings, data, activation, network == NORMALISED)
            for rate in settings.grid:
                name = trial_name(activation, network, rate)
                options = {"prepare": at_rate(rate), "across_seeds": across_seeds}
                made.append(training(name, model, SGD, data, settings, **options))
    return made


def make_model(
    settings: LearningRateSettings, data: Dataset, activation: str, normalised: bool
) -> nn.Module:
    """A perceptron, or a residual network for CIFAR-10."""
    if data.name == "cifar10":
        norm = batch_norm() if normalised else None
        network = ResNet(
            norm,
            widths=settings.widths,
            stem_stride=2,
            blocks=settings.blocks,
            activation=ACTIVATIONS[activation],
        )
        return OfPixels(network, data.shape)
    he = float(np.sqrt(2 / settings.hidden[0]))
    return MLP(
        settings.hidden, batch_norm=normalised, activation=ACTIVATIONS[activation], init_std=he
    )
