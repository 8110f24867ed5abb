"""The gap between training and test set, by which regularisation is judged."""

from typing import Any

import flax.linen as nn
import numpy as np

from bnjax.training import TrainState
from experiments.common.data import Dataset, Split
from experiments.common.loop import Examples, Metrics, variables_of
from experiments.common.metrics import test_metrics


def with_train_in_front(data: Dataset, images: int) -> Dataset:
    """The first training images alone, and in front of the test set as well, to measure both."""
    train = Split(*(array[:images] for array in data.train))
    both = Split(*(np.concatenate(pair) for pair in zip(train, data.test, strict=True)))
    return data._replace(train=train, test=both)


def evaluate_gap(state: TrainState, both: Examples, *, model: nn.Module, seen: int) -> Metrics:
    """Test metrics, and how much larger loss and error are than on the `seen` images in front."""
    images, labels = both
    variables = variables_of(state)
    logits: Any = model.apply(variables, images, train=False)
    on_train = test_metrics(logits[:seen], labels[:seen])
    on_test = test_metrics(logits[seen:], labels[seen:])
    return on_test | {
        "loss_gap": on_test["test_loss"] - on_train["test_loss"],
        "error_gap": on_train["test_accuracy"] - on_test["test_accuracy"],
    }
