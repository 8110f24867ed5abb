"""The presets."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.common.settings import TargetSettings


@dataclass(frozen=True)
class ConvergenceSettings(TargetSettings):
    """Settings of both networks."""

    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.97, "cifar10": 0.3}
    init_std: float = 0.1  # standard deviation of the first weights
    momentum: float = 0.9  # weight of the old value in batch norm's running averages
    layer: int = -1  # hidden layer whose sigmoid is watched: the last,
    unit: int = 0  # and the unit in it, fixed before any run


PRESETS = {
    "quick": ConvergenceSettings(data="digits", steps=5000, learning_rate=0.3, eval_every=20),
    "paper": ConvergenceSettings(data="mnist", steps=50_000, learning_rate=0.3, eval_every=250),
}
