"""One network trained in grey, then adapted to each paint."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.training import adapt
from experiments.common.data import Dataset, Split
from experiments.common.models import relu_mlp
from experiments.common.population import (
    accuracy_records,
    evaluated,
    over_seeds_and_batches,
    running_accuracy,
    train_to_end,
)
from experiments.common.progress import Reporter
from experiments.common.records import Record
from experiments.common.trials import Trial
from experiments.lab.covariate_shift.paint import paint_all
from experiments.lab.covariate_shift.settings import (
    MIXED,
    NEW,
    OLD,
    PAINTS,
    SOURCE,
    CovariateShiftSettings,
    trial_name,
)


def trials(settings: CovariateShiftSettings, data: Dataset) -> list[Trial]:
    """One network; its records are named by paint and by what was adapted."""
    return [Trial("batch norm", settings.steps, partial(_measure, settings, data))]


def counts(images: int) -> list[int]:
    """4, 8, 16 and so on up to `images`: how many to adapt to."""
    return [2**k for k in range(2, 20) if 2**k <= images]


def _measure(
    settings: CovariateShiftSettings, data: Dataset, reporter: Reporter
) -> Iterator[Record]:
    model = relu_mlp(settings)
    grey = paint_all(data, *PAINTS[SOURCE])
    variables = train_to_end("batch norm", reporter, model, grey, settings)
    for name, colours in PAINTS.items():
        painted = paint_all(data, *colours)
        measured = _adapt(model, variables, painted.train, painted.test, settings)
        for which, number, accuracies in measured:
            yield from accuracy_records(number, trial_name(name, which), accuracies)


def _adapt(
    model: nn.Module,
    variables: Any,
    train: Split,
    test: Split,
    settings: CovariateShiftSettings,
) -> Iterator[tuple[str, int, jax.Array]]:
    """What was done, number of images and test accuracy (seeds,)."""
    yield OLD, 0, running_accuracy(model, variables, *test)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(train.labels)) for _ in range(settings.seeds)]
    for number in counts(min(settings.images, len(train.labels))):
        unlabelled = jnp.asarray(train.images[[order[:number] for order in rows]])
        weights = {NEW: 1.0, MIXED: number / (settings.prior + number)}
        for which, weight in weights.items():
            adapted = adapt(
                model,
                variables,
                [unlabelled],
                weight=weight,
                call=evaluated,
                transform=over_seeds_and_batches,
            )
            yield which, number, running_accuracy(model, adapted, *test)
