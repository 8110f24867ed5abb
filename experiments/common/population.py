"""Trained variables of all seeds in one tree, and population statistics of all seeds at once.

`train_seeds` keeps the seeds on axis 0 of every array. `bnjax.training.recalibrate` and `adapt`
take such a tree as it is, if their step is told so: that is what `OverSeeds` does.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax import Moments
from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.loop import Batch, train_seeds
from experiments.common.metrics import accuracy
from experiments.common.progress import Reporter
from experiments.common.settings import Settings

Step = Callable[[Any, Any], dict[str, Moments]]


def train_variables(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    data: Dataset,
    settings: Settings,
    **options: Any,
) -> Iterator[tuple[int, Any, float]]:
    """Yields step, variables (seeds on axis 0) and mean training loss at every evaluation.

    `options` are those of `train_seeds`. The loss before the first step is NaN.
    """
    evaluations = train_seeds(
        model,
        optimizer,
        _variables,
        data,
        num_seeds=settings.seeds,
        num_steps=settings.steps,
        batch_size=settings.batch_size,
        eval_every=min(settings.eval_every, settings.steps),
        **options,
    )
    for step, metrics in evaluations:
        loss = metrics["train_loss"].mean() if step else float("nan")
        yield step, metrics["variables"], float(loss)


def train_to_end(name: str, reporter: Reporter, *args: Any, **options: Any) -> Any:
    """The variables after the last step; arguments and options are those of `train_variables`."""
    reporter.say(f"{name}: compiling")
    trained: Any = None
    for step, variables, loss in train_variables(*args, **options):
        trained = variables
        if step > 0:
            reporter.show(name, step, loss, None)
    return trained


def evaluated(model: Any, images: jax.Array) -> jax.Array:
    """The `call` of `recalibrate` and `adapt`: the model as in evaluation."""
    return model(images, train=False)


class OverSeeds:
    """A `transform` of `recalibrate` and `adapt` for variables with the seeds on axis 0.

    They make their step anew in each call; this compiles the first and uses it for all, so make one
    for a model and a choice of layers.

    Args:
      per_seed: whether each seed has its own batch, on axis 0 as well.
    """

    def __init__(self, *, per_seed: bool = False):
        self._in_axes = (0, 0 if per_seed else None)
        self._compiled: Step | None = None

    def __call__(self, step: Step) -> Step:
        """The step over seeds; its counts have the shape of the means, for the merge."""

        def one_seed(variables: Any, batch: Any) -> dict[str, Moments]:
            return {
                name: m._replace(count=jnp.broadcast_to(m.count, m.mean.shape))
                for name, m in step(variables, batch).items()
            }

        if self._compiled is None:
            self._compiled = jax.jit(jax.vmap(one_seed, self._in_axes))
        return self._compiled


@partial(jax.jit, static_argnames="model")
def running_accuracy(model: nn.Module, variables: Any, images: Any, labels: Any) -> jax.Array:
    """Accuracy by the running statistics, (seeds,)."""

    def one_seed(variables: Any) -> jax.Array:
        logits: Any = model.apply(variables, images, train=False)
        return accuracy(logits, labels)

    return jax.vmap(one_seed)(variables)


def _variables(state: TrainState, test: Batch, *, model: nn.Module) -> dict[str, Any]:
    """Stands in for a measurement on the device: the host gets the state itself."""
    del test, model
    return {"variables": {"params": state.params, "batch_stats": state.batch_stats}}
