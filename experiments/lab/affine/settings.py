"""The presets, the names of the trials, and what rounding may do."""

from dataclasses import dataclass

from experiments.common.settings import Settings

BOTH, SCALE, SHIFT, NEITHER = "scale and shift", "scale only", "shift only", "neither"
REDUNDANT = "scale, shift and a bias before"
IDENTITY = "identity"
ROUNDING = 2.0**-24  # largest relative error of rounding to float32
MOST_ROUNDINGS = 8  # two for each of the four operations of batch norm: -, /, *, +
GRADIENT_IMAGES = 500  # of the test set: the gradient of a bias is a sum over them


@dataclass(frozen=True)
class AffineSettings(Settings):
    """Settings of all networks."""

    hidden: tuple[int, ...] = (100, 100, 100)
    momentum: float = 0.9


PRESETS = {
    "quick": AffineSettings("digits", 10, 2000, 60, learning_rate=0.3, eval_every=40),
    "long": AffineSettings("mnist", 10, 5000, 60, learning_rate=0.3, eval_every=100),
}
