"""Both networks, trained alike."""

from functools import partial

import optax

from experiments.common.data import Dataset, binarize
from experiments.common.metrics import evaluate_with_inputs
from experiments.common.models import MLP
from experiments.common.settings import NETWORKS, NORMALISED
from experiments.common.trials import Trial, training
from experiments.lab.convergence.settings import ConvergenceSettings


def trials(settings: ConvergenceSettings, data: Dataset) -> list[Trial]:
    """One trial a network; its records hold the metrics of `evaluate_with_inputs`."""
    data = binarize(data)  # the paper's input is a binary image
    return [_trial(network, settings, data) for network in NETWORKS]


def _trial(network: str, settings: ConvergenceSettings, data: Dataset) -> Trial:
    model = MLP(
        batch_norm=network == NORMALISED,
        init_std=settings.init_std,
        momentum=settings.momentum,
    )
    evaluate = partial(evaluate_with_inputs, layer=settings.layer, unit=settings.unit)
    optimizer = optax.sgd(settings.learning_rate)
    return training(network, model, optimizer, data, settings, evaluate=evaluate)
