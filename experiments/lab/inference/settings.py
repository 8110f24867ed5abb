"""The presets, and the names of the ways to evaluate."""

from dataclasses import dataclass

from experiments.common.settings import MLPSettings

RUNNING, RECALIBRATED, BATCH = "running averages", "recalibrated", "test batch"
SHUFFLED, ONE_CLASS = "shuffled", "one class a batch"
SMALL, LARGE = 2, 64  # sizes of test batches that are judged


@dataclass(frozen=True)
class InferenceSettings(MLPSettings):
    """Settings of the network and its statistics."""

    momentum: float = 0.99  # weight of the old value in the running averages
    images: int = 1000  # training images for recalibration, in two batches

    @property
    def memory(self) -> float:
        """Steps that the running averages look back on."""
        return 1 / (1 - self.momentum)


PRESETS = {
    "quick": InferenceSettings(steps=1000, batch_size=32, eval_every=20),
    "long": InferenceSettings(
        data="mnist",
        steps=4000,
        batch_size=32,
        eval_every=50,
        hidden=(100, 100, 100),
        images=10_000,
    ),
}
