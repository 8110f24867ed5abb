"""Trains both networks and yields what is logged."""

from collections.abc import Iterator
from functools import partial

import optax

from experiments.common.data import Dataset, binarize
from experiments.common.loop import Evaluation, train_seeds
from experiments.common.metrics import evaluate_with_inputs
from experiments.common.models import MLP
from experiments.common.progress import Reporter
from experiments.common.records import Record, per_seed
from experiments.convergence.settings import NETWORKS, NORMALISED, ConvergenceSettings


def measure(settings: ConvergenceSettings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    """One record an evaluation, seed and network.

    The records hold `network`, `seed`, `step`, `train_loss` (not at step 0) and the metrics of
    `evaluate_with_inputs`.
    """
    data = binarize(data)  # the paper's input is a binary image
    for network in NETWORKS:
        reporter.say(f"{network}: compiling")
        for step, metrics in train_network(network, settings, data):
            yield from per_seed(step, network, metrics)
            if step > 0:
                loss, accuracy = metrics["train_loss"].mean(), metrics["test_accuracy"].mean()
                reporter.show(network, step, float(loss), float(accuracy))
        reporter.finish(settings.steps)


def train_network(
    network: str, settings: ConvergenceSettings, data: Dataset
) -> Iterator[Evaluation]:
    """Trains one of the two networks, all seeds side by side."""
    model = MLP(
        batch_norm=network == NORMALISED,
        init_std=settings.init_std,
        momentum=settings.momentum,
    )
    return train_seeds(
        model,
        optax.sgd(settings.learning_rate),
        partial(evaluate_with_inputs, layer=settings.layer, unit=settings.unit),
        data,
        num_seeds=settings.seeds,
        num_steps=settings.steps,
        batch_size=settings.batch_size,
        eval_every=settings.eval_every,
    )
