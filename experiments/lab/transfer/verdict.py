"""Judges the claims from the test accuracy after fine-tuning."""

from collections.abc import Sequence

import numpy as np

from experiments.common.claims import Claim, compare
from experiments.common.records import Record, series
from experiments.lab.transfer.settings import (
    ADAPTED,
    BY_BATCH,
    BY_EXAMPLES,
    FROZEN,
    SCRATCH,
    TRAINED,
    TransferSettings,
    trial_name,
)


def judge(records: Sequence[Record], settings: TransferSettings) -> list[Claim]:
    """What pretraining, adapting, freezing and training are worth, and when."""
    few, smallest, most = settings.few, min(settings.batches), max(settings.examples)
    return [
        compare(
            f"{few} examples a class: a pretrained network, frozen, does better than a new one",
            "Ng: with little data of your own, start from a trained network and freeze",
            _accuracies(records, (FROZEN, SCRATCH), BY_EXAMPLES, few),
        ),
        compare(
            f"{few} examples a class: freezing batch norm does better than training it",
            "Ng: with little data, train little of the network",
            _accuracies(records, (FROZEN, TRAINED), BY_EXAMPLES, few),
        ),
        compare(
            f"{few} examples a class: frozen statistics should be those of the new classes",
            "Li et al. 2016: statistics belong to the data, weights to the task",
            _accuracies(records, (ADAPTED, FROZEN), BY_EXAMPLES, few),
        ),
        compare(
            f"mini-batches of {smallest}: freezing batch norm does better than training it",
            "Wu & He 2018, section 4.2: detectors freeze, since their mini-batches are small",
            _accuracies(records, (FROZEN, TRAINED), BY_BATCH, smallest),
        ),
        compare(
            f"{most:,} examples a class: training batch norm does better than freezing it",
            "Ng: with more data, train more of the network",
            _accuracies(records, (TRAINED, FROZEN), BY_EXAMPLES, most),
        ),
    ]


def _accuracies(
    records: Sequence[Record], ways: tuple[str, str], varied: str, value: int
) -> dict[str, np.ndarray]:
    """Test accuracies (seeds,) of two ways."""
    found = {}
    for way in ways:
        values, accuracy = series(records, trial_name(way, varied), "test_accuracy")
        found[way] = accuracy[:, values.tolist().index(value)]
    return found
