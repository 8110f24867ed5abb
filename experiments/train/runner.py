"""Runs `python -m experiments train` from its options to the last line."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from bnjax.training import TrainState
from experiments.common import data, interrupts, results
from experiments.common.progress import Reporter, make_console
from experiments.common.records import Record
from experiments.train import folder, loop, processes
from experiments.train.batches import Batches, make_mesh
from experiments.train.options import Train
from experiments.train.recorder import Recorder
from experiments.train.settings import Settings, digest, resolve
from experiments.train.steps import first_state, make_steps, on_host, on_mesh


def train(options: Train) -> None:
    """Trains, alone or with other processes, from the start or from where it was stopped."""
    processes.check(options)
    console = Console(quiet=True) if options.process_id else make_console()
    console.print(f"{options.model} on {options.data}: reading the data ...", markup=False)
    loaded = data.load(options.data, options.data_dir)
    settled = partial(resolve, options, len(loaded.train.labels), images=data.fingerprint(loaded))

    def terms() -> dict[str, Any]:
        """What all processes must have been started with."""
        settings = settled((options.num_processes or 1) * options.devices)
        return asdict(settings) | {"devices": options.devices}

    interrupts.raise_again()
    with processes.joined(options, terms):
        mesh = make_mesh(options.devices)
        console = console if jax.process_index() == 0 else Console(quiet=True)
        _train(options, settled(mesh.size), loaded, mesh, console)


def _train(
    options: Train, settings: Settings, loaded: data.Dataset, mesh: Mesh, console: Console
) -> None:
    state = on_host(first_state(settings, loaded.shape))
    with _open(options, settings, state) as (recorder, leaves):
        state = on_mesh(state, leaves, mesh)
        start = int(state.step)
        console.print(_describe(settings, mesh.size, start), markup=False)
        batches = Batches(loaded, settings.batch_size, settings.seed, mesh)
        steps, every = make_steps(settings, mesh), options.checkpoint_every
        with Reporter(settings.steps, console, done=start) as reporter:
            loop.train(state, steps, batches, settings, every, recorder, reporter)
        if recorder is not None:
            _conclude(recorder.finish(), options, console)


@contextmanager
def _open(
    options: Train, settings: Settings, state: TrainState
) -> Iterator[tuple[Recorder | None, list[np.ndarray]]]:
    """The folder, on process 0 alone, and the arrays to start from, on all processes."""
    with ExitStack() as stack:
        opened: list[Recorder] = []

        def prepare() -> list[np.ndarray]:
            stack.enter_context(folder.alone(options.out))
            folder.prepare(options.out, settings, options.overwrite, results.environment())
            recorder = Recorder(options.out, state, options.tensorboard, digest(settings))
            opened.append(stack.enter_context(recorder))
            return jax.tree.leaves(recorder.state)

        leaves = processes.from_first(prepare)
        yield (opened[0] if opened else None), leaves


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
