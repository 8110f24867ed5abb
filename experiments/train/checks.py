"""What a run does before JAX is imported: it finds out, at once, what cannot be done.

Nothing is downloaded, and no data are read, before the options are known to agree with each other,
with the files of the data, and with what is in the folder of the run.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from rich.console import Console

from experiments.common import data, results
from experiments.common.data import Dataset
from experiments.common.errors import UserError
from experiments.common.progress import make_console
from experiments.train.options import COMMAND, Settings, Train, check_batches, resolve

Settle = Callable[[int], Settings]  # by the number of devices


def begin(options: Train) -> tuple[Dataset, Settle]:
    """The data, and what settles the rest of the options.

    Raises:
      UserError: the options ask for what cannot be done.
    """
    check(options)
    console(options).print(f"{options.model} on {options.data}: reading the data ...", markup=False)
    dataset = data.load(options.data, options.data_dir)
    settle = partial(resolve, options, len(dataset.train.labels), images=data.fingerprint(dataset))
    if (devices := options.number_of_devices) is not None:
        _check_folder(options, settle(devices))
    return dataset, settle


def console(options: Train) -> Console:
    """Where the run tells of itself: process 0 does."""
    return Console(quiet=True) if options.process_id else make_console()


def check(options: Train) -> None:
    """Refuses options that contradict each other, whatever the data are."""
    _check_processes(options)
    if options.epochs is not None and options.steps is not None:
        raise UserError("give --steps or --epochs, not both")
    if options.norm == "none" and options.statistics != "global":
        raise UserError(f"--statistics {options.statistics} means nothing with --norm none")
    if options.number_of_devices is not None:
        check_batches(options, options.number_of_devices)
    data.locate(options.data, options.data_dir)
    _check_folder(options, None)


def _check_processes(options: Train) -> None:
    """Refuses options that leave open who the processes are."""
    given = (options.num_processes, options.process_id, options.coordinator)
    if options.cluster and given != (None, None, None):
        raise UserError("--cluster takes --num-processes and the like from the environment")
    if None in given and given != (None, None, None):
        raise UserError("--num-processes, --process-id and --coordinator go together")
    if options.num_processes is None or options.process_id is None or options.coordinator is None:
        return
    if options.process_id >= options.num_processes:
        raise UserError(
            f"--process-id {options.process_id} is not one of 0 to {options.num_processes - 1}"
        )
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator {options.coordinator} is not HOST:PORT")


def _check_folder(options: Train, settings: Settings | None) -> None:
    """Refuses a folder that holds something else; several processes hear it when they have met."""
    if options.is_alone:
        known = None if settings is None else asdict(settings)
        results.goes_on(options.out, COMMAND, known, options.overwrite)
