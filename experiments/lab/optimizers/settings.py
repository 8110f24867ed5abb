"""The presets, the optimizers, and the names of the trials."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import optax

from experiments.common.settings import TargetSettings

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "SGD": (optax.sgd, 0.1),
    "momentum": (partial(optax.sgd, momentum=0.9), 0.01),
    "RMSprop": (optax.rmsprop, 0.001),
    "Adam": (optax.adam, 0.001),
}
STARTS = {"scale": 1.0, "bias": 0.0}  # Flax's names and first values of scale and shift


@dataclass(frozen=True)
class OptimizerSettings(TargetSettings):
    """Settings of all networks, but for the learning rate."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3}
    hidden: tuple[int, ...] = (64, 64, 64)


PRESETS = {
    "quick": OptimizerSettings(steps=1500, eval_every=10),
    "long": OptimizerSettings(data="mnist", steps=5000, eval_every=50, hidden=(100, 100, 100)),
}


def trial_name(optimizer: str, network: str) -> str:
    """Such as "Adam with batch norm"."""
    return f"{optimizer} {network}"
