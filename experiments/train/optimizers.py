"""The optimizer of a run, its schedule and its weight decay."""

from collections.abc import Callable

import optax

from bnjax.training import weight_decay_mask
from experiments.train.settings import Settings

OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
}


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """An optax optimizer whose learning rate follows the schedule of `settings`."""
    rate = _schedule(settings)
    decay = settings.weight_decay
    if settings.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=decay, mask=weight_decay_mask)
    optimizer = OPTIMIZERS[settings.optimizer](rate)
    if not decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(decay, weight_decay_mask), optimizer)


def _schedule(settings: Settings) -> optax.Schedule:
    if settings.schedule == "cosine":
        return optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.constant_schedule(settings.learning_rate)
