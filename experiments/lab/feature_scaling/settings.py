"""The presets, and the names of the inputs."""

from dataclasses import dataclass

from experiments.common.settings import Settings

RAW, STANDARDISED, NORMALISED = INPUTS = ("raw pixels", "standardised", "batch norm")
CLOSE = 0.01  # loss above the least, as a share of what the best weights gain over zero weights


@dataclass(frozen=True)
class FeatureScalingSettings(Settings):
    """`learning_rate` is a share of the largest stable one; a batch is all images there are."""

    scale: float = 100.0  # of the second pixel

    @property
    def rate_in_words(self) -> str:
        """Such as "75% of the largest stable learning rate"."""
        return f"{self.learning_rate:.0%} of the largest stable learning rate"


PRESETS = {
    "quick": FeatureScalingSettings("digits", 20, 100_000, 1000, learning_rate=0.75),
    "long": FeatureScalingSettings("mnist", 50, 100_000, 10_000, learning_rate=0.75),
}
