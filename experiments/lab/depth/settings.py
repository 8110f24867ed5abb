"""The presets, and the names of the trials and their metrics."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.common.settings import TargetSettings


@dataclass(frozen=True)
class DepthSettings(TargetSettings):
    """Settings of all networks."""

    targets: ClassVar[dict[str, float]] = {"digits": 0.8, "mnist": 0.8, "cifar10": 0.25}
    depths: tuple[int, ...] = (5, 20, 50)  # numbers of hidden layers
    width: int = 64  # units of each


PRESETS = {
    "quick": DepthSettings(steps=300, eval_every=30),
    "long": DepthSettings(
        data="mnist", steps=1000, eval_every=50, depths=(5, 10, 20, 30, 40, 50), width=100
    ),
}


def trial_name(activation: str, network: str, depth: int) -> str:
    """Such as "tanh with batch norm, 50 layers"."""
    return f"{activation} {network}, {depth} layers"


def gradient_name(layer: int) -> str:
    """Of layer 1 to depth in the records."""
    return f"gradient_{layer}"
