"""Judges the claims from the test accuracy by each kind of statistics."""

from collections.abc import Sequence
from functools import partial

from experiments.common.claims import Claim, compare
from experiments.common.records import Record, series
from experiments.lab.inference.settings import (
    ONE_CLASS,
    RECALIBRATED,
    RUNNING,
    SHUFFLED,
    SMALL,
    InferenceSettings,
)

MARGIN = 0.01  # accuracies that differ by less are the same here: five digits of 500


def judge(records: Sequence[Record], settings: InferenceSettings) -> list[Claim]:
    """Running averages at the end, against small batches, and early in training."""
    steps, running = series(records, RUNNING, "test_accuracy")
    _, fresh = series(records, RECALIBRATED, "test_accuracy")
    sizes, by_batch = series(records, SHUFFLED, "test_accuracy")
    _, one_class = series(records, ONE_CLASS, "test_accuracy")
    early = (steps > 0) & (steps <= 2 * settings.memory)
    late = running[:, -1]
    claim = partial(compare, what="accuracy")
    return [
        claim(
            "running averages do as well as the batch of all test images",
            "Lee, Ng: averages of training stand in for the batch",
            {"running": late, f"all {sizes[-1]:,} images": by_batch[:, -1]},
            margin=MARGIN,
        ),
        claim(
            f"statistics of a test batch of {SMALL} do worse than running averages",
            "Ng: one example at a time has no statistics of its own",
            {"running": late, f"batches of {SMALL}": by_batch[:, 0]},
        ),
        claim(
            "statistics of a test batch of one class do worse, at any size",
            "Wu & Johnson: batches made up otherwise than in training hurt",
            {"running": late, "best size": one_class.max(1)},
        ),
        claim(
            f"early on ({2 * settings.memory:.0f} steps) running averages lag; recalibrated do not",
            "Wu & Johnson, section 3: precise statistics do better early in training",
            {"recalibrated": fresh[:, early].mean(1), "running": running[:, early].mean(1)},
        ),
        claim(
            "at the end it makes no difference",
            "Wu & Johnson, section 3: little difference in the end, but for small batches",
            {"recalibrated": fresh[:, -1], "running": late},
            margin=MARGIN,
        ),
    ]
