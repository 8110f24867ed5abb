"""The presets, and the names of the trials."""

from dataclasses import dataclass

from experiments.common.settings import Settings

SMALL, LARGE, VIRTUAL = "batch norm, small", "batch norm, large", "batch norm, large virtual"
PLAIN_SMALL, PLAIN_LARGE = "no norm, small", "no norm, large"
SPREAD = "spread"
SIZES = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class RegularisationSettings(Settings):
    """`batch_size` is that of small batches."""

    images: int = 1297  # of the training set: all digits
    hidden: tuple[int, ...] = (100, 100)
    momentum: float = 0.9

    @property
    def large(self) -> int:
        """Images of a large batch."""
        return 8 * self.batch_size


PRESETS = {
    "quick": RegularisationSettings("digits", 10, 500, 64, learning_rate=0.05, eval_every=50),
    "long": RegularisationSettings(
        "mnist", 10, 2000, 64, learning_rate=0.05, eval_every=100, images=5000
    ),
}
