"""The experiments there are; what a module of one holds is told in `experiments.lab`."""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from experiments.common.errors import UserError


class Experiment(NamedTuple):
    """One line of `python -m experiments list`."""

    name: str  # also the name of its module and of its figure
    claim: str
    source: str
    minutes: tuple[float, float]  # quick and paper preset, on two cores

    @property
    def module(self) -> ModuleType:
        """The experiment's module, imported only when it is needed."""
        return import_module(f"experiments.lab.{self.name}")


EXPERIMENTS = (
    Experiment(
        "convergence",
        "Batch norm trains faster and steadier",
        "Ioffe & Szegedy 2015, section 4.1, Fig. 1",
        (1, 5),
    ),
)


def find(name: str) -> Experiment:
    """The experiment called `name`."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    raise UserError(f"unknown experiment {name!r}; choose one of: {names}")
