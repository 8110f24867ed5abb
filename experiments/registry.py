"""The experiments there are.

An experiment is a package with four modules, imported only when they are needed:

* `settings`  `PRESETS`, a dict of `experiments.common.settings.Settings` by name, and `NETWORKS`,
              the names of the networks, each trained for the settings' number of steps
* `measure`   `measure(settings, data, reporter)`, yields the records that are logged
* `verdict`   `judge(records, settings)`, the rows of the closing table, a list of `Claim`
* `figure`    `draw(records, settings)`, a matplotlib figure
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from experiments.common.errors import UserError


class Experiment(NamedTuple):
    """One line of `python -m experiments list`."""

    name: str  # also the name of its folder and of its figure
    claim: str
    source: str

    def module(self, name: str) -> ModuleType:
        """Imports one of the experiment's four modules."""
        return import_module(f"experiments.{self.name}.{name}")


EXPERIMENTS = (
    Experiment(
        "convergence",
        "Batch norm trains faster and steadier",
        "Ioffe & Szegedy 2015, section 4.1, Fig. 1",
    ),
)


def find(name: str) -> Experiment:
    """The experiment called `name`."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    raise UserError(f"unknown experiment {name!r}; choose one of: {names}")
