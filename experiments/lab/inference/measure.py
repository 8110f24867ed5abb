"""One network, evaluated in all ways."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.training import recalibrate
from experiments.common.data import Dataset
from experiments.common.models import relu_mlp
from experiments.common.population import (
    accuracy_records,
    evaluated,
    over_seeds,
    running_accuracy,
    train_variables,
)
from experiments.common.progress import Reporter
from experiments.common.records import Record
from experiments.common.trials import Trial
from experiments.lab.inference.batches import batch_accuracy, by_class, shuffled, sizes
from experiments.lab.inference.settings import (
    BATCH,
    LARGE,
    ONE_CLASS,
    RECALIBRATED,
    RUNNING,
    SHUFFLED,
    InferenceSettings,
)


def trials(settings: InferenceSettings, data: Dataset) -> list[Trial]:
    """One network, evaluated in all ways."""
    return [Trial("batch norm", settings.steps, partial(_measure, settings, data))]


def _measure(settings: InferenceSettings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    model = relu_mlp(settings)
    reporter.say("batch norm: compiling")
    images = jnp.asarray(data.train.images[: settings.images])
    batches, mixed = jnp.array_split(images, 2), shuffled(data.test)
    variables: Any = None
    for step, variables, loss in train_variables(model, data, settings):
        fresh = recalibrate(model, variables, batches, call=evaluated, transform=over_seeds)
        found = {
            RUNNING: running_accuracy(model, variables, *data.test),
            RECALIBRATED: running_accuracy(model, fresh, *data.test),
            BATCH: batch_accuracy(model, variables, mixed, LARGE),
        }
        yield from _records(step, found)
        if step > 0:
            reporter.show("batch norm", step, loss, float(found[RUNNING].mean()))
    for size in sizes(len(data.test.labels)):
        found = {SHUFFLED: batch_accuracy(model, variables, mixed, size)}
        if size <= np.bincount(data.test.labels).min():
            found[ONE_CLASS] = batch_accuracy(model, variables, by_class(data.test, size), size)
        yield from _records(size, found)


def _records(step: int, found: dict[str, jax.Array]) -> Iterator[Record]:
    for name, accuracies in found.items():
        yield from accuracy_records(step, name, accuracies)
