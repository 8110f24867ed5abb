"""Fine-tuning of all seeds at once."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.surgery import freeze, trained
from bnjax.training import TrainState, adapt, train_step
from experiments.common.data import Dataset
from experiments.common.loss import LossFn, make_loss_fn
from experiments.common.population import (
    accuracy_records,
    evaluated,
    over_seeds_and_batches,
    running_accuracy,
)
from experiments.common.records import Record
from experiments.lab.transfer.examples import draw_batches, draw_examples
from experiments.lab.transfer.settings import (
    ADAPTED,
    FROZEN,
    SCRATCH,
    TRAINED,
    TransferSettings,
    trial_name,
)


class Tuning:
    """Fine-tunes from the same pretrained networks again and again."""

    def __init__(self, model, settings: TransferSettings, data: Dataset, pretrained, fresh):
        self._model, self._settings, self._data = model, settings, data
        self._pretrained, self._fresh = pretrained, fresh
        self._train = (jnp.asarray(data.train.images), jnp.asarray(data.train.labels))
        self._loss_fn = make_loss_fn(model)
        # One object for all ways that learn the same: they share compiled programs.
        self._free = optax.sgd(settings.tune_rate)
        self._held = optax.masked(self._free, trained(freeze(pretrained)))

    def records(self, way: str, varied: str, value: int, each: int, size: int) -> Iterator[Record]:
        """One record a seed: test accuracy after tuning on `each` examples in batches of `size`."""
        settings, labels = self._settings, self._data.train.labels
        rows = [draw_examples(labels, each, seed) for seed in range(settings.seeds)]
        batches = [draw_batches(r, settings.tune_steps, size, s) for s, r in enumerate(rows)]
        variables = self._start(way, np.stack(rows))
        tx = self._held if way in (FROZEN, ADAPTED) else self._free
        tuned = fine_tune(tx, self._loss_fn, variables, np.stack(batches), *self._train)
        accuracies = running_accuracy(self._model, tuned, *self._data.test)
        return accuracy_records(value, trial_name(way, varied), accuracies)

    def _start(self, way: str, rows: np.ndarray) -> Any:
        """The variables to start from, with the seeds on axis 0."""
        if way in (TRAINED, SCRATCH):
            return self._pretrained if way == TRAINED else self._fresh
        if way == FROZEN:
            return freeze(self._pretrained)
        images = self._data.train.images[rows]
        options = {"call": evaluated, "transform": over_seeds_and_batches}
        return freeze(adapt(self._model, self._pretrained, [images], **options))


def fine_tune(tx, loss_fn: LossFn, variables: Any, batches: Any, images: Any, labels: Any) -> Any:
    """The variables of all seeds after a step of `tx` for each of `batches`.

    `batches` are rows of `images` and `labels`, (seeds, steps, size).
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    states = jax.vmap(lambda p, s: TrainState.create(params=p, batch_stats=s, tx=tx))
    tuned = _fine_tune(states(params, batch_stats), batches, images, labels, loss_fn)
    return {"params": tuned.params, "batch_stats": tuned.batch_stats}


@partial(jax.jit, static_argnames="loss_fn")
def _fine_tune(states, batches, images, labels, loss_fn):
    def step(state, rows):
        return train_step(state, {"images": images[rows], "labels": labels[rows]}, loss_fn)

    return jax.vmap(lambda state, rows: jax.lax.scan(step, state, rows)[0])(states, batches)
