"""The presets, and the names of the trials."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.common.settings import TargetSettings

NONE, BEFORE, AFTER = PLACES = ("none", "before", "after")
USUAL, SATURATED = STARTS = ("usual weights", "saturating weights")


@dataclass(frozen=True)
class PlacementSettings(TargetSettings):
    """Settings of all networks."""

    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.25}
    hidden: tuple[int, ...] = (64, 64, 64)
    enlarged: float = 16.0  # factor of the weights that saturate


PRESETS = {
    "quick": PlacementSettings(steps=1000, eval_every=10),
    "long": PlacementSettings(data="mnist", steps=5000, eval_every=50, hidden=(100, 100, 100)),
}


def trial_name(activation: str, place: str, start: str) -> str:
    """Such as "tanh, batch norm before, usual weights"."""
    return f"{activation}, batch norm {place}, {start}"
