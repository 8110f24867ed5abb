"""The presets, and the names of the networks that are trained."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.common.settings import NORMALISED, PLAIN, TargetSettings

NOISY = "with noise after it"
L1, LINF = "l1 norm", "l-infinity norm"
NETWORKS = (PLAIN, NORMALISED, NOISY, L1, LINF)


@dataclass(frozen=True)
class LandscapeSettings(TargetSettings):
    """Settings of all networks, and of what is explored around them."""

    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.4}
    hidden: tuple[int, ...] = (64,) * 6  # of the fully connected network, on digits
    init_std: float = 0.18  # He's scale for a ReLU with 64 inputs
    widths: tuple[int, ...] = (16, 32, 64, 64)  # of the convolutional network, on other data
    momentum: float = 0.9
    shortest: float = 0.5  # step along the gradient, in learning rates
    longest: float = 4.0
    points: int = 8
    images: int = 2000  # training images that the explored mini-batches are taken from


PRESETS = {
    "quick": LandscapeSettings(steps=300, batch_size=64, eval_every=10),
    "long": LandscapeSettings(data="cifar10", steps=800, batch_size=64, eval_every=40),
}
