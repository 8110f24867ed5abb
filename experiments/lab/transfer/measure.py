"""Pretraining, and every way to go on from it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.common.data import Dataset
from experiments.common.models import relu_mlp
from experiments.common.population import train_to_end
from experiments.common.progress import Reporter
from experiments.common.records import Record
from experiments.common.trials import Trial
from experiments.lab.transfer.examples import half
from experiments.lab.transfer.settings import BY_BATCH, BY_EXAMPLES, HALF, WAYS, TransferSettings
from experiments.lab.transfer.tuning import Tuning


def trials(settings: TransferSettings, data: Dataset) -> list[Trial]:
    """One trial: pretraining, and everything that starts from it."""
    steps = settings.steps + len(WAYS) * len(_tunings(settings)) * settings.tune_steps
    return [Trial("pretraining", steps, partial(_measure, settings, data))]


def _measure(settings: TransferSettings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    model = relu_mlp(settings, HALF)
    old, new = half(data, 0), half(data, HALF)
    pretrained = train_to_end("pretraining", reporter, model, old, settings)
    fresh = _init(model, settings.seeds, new.train.images.shape[1])
    tuning = Tuning(model, settings, new, _with_new_head(pretrained, fresh), fresh)
    done = settings.steps
    for way in WAYS:
        doing = f"fine-tuning: {way}"
        reporter.say(doing)
        for varied, value, each, size in _tunings(settings):
            yield from tuning.records(way, varied, value, each, size)
            done += settings.tune_steps
            reporter.show(doing, done, None, None)


def _tunings(settings: TransferSettings) -> list[tuple[str, int, int, int]]:
    """What is varied, its value, examples of a class, and images of a mini-batch."""
    return [
        *((BY_EXAMPLES, each, each, settings.batch_size) for each in settings.examples),
        *((BY_BATCH, size, settings.few, size) for size in settings.batches),
    ]


def _init(model: nn.Module, seeds: int, pixels: int) -> Any:
    """Variables of other seeds than those of the pretraining."""
    keys = jax.vmap(jax.random.key)(1000 + jnp.arange(seeds))
    return jax.vmap(lambda key: model.init(key, jnp.zeros((2, pixels)), train=False))(keys)


def _with_new_head(variables: Any, fresh: Any) -> Any:
    """`variables` with the last layer of `fresh`."""
    head = max(name for name in fresh["params"] if name.startswith("Dense"))
    return {**variables, "params": {**variables["params"], head: fresh["params"][head]}}
