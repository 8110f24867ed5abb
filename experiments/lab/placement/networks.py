"""One network with batch norm in either place, from either weights."""

from collections.abc import Callable
from itertools import product

import optax

from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.models import ACTIVATIONS, lecun_mlp
from experiments.common.trials import Trial, training
from experiments.lab.placement.settings import (
    AFTER,
    NONE,
    PLACES,
    SATURATED,
    STARTS,
    PlacementSettings,
    trial_name,
)


def trials(settings: PlacementSettings, data: Dataset) -> list[Trial]:
    """One trial an activation, place and start."""
    optimizer = optax.sgd(settings.learning_rate)
    made = []
    for (activation, function), place in product(ACTIVATIONS.items(), PLACES):
        model = lecun_mlp(
            settings.hidden,
            batch_norm=place != NONE,
            after_activation=place == AFTER,
            activation=function,
        )
        for start in STARTS:
            factor = settings.enlarged if start == SATURATED else 1.0
            prepare = enlarge(factor, len(settings.hidden))
            name = trial_name(activation, place, start)
            made.append(training(name, model, optimizer, data, settings, prepare=prepare))
    return made


def enlarge(factor: float, layers: int) -> Callable[[TrainState], TrainState]:
    """A `prepare` of `train_seeds`: the weights of the first `layers` layers times `factor`."""

    def prepare(states: TrainState) -> TrainState:
        params = dict(states.params)
        for layer in (f"Dense_{number}" for number in range(layers)):
            params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * factor}
        return states.replace(params=params)

    return prepare
