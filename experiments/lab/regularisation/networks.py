"""Networks that differ in the noise of their batches."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import optax

from bnjax.training import TrainState
from experiments.common.data import Dataset, Split
from experiments.common.errors import UserError
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate
from experiments.common.models import MLP
from experiments.common.norms import batch_norm
from experiments.common.trials import Trial, once, training
from experiments.lab.regularisation.settings import (
    LARGE,
    PLAIN_LARGE,
    PLAIN_SMALL,
    SMALL,
    SPREAD,
    VIRTUAL,
    RegularisationSettings,
)
from experiments.lab.regularisation.spread import spreads


def trials(settings: RegularisationSettings, data: Dataset) -> list[Trial]:
    """One trial a network, and one for the spread."""
    train = Split(*(array[: settings.images] for array in data.train))
    if settings.large > len(train.labels):
        raise UserError(
            f"--batch-size {settings.batch_size}: the experiment also trains with 8 times as many "
            f"images, and has {len(train.labels)}"
        )
    network = partial(
        MLP, settings.hidden, activation=nn.relu, init_std=0.1, momentum=settings.momentum
    )
    plain, normalised = network(), network(batch_norm=True, norm=batch_norm())
    virtual = network(batch_norm=True, norm=batch_norm(virtual_batch_size=settings.batch_size))
    networks = (
        (SMALL, normalised, settings.batch_size),
        (LARGE, normalised, settings.large),
        (VIRTUAL, virtual, settings.large),
        (PLAIN_SMALL, plain, settings.batch_size),
        (PLAIN_LARGE, plain, settings.large),
    )
    options = {
        "optimizer": optax.sgd(settings.learning_rate, momentum=0.9),
        "data": data._replace(train=train),
        "settings": settings,
        "evaluate": partial(
            evaluate_gap, train=(jnp.asarray(train.images), jnp.asarray(train.labels))
        ),
    }
    return [
        once(SPREAD, partial(spreads, settings, data)),
        *(training(name, model, batch_size=size, **options) for name, model, size in networks),
    ]


def evaluate_gap(
    state: TrainState, test: Examples, *, model: nn.Module, train: Examples
) -> Metrics:
    """Test metrics, and how much larger loss and error are on the test than on the training set."""
    unseen = evaluate(state, test, model=model)
    seen = evaluate(state, train, model=model)
    return unseen | {
        "loss_gap": unseen["test_loss"] - seen["test_loss"],
        "error_gap": seen["test_accuracy"] - unseen["test_accuracy"],
    }
