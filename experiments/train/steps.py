"""One training step and one evaluation, compiled for the devices of a mesh.

On several devices each runs the step on its share of the batch under `jax.shard_map`; loss and
gradients are averaged and statistics merged, so the state stays the same on all. One device needs
none of that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bnjax.training import TrainState, eval_step, train_step
from experiments.common.loss import make_loss_fn
from experiments.train.batches import AXIS, Batches
from experiments.train.networks import make_model
from experiments.train.optimizers import make_optimizer
from experiments.train.settings import Settings


class Steps(NamedTuple):
    """The compiled functions of a run."""

    train: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[TrainState, Any], dict[str, jax.Array]]


def make_steps(settings: Settings, mesh: Mesh) -> Steps:
    """Functions of the state, which `train` consumes, and of a batch spread over `mesh`."""
    axis_name = _axis_name(mesh)
    loss_fn = make_loss_fn(make_model(settings, axis_name))

    def train(state, batch):
        parts = settings.micro_batches
        return train_step(state, batch, loss_fn, micro_batches=parts, axis_name=axis_name)

    def evaluate(state, batch):
        return eval_step(state, batch, loss_fn, axis_name=axis_name)

    if axis_name is not None:
        same, split = PartitionSpec(), PartitionSpec(AXIS)
        train = jax.shard_map(train, mesh=mesh, in_specs=(same, split), out_specs=(same, same))
        evaluate = jax.shard_map(evaluate, mesh=mesh, in_specs=(same, split), out_specs=same)
    return Steps(jax.jit(train, donate_argnums=0), jax.jit(evaluate))


def first_state(settings: Settings, shape: tuple[int, ...]) -> TrainState:
    """The state before the first step, for images of `shape`; the seed decides it."""
    model = make_model(settings, None)
    images = jnp.zeros((2, *shape))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(settings.seed), images)
    return TrainState.create(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=make_optimizer(settings),
    )


def on_mesh(state: TrainState, leaves: list[np.ndarray], mesh: Mesh) -> TrainState:
    """`state` with `leaves` in its places, the whole of it on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    arrays = [
        jax.make_array_from_callback(leaf.shape, sharding, lambda _, leaf=leaf: leaf)
        for leaf in leaves
    ]
    return jax.tree.unflatten(jax.tree.structure(state), arrays)


def on_host(state: TrainState) -> TrainState:
    """A copy in NumPy arrays; the arrays of `state` themselves will be reused by the next step."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), state)


def test_metrics(steps: Steps, state: TrainState, batches: Batches) -> dict[str, float]:
    """`test_loss` and `test_accuracy` over the test set, by the running statistics."""
    parts = [steps.evaluate(state, batch) for batch in batches.test()]
    sums = {
        name: sum(float(part[name]) for part in parts) for name in ("loss_sum", "correct", "count")
    }
    return {
        "test_loss": sums["loss_sum"] / sums["count"],
        "test_accuracy": sums["correct"] / sums["count"],
    }


def _axis_name(mesh: Mesh) -> str | None:
    return AXIS if mesh.size > 1 else None
