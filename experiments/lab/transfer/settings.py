"""The presets, and the names of the ways to transfer."""

from dataclasses import dataclass

from experiments.common.data import NUM_CLASSES
from experiments.common.settings import MLPSettings

FROZEN, ADAPTED, TRAINED, SCRATCH = WAYS = ("frozen", "adapted", "trained", "scratch")
HALF = NUM_CLASSES // 2
BY_EXAMPLES, BY_BATCH = "examples", "batch"


@dataclass(frozen=True)
class TransferSettings(MLPSettings):
    """Pretraining takes `steps` of `batch_size`; fine-tuning `tune_steps` at `tune_rate`."""

    tune_steps: int = 300
    tune_rate: float = 0.01
    few: int = 5  # examples a class where the mini-batch is varied
    examples: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    batches: tuple[int, ...] = (2, 4, 8, 16, 32)


PRESETS = {
    "quick": TransferSettings(steps=600, batch_size=32, eval_every=100),
    "long": TransferSettings(
        data="mnist",
        steps=4000,
        batch_size=32,
        eval_every=500,
        hidden=(100, 100, 100),
        init_std=0.05,
        tune_steps=500,
        examples=(1, 2, 5, 10, 20, 50, 200, 1000),
    ),
}


def trial_name(way: str, varied: str) -> str:
    """Such as "frozen, by examples"."""
    return f"{way}, by {varied}"
