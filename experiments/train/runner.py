"""Runs `python -m experiments train` from its options to the last line."""

from contextlib import nullcontext

import jax
import numpy as np
from rich.console import Console

from bnjax.training import TrainState
from experiments.common import data, results
from experiments.common.progress import Reporter, make_console
from experiments.common.records import Record
from experiments.train import folder, loop
from experiments.train.batches import Batches, make_mesh
from experiments.train.options import Train
from experiments.train.processes import from_first, joined
from experiments.train.recorder import Recorder
from experiments.train.settings import Settings, resolve
from experiments.train.steps import first_state, make_steps, on_host, on_mesh


def train(options: Train) -> None:
    """Trains, alone or with other processes, from the start or from where it was stopped."""
    with joined(options):
        _train(options)


def _train(options: Train) -> None:
    first = jax.process_index() == 0
    console = make_console() if first else Console(quiet=True)
    console.print(f"{options.model} on {options.data}: reading the data ...", markup=False)
    loaded = data.load(options.data, options.data_dir)
    mesh = make_mesh(options.devices)
    settings = resolve(options, len(loaded.train.labels), mesh.size)
    state = on_host(first_state(settings, loaded.shape))
    recorder, leaves = _open(options, settings, state)
    state = on_mesh(state, leaves, mesh)
    start = int(state.step)
    console.print(_describe(settings, mesh.size, start), markup=False)

    batches = Batches(loaded, settings.batch_size, settings.seed, mesh)
    steps, every = make_steps(settings, mesh), options.checkpoint_every
    with recorder or nullcontext():
        with Reporter(settings.steps, console, done=start) as reporter:
            loop.train(state, steps, batches, settings, every, recorder, reporter)
        if recorder is not None:
            _conclude(recorder.finish(), options, console)


def _open(
    options: Train, settings: Settings, state: TrainState
) -> tuple[Recorder | None, list[np.ndarray]]:
    """Opens the folder on process 0, and gives the arrays to start from to all processes."""
    opened: list[Recorder] = []

    def prepare() -> list[np.ndarray]:
        folder.prepare(options.out, settings, options.overwrite, results.environment())
        opened.append(Recorder(options.out, state, options.tensorboard))
        return jax.tree.leaves(opened[0].state)

    leaves = from_first(prepare)
    return (opened[0] if opened else None), leaves


def _describe(settings: Settings, devices: int, start: int) -> str:
    where = "1 device" if devices == 1 else f"{devices} devices"
    going_on = f"going on from step {start:,} of" if start else "training for"
    return (
        f"{going_on} {settings.steps:,} steps of {settings.batch_size} images on {where}, "
        f"{settings.optimizer} at {settings.learning_rate:g}, norm {settings.norm}, "
        f"{settings.precision}; compiling ..."
    )


def _conclude(summary: dict[str, Record], options: Train, console: Console) -> None:
    last, best = summary["last"], summary["best"]
    console.print(
        f"test accuracy {last['test_accuracy']:.2%} after step {last['step']:,}; "
        f"best {best['test_accuracy']:.2%} after step {best['step']:,}; see {options.out}",
        markup=False,
    )
