"""The presets, and the names of paints and statistics."""

from dataclasses import dataclass

from experiments.common.settings import MLPSettings

Colour = tuple[float, float, float]  # red, green and blue in [0, 1]
SOURCE = "grey"
PAINTS: dict[str, tuple[Colour, Colour]] = {  # ground and ink
    SOURCE: ((0, 0, 0), (1, 1, 1)),
    "inverted": ((1, 1, 1), (0, 0, 0)),
    "coloured": ((0, 0, 0.5), (1, 0.8, 0)),
    "low contrast": ((0.4, 0.4, 0.4), (0.6, 0.6, 0.6)),
}
SHIFTS = tuple(name for name in PAINTS if name != SOURCE)
OLD, NEW, MIXED = "as trained", "adapted", "adapted, old weighted"


@dataclass(frozen=True)
class CovariateShiftSettings(MLPSettings):
    """Settings of the network and the adaptation."""

    images: int = 1024  # unlabelled images of the new paint, at most
    prior: int = 16  # images that the old statistics count for when weighted


PRESETS = {
    "quick": CovariateShiftSettings(steps=800, batch_size=32, eval_every=100),
    "long": CovariateShiftSettings(
        data="mnist",
        steps=6000,
        batch_size=60,
        eval_every=500,
        hidden=(100, 100, 100),
        init_std=0.05,
        images=4096,
    ),
}


def trial_name(paint: str, statistics: str) -> str:
    """Such as "coloured, adapted"."""
    return f"{paint}, {statistics}"
