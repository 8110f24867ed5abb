"""Runs `python -m experiments train`: the loop, and what it is made of in the order of its use.

The batch of a step is a function of the seed and the step alone::

    order of epoch e = permutation drawn by Philox with key (seed, e)
    batch of step k  = entries p B to (p + 1) B of it,     e, p = divmod(k, images // B)

so a run that goes on at step k needs nothing but k, and the number of processes changes nothing.
The samplers of grain promise as much, but are many packages for three lines on arrays in memory.

On several devices each runs the step on its share of the batch under `jax.shard_map`; loss and
gradients are averaged and statistics merged, so the state stays the same on all. One device needs
none of that.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from rich.console import Console

from bnjax.linen import BatchNorm
from bnjax.training import TrainState, eval_step, train_step, weight_decay_mask
from experiments.common import interrupts, results
from experiments.common.data import Dataset, Split
from experiments.common.errors import UserError
from experiments.common.loss import make_loss_fn
from experiments.common.models import MLP, ConvNet
from experiments.common.progress import Reporter
from experiments.common.records import Record
from experiments.common.resnet import ResNet
from experiments.train import checks, processes
from experiments.train.checks import Settle
from experiments.train.options import COMMAND, Settings, Train, digest
from experiments.train.recorder import Recorder

AXIS = "data"  # the mesh axis that batches are spread over
SAME, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
EVALUATION_SIZE = 1000  # images of the test set at a time
OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
}

Batch = dict[str, jax.Array]  # images, labels, and in an evaluation weights


def train(options: Train, dataset: Dataset, settle: Settle) -> None:
    """Trains, alone or with other processes, from the start or from where it was stopped.

    `dataset` and `settle` are what `experiments.train.checks` makes of the options.
    """

    def terms() -> dict[str, Any]:
        """What all processes must have been started with."""
        settings = settle((options.num_processes or 1) * options.devices)
        return asdict(settings) | {"devices": options.devices}

    interrupts.raise_again()
    with processes.joined(options, terms):
        mesh = make_mesh(options.devices)
        console = checks.console(options) if jax.process_index() == 0 else Console(quiet=True)
        _train(options, settle(mesh.size), dataset, mesh, console)


def _train(
    options: Train, settings: Settings, dataset: Dataset, mesh: Mesh, console: Console
) -> None:
    """The run itself, the same on all processes."""
    take_step, evaluate = make_steps(settings, mesh)
    with _started(options, settings, dataset.shape, mesh) as (state, recorder):
        start, accuracy = int(state.step), None
        console.print(_describe(settings, mesh.size, start), markup=False)
        with Reporter(settings.steps, console, done=start) as reporter:
            # Before the clock of the steps starts; they find what is compiled here.
            take_step.lower(state, training_batch(dataset, settings, start, mesh)).compile()
            evaluate.lower(state, next(eval_batches(dataset, mesh))).compile()
            reporter.show("training", start, None, None)
            for step in range(start + 1, settings.steps + 1):
                batch = training_batch(dataset, settings, step - 1, mesh)
                state, metrics = take_step(state, batch)
                last, record, found = step == settings.steps, {}, None
                if step % settings.log_every == 0 or last:
                    record["loss"] = float(metrics["loss"])
                if step % settings.eval_every == 0 or last:
                    record |= means(evaluate(state, part) for part in eval_batches(dataset, mesh))
                    accuracy = found = record["test_accuracy"]
                if "loss" in record:
                    reporter.show("training", step, record["loss"], accuracy)
                if recorder is None:
                    continue
                if record:
                    recorder.log(step, record)
                if step % options.checkpoint_every == 0 or last or recorder.is_best(found):
                    recorder.save(step, on_host(state), found)
        if recorder is not None:
            console.print(_conclusion(recorder.finish(), options), markup=False)


def make_mesh(devices: int) -> Mesh:
    """A mesh of one axis: `devices` devices of each process, one process after the other."""
    found = []
    for process in range(jax.process_count()):
        local = [device for device in jax.devices() if device.process_index == process]
        if len(local) < devices:
            raise UserError(f"--devices {devices}: process {process} has {len(local)}")
        found += local[:devices]
    return Mesh(np.array(found), (AXIS,))


def make_model(settings: Settings, axis_name: str | None = None) -> nn.Module:
    """The network; `axis_name` is the mesh axis that a batch is spread over, if there is one.

    Running statistics are merged over it whatever a batch is to the norm.
    """
    size, dtype = settings.virtual_batch_size, jnp.dtype(settings.precision)
    norm = partial(BatchNorm, axis_name=axis_name, virtual_batch_size=size)
    normalised = settings.norm == "batch"
    if settings.model == "mlp":
        # Smooth: sums taken in another order, as on more devices, move the loss by rounding alone.
        # At the kink of a ReLU they now and then switch a unit, and the runs part from there.
        return MLP(activation=nn.silu, dtype=dtype, batch_norm=normalised, norm=norm)
    network = {"convnet": ConvNet, "resnet": ResNet}[settings.model]
    return network(norm if normalised else None, dtype)


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """An optax optimizer whose learning rate follows the schedule of `settings`."""
    rate, decay = optax.constant_schedule(settings.learning_rate), settings.weight_decay
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    if settings.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=decay, mask=weight_decay_mask)
    optimizer = OPTIMIZERS[settings.optimizer](rate)
    if not decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(decay, weight_decay_mask), optimizer)


def first_state(settings: Settings, shape: tuple[int, ...]) -> TrainState:
    """The state before the first step, for images of `shape`; the seed decides it."""
    init = jax.jit(partial(make_model(settings).init, train=False))
    variables = init(jax.random.key(settings.seed), jnp.zeros((2, *shape)))
    return TrainState.create(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=make_optimizer(settings),
    )


@contextmanager
def _started(
    options: Train, settings: Settings, shape: tuple[int, ...], mesh: Mesh
) -> Iterator[tuple[TrainState, Recorder | None]]:
    """The state to start from, the whole of it on every device, and on process 0 a recorder."""
    state, recorders = on_host(first_state(settings, shape)), []
    with ExitStack() as stack:

        def restored() -> list[np.ndarray]:
            """Process 0 alone reads and writes the folder."""
            config = {
                "command": COMMAND,
                "settings": asdict(settings),
            } | results.environment()
            stack.enter_context(results.grown(options.out, config, options.overwrite))
            recorder = Recorder(options.out, state, options.tensorboard, digest(settings))
            recorders.append(stack.enter_context(recorder))
            return jax.tree.leaves(recorder.state)

        leaves, same = processes.from_first(restored), NamedSharding(mesh, SAME)
        arrays = [
            jax.make_array_from_callback(leaf.shape, same, lambda _, leaf=leaf: leaf)
            for leaf in leaves
        ]
        state = jax.tree.unflatten(jax.tree.structure(state), arrays)
        yield state, recorders[0] if recorders else None


def on_host(state: TrainState) -> TrainState:
    """A copy in NumPy arrays; the arrays of `state` themselves will be reused by the next step."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), state)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order (num_images,) in which an epoch goes through the training set."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_images)


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The images (batch_size,) of a step; those left over at an epoch's end are skipped."""
    epoch, position = divmod(step, num_images // batch_size)
    order = epoch_order(seed, epoch, num_images)
    return order[position * batch_size : (position + 1) * batch_size]


def training_batch(dataset: Dataset, settings: Settings, step: int, mesh: Mesh) -> Batch:
    """The batch of a training step: `images` and `labels`."""
    split = dataset.train
    indices = batch_indices(settings.seed, step, settings.batch_size, len(split.labels))
    return _spread(split, dataset.shape, indices, mesh)


def eval_batches(dataset: Dataset, mesh: Mesh) -> Iterator[Batch]:
    """The test set, each image once with `weights` 1; images of weight 0 fill the last up."""
    split, devices = dataset.test, mesh.size
    number = len(split.labels)
    size = -(-min(EVALUATION_SIZE, number) // devices) * devices
    for first in range(0, number, size):
        indices = np.arange(first, first + size)
        weights = _rows(indices, lambda mine: (mine < number).astype(np.float32), mesh)
        yield _spread(split, dataset.shape, indices % number, mesh) | {"weights": weights}


def _spread(split: Split, shape: tuple[int, ...], indices: np.ndarray, mesh: Mesh) -> Batch:
    """The images `indices` of `shape`, with their labels."""
    images = _rows(indices, lambda mine: split.images[mine].reshape(-1, *shape), mesh, shape)
    return {"images": images, "labels": _rows(indices, lambda mine: split.labels[mine], mesh)}


def _rows(
    indices: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    shape: tuple[int, ...] = (),
) -> jax.Array:
    """What `read` makes of `indices`, (n, *shape): each device's share, read by its process."""

    def share(at: Any) -> np.ndarray:
        return read(indices[at[0]])

    return jax.make_array_from_callback((len(indices), *shape), NamedSharding(mesh, SPLIT), share)


def make_steps(settings: Settings, mesh: Mesh) -> tuple[Wrapped, Wrapped]:
    """A training step, which consumes its state, and an evaluation; both of a state and a batch."""
    axis_name = AXIS if mesh.size > 1 else None
    loss_fn = make_loss_fn(make_model(settings, axis_name))

    def step(state: TrainState, batch: Batch):
        parts = settings.micro_batches
        return train_step(state, batch, loss_fn, micro_batches=parts, axis_name=axis_name)

    def evaluate(state: TrainState, batch: Batch):
        return eval_step(state, batch, loss_fn, axis_name=axis_name)

    if axis_name is not None:
        step = jax.shard_map(step, mesh=mesh, in_specs=(SAME, SPLIT), out_specs=(SAME, SAME))
        evaluate = jax.shard_map(evaluate, mesh=mesh, in_specs=(SAME, SPLIT), out_specs=SAME)
    return jax.jit(step, donate_argnums=0), jax.jit(evaluate)


def means(parts: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
    """`test_loss` and `test_accuracy` of the sums over parts of the test set."""
    names = ("loss_sum", "correct", "count")
    rows = [[part[name] for name in names] for part in parts]
    loss, correct, count = (sum(map(float, column)) for column in zip(*rows, strict=True))
    return {"test_loss": loss / count, "test_accuracy": correct / count}


def _describe(settings: Settings, devices: int, start: int) -> str:
    where = "1 device" if devices == 1 else f"{devices} devices"
    going_on = f"going on from step {start:,} of" if start else "training for"
    return (
        f"{going_on} {settings.steps:,} steps of {settings.batch_size} images on {where}, "
        f"{settings.optimizer} at {settings.learning_rate:g}, norm {settings.norm}, "
        f"{settings.precision}; compiling ..."
    )


def _conclusion(summary: dict[str, Record], options: Train) -> str:
    last, best = summary["last"], summary["best"]
    return (
        f"test accuracy {last['test_accuracy']:.2%} after step {last['step']:,}; "
        f"best {best['test_accuracy']:.2%} after step {best['step']:,}; see {options.out}"
    )
