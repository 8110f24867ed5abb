"""One network with and without batch norm, trained by every optimizer."""

from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate
from experiments.common.models import lecun_mlp
from experiments.common.settings import NETWORKS, NORMALISED
from experiments.common.trials import Trial, training
from experiments.lab.optimizers.settings import OPTIMIZERS, STARTS, OptimizerSettings, trial_name


def trials(settings: OptimizerSettings, data: Dataset) -> list[Trial]:
    """One trial an optimizer and network."""
    made = []
    for (optimizer, (make, rate)), network in product(OPTIMIZERS.items(), NETWORKS):
        model = lecun_mlp(settings.hidden, batch_norm=network == NORMALISED, activation=nn.relu)
        name = trial_name(optimizer, network)
        made.append(training(name, model, make(rate), data, settings, evaluate=evaluate_with_moves))
    return made


def evaluate_with_moves(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and with batch norm `moved_scale` and `moved_bias`: see `moves`."""
    return evaluate(state, test, model=model) | moves(state.params)


def moves(params: dict[str, dict[str, jax.Array]]) -> Metrics:
    """Root mean square distance of all scales, and of all shifts, from where they started."""
    norms = [layer for name, layer in params.items() if name.startswith("BatchNorm")]
    if not norms:
        return {}
    distances = {n: jnp.concatenate([layer[n] for layer in norms]) - s for n, s in STARTS.items()}
    return {f"moved_{name}": jnp.sqrt(jnp.mean(d**2)) for name, d in distances.items()}
