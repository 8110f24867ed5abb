"""Dispatches the commands, and turns what goes wrong into one line and an exit code.

* 0: done
* 1: done, and a claim of a benchmark failed
* 2: the user asked for something that cannot be done; nothing was written
* 3: the processes of a training run did not meet, or one seems to have died
* 130: stopped with Ctrl-C

Nobody has to read what is printed: after `| head -1` the work goes on, and ends as it would.

What `run` has finished of its trials, and `train` up to its last checkpoint, is kept whatever
happens: the same command goes on.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.common import interrupts, output
from experiments.common.errors import UserError
from experiments.common.interrupts import INTERRUPTED

if TYPE_CHECKING:  # imported late, so that the first line comes at once
    from experiments.options import Benchmark, Train

USER_ERROR = 2
EXTRAS = (  # of the group `experiments` in pyproject.toml
    "filelock",
    "jinja2",
    "matplotlib",
    "orbax",
    "pooch",
    "rich",
    "scipy",
    "sklearn",
    "tensorboardX",
    "tyro",
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process) and returns its exit code."""
    with output.forgiven():
        return _main(args)


def _main(args: Sequence[str] | None) -> int:
    try:
        return _dispatch(args)
    except UserError as error:
        print("error:", *str(error).split(), file=sys.stderr)  # one line, whatever paths hold
        return error.code
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(f"error: {error.name} is missing; pip install --group experiments", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


def _dispatch(args: Sequence[str] | None) -> int:
    # Imports wait until here, so that Ctrl-C during a slow one is caught as well.
    from experiments import options

    command = options.parse(args)
    if isinstance(command, options.List):
        _list()
        return 0
    if isinstance(command, options.Benchmark):
        return _benchmark(command, own_process=args is None)
    if isinstance(command, options.Train):
        return _train(command)
    if isinstance(command, options.Report):
        from experiments.report import runner as report

        report.run(command)
        return 0
    if isinstance(command, options.Compare):
        from experiments.report import compare

        compare.run(command)
        return 0
    if isinstance(command, options.Site):
        from experiments.site import runner as site

        site.run(command)
        return 0
    from experiments import runner

    if isinstance(command, options.Run):
        runner.run(command)
    else:
        runner.redraw(command.folder)
    return 0


def _benchmark(command: "Benchmark", own_process: bool) -> int:
    from experiments.benchmarks import checks, machine

    checks.check(command)
    if own_process:
        machine.prepare(elsewhere=command.name in ("accelerators", "checkpoint"))
    from experiments.benchmarks import runner

    interrupts.raise_again()
    return runner.run(command)


def _train(command: "Train") -> int:
    try:
        from experiments.train import checks

        dataset, settle = checks.begin(command)
        from experiments.train import runner  # late, as it imports JAX

        runner.train(command, dataset, settle)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


def _list() -> None:
    from rich.table import Column, Table

    from experiments.common.progress import make_console
    from experiments.registry import EXPERIMENTS

    table = Table(Column("name", no_wrap=True), "claim and source", "presets", show_lines=True)
    for each in EXPERIMENTS:
        presets = (f"{preset}: {each.preset_in_words(preset)}" for preset in each.minutes)
        table.add_row(each.name, f"{each.claim}\n({each.source})", "\n".join(presets))
    make_console().print(table)
