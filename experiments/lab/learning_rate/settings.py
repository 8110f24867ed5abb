"""The presets, and the names of the trials."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.common.settings import TargetSettings

RELU, SIGMOID = "ReLU", "sigmoid"
LOWEST, HIGHEST = 1e-3, 1e2


@dataclass(frozen=True)
class LearningRateSettings(TargetSettings):
    """Settings of all networks, but for the learning rate."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    # On CIFAR-10 twice chance: 400 steps take few networks further without batch norm.
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.2}
    rates: int = 15  # of the grid, ends included
    hidden: tuple[int, ...] = (64,) * 6  # of the perceptron
    widths: tuple[int, ...] = (16, 32, 64)  # of the residual network's stages
    blocks: int = 1  # of a stage

    @property
    def grid(self) -> np.ndarray:
        """The learning rates, (rates,)."""
        return np.geomspace(LOWEST, HIGHEST, self.rates)


PRESETS = {
    "quick": LearningRateSettings(steps=400, eval_every=10),
    "long": LearningRateSettings(data="cifar10", steps=400, batch_size=64, eval_every=20, rates=11),
}


def trial_name(activation: str, network: str, rate: float) -> str:
    """Such as "ReLU with batch norm, rate 0.1"."""
    return f"{activation} {network}, rate {rate:.3g}"
