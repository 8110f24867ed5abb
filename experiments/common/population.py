"""Trained variables of all seeds in one tree, and population statistics of all seeds at once.

`train_seeds` keeps the seeds on axis 0 of every array. `bnjax.training.recalibrate` and `adapt`
take such a tree as it is, if their step is told so: that is what `over_seeds` does.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax import Moments
from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.loop import Examples, train_seeds, variables_of
from experiments.common.metrics import accuracy
from experiments.common.progress import Reporter
from experiments.common.records import Record, per_seed
from experiments.common.settings import Settings

Step = Callable[[Any, Any], dict[str, Moments]]


def train_variables(
    model: nn.Module, data: Dataset, settings: Settings
) -> Iterator[tuple[int, Any, float]]:
    """Trains by gradient descent, and yields step, variables and mean loss at every evaluation.

    The variables have the seeds on axis 0. The loss before the first step is NaN.
    """
    evaluations = train_seeds(
        model,
        optax.sgd(settings.learning_rate),
        _variables,
        data,
        num_seeds=settings.seeds,
        num_steps=settings.steps,
        batch_size=settings.batch_size,
        eval_every=min(settings.eval_every, settings.steps),
    )
    for step, metrics in evaluations:
        loss = metrics["train_loss"].mean() if step else float("nan")
        yield step, metrics["variables"], float(loss)


def train_to_end(
    name: str, reporter: Reporter, model: nn.Module, data: Dataset, settings: Settings
) -> Any:
    """The variables after the last step; see `train_variables`."""
    reporter.say(f"{name}: compiling")
    trained: Any = None
    for step, variables, loss in train_variables(model, data, settings):
        trained = variables
        reporter.show(name, step, loss if step else None, None)
    return trained


def accuracy_records(step: int, network: str, accuracies: jax.Array) -> Iterator[Record]:
    """A record for each of the test accuracies (seeds,)."""
    return per_seed(step, network, {"test_accuracy": np.asarray(accuracies)})


def evaluated(model: Any, images: jax.Array) -> jax.Array:
    """The `call` of `recalibrate` and `adapt`: the model as in evaluation."""
    return model(images, train=False)


def over_seeds(step: Step, *, batch_axis: int | None = None) -> Step:
    """A `transform` of `recalibrate` and `adapt` for variables with the seeds on axis 0.

    The counts get the shape of the means, for the merge. `batch_axis` is that of the seeds in a
    batch; by default all seeds have the same one.
    """

    def one_seed(variables: Any, batch: Any) -> dict[str, Moments]:
        return {
            name: m._replace(count=jnp.broadcast_to(m.count, m.mean.shape))
            for name, m in step(variables, batch).items()
        }

    return jax.jit(jax.vmap(one_seed, (0, batch_axis)))


# One object for all calls: another would be compiled anew.
over_seeds_and_batches = partial(over_seeds, batch_axis=0)


@partial(jax.jit, static_argnames="model")
def running_accuracy(model: nn.Module, variables: Any, images: Any, labels: Any) -> jax.Array:
    """Accuracy by the running statistics, (seeds,)."""

    def one_seed(variables: Any) -> jax.Array:
        logits: Any = model.apply(variables, images, train=False)
        return accuracy(logits, labels)

    return jax.vmap(one_seed)(variables)


def _variables(state: TrainState, test: Examples, *, model: nn.Module) -> dict[str, Any]:
    """Stands in for a measurement on the device: the host gets the state itself."""
    del test, model
    return {"variables": variables_of(state)}
