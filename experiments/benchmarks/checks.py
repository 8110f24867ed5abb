"""What can be refused before a benchmark is imported, hence at once."""

from pathlib import Path
from typing import Any

from experiments.benchmarks import BENCHMARKS
from experiments.common import results
from experiments.common.errors import UserError
from experiments.options import Benchmark


def check(options: Benchmark) -> None:
    """Refuses options without a meaning, and a folder that holds something else."""
    given(options)
    files = (results.METRICS, results.CONFIG, results.SUMMARY, figure_name(options))
    results.check_destination(destination(options), options.overwrite, files)


def given(options: Benchmark) -> dict[str, Any]:
    """The settings that were given on the command line."""
    values = {name: getattr(options, name) for name in ("rounds", "dtype", "axis")}
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in BENCHMARKS[options.name].options:
            raise UserError(f"--{name} means nothing to benchmark {options.name}")
    return values


def destination(options: Benchmark) -> Path:
    """The folder of the result."""
    return options.out or Path("runs") / f"benchmark-{options.name}"


def figure_name(options: Benchmark) -> str:
    """The file of the picture."""
    return f"{options.name}.png"
