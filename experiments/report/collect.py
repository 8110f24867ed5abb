"""Finds finished results and reads what they hold."""

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import contents, results
from experiments.common.errors import UserError
from experiments.common.settings import COMMON, Settings
from experiments.common.verdicts import VERDICTS
from experiments.registry import EXPERIMENTS, Experiment

COMMITTED = Path(__file__).parents[1] / "results"


class Result(NamedTuple):
    """A finished run of an experiment."""

    folder: Path
    experiment: Experiment
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def picture(self) -> Path:
        """The figure."""
        return self.folder / f"{self.experiment.name}.png"

    @property
    def title(self) -> str:
        """What was run on what, such as "MNIST, 5 seeds, 2,000 steps"."""
        given = self.config["settings"]
        settings = Settings(**{name: given[name] for name in COMMON if name in given})
        words = f"{settings.data_name}, {settings.seeds_in_words}, {settings.steps:,} steps"
        return words + results.on_device(self.config)

    @property
    def command(self) -> str:
        """What makes this result again."""
        words = ["python", "-m", "experiments", "run", self.experiment.name]
        preset = self.config["preset"]
        words += [] if preset == "quick" else ["--preset", preset]
        default = dataclasses.asdict(self.experiment.module.PRESETS[preset])
        settings = self.config["settings"]
        for name, value in settings.items():
            if name in COMMON and value != default.get(name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += (
            []
            if self.config["settings"].get("data", "digits") == "digits"
            else ["--data-dir", "DIR"]
        )
        return shlex.join(words)


def collect(folders: Iterable[Path]) -> list[Result]:
    """All results in `folders` and the folders in them, in the order of the experiments.

    Raises:
      UserError: there is none, or one of them is damaged.
    """
    folders = list(folders)
    found = {path.parent for folder in folders for path in folder.rglob(results.SUMMARY)}
    read = [result for folder in sorted(found) if (result := _read(folder)) is not None]
    if not read:
        names = ", ".join(map(str, folders))
        raise UserError(
            f"no finished result in {names}; `python -m experiments run all` makes them"
        )
    order = [experiment.name for experiment in EXPERIMENTS]
    quick_first = [(order.index(r.experiment.name), r.config["preset"] != "quick") for r in read]
    return [read[i] for i in sorted(range(len(read)), key=quick_first.__getitem__)]


def _read(folder: Path) -> Result | None:
    """The result in `folder`; None if it is of something else, or not finished."""
    if any(part.endswith(".part") for part in folder.parts):
        return None
    experiment, config = contents.read_config(folder)
    if experiment is None or not (folder / f"{experiment.name}.png").is_file():
        return None
    return Result(folder, experiment, config, contents.read_summary(folder))


def by_experiment(found: Iterable[Result]) -> dict[Experiment, list[Result]]:
    """The runs of each experiment."""
    groups: dict[Experiment, list[Result]] = {}
    for result in found:
        groups.setdefault(result.experiment, []).append(result)
    return groups


def tally(found: Iterable[Result]) -> dict[str, int]:
    """How many claims came out which way."""
    verdicts = [claim["verdict"] for result in found for claim in result.summary["claims"]]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}
