"""The presets, and the names of the networks that are trained."""

from dataclasses import dataclass

from experiments.common.settings import Settings

PLAIN, NORMALISED = NETWORKS = ("without batch norm", "with batch norm")
TARGET_ACCURACY = {"digits": 0.9, "mnist": 0.97}


@dataclass(frozen=True)
class ConvergenceSettings(Settings):
    """Settings of both networks."""

    init_std: float = 0.1  # standard deviation of the first weights
    momentum: float = 0.9  # weight of the old value in batch norm's running averages
    layer: int = -1  # hidden layer whose sigmoid is watched: the last,
    unit: int = 0  # and the unit in it, fixed before any run

    @property
    def target_accuracy(self) -> float:
        """The test accuracy for which steps are counted."""
        return TARGET_ACCURACY[self.data]


PRESETS = {
    "quick": ConvergenceSettings(data="digits", steps=5000, learning_rate=0.3, eval_every=20),
    "paper": ConvergenceSettings(data="mnist", steps=50_000, learning_rate=0.3, eval_every=250),
}
