"""The experiments there are; what the package of one holds is told in `experiments.lab`."""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from experiments.common.errors import UserError

PRESETS = ("quick", "paper")


class Experiment(NamedTuple):
    """One line of `python -m experiments list`."""

    name: str  # also the name of its package and of its figure
    claim: str
    source: str
    minutes: tuple[float, float]  # of the presets, on two cores that do nothing else

    @property
    def module(self) -> ModuleType:
        """The experiment's package, imported only when it is needed."""
        return import_module(f"experiments.lab.{self.name}")

    def preset_in_words(self, preset: str) -> str:
        """Data, steps and time, such as "MNIST, 5,000 steps, 3 min"."""
        settings = self.module.PRESETS[preset]
        minutes = self.minutes[PRESETS.index(preset)]
        return f"{settings.data_name}, {settings.steps:,} steps, {minutes:g} min"


EXPERIMENTS = (
    Experiment(
        "convergence",
        "Batch norm trains faster and steadier",
        "Ioffe & Szegedy 2015, section 4.1, Fig. 1",
        (0.5, 4),
    ),
    Experiment(
        "learning_rate",
        "Batch norm makes larger learning rates usable",
        "Ioffe & Szegedy 2015, section 4.2; Bjorck et al. 2018",
        (0.5, 30),
    ),
    Experiment(
        "feature_scaling",
        "Features of unlike scale make a ravine; standardising rounds it",
        "Lee; Ng",
        (0.5, 1),
    ),
    Experiment(
        "depth",
        "Batch norm keeps gradients from vanishing or exploding",
        "Raschka; Ioffe & Szegedy 2015",
        (1.5, 10),
    ),
    Experiment(
        "placement",
        "Before or after the activation, batch norm works",
        "Lee; Raschka",
        (0.5, 7),
    ),
    Experiment(
        "affine",
        "Scale and shift help, and can undo the normalisation",
        "Raschka; Ng",
        (0.5, 4),
    ),
    Experiment(
        "optimizers",
        "Scale and shift learn under every optimizer",
        "Ng",
        (0.5, 3),
    ),
    Experiment(
        "regularisation",
        "The noise of batches regularises, that of large ones less",
        "Ng",
        (0.5, 4),
    ),
    Experiment(
        "batch_size",
        "Small batches hurt batch norm, not group norm or batch renorm",
        "Wu & He 2018, Fig. 1; Ioffe 2017; Hoffer et al. 2017",
        (1, 20),
    ),
    Experiment(
        "inference",
        "Running averages stand in for the batch at test time",
        "Lee; Ng; Wu & Johnson 2021",
        (0.5, 1.5),
    ),
    Experiment(
        "covariate_shift",
        "Statistics adapted to new data restore the accuracy",
        "Ng; Li et al. 2016",
        (0.5, 1.5),
    ),
    Experiment(
        "landscape",
        "A smoother loss explains batch norm, not less covariate shift",
        "Santurkar et al. 2018, Figs. 2-4",
        (0.5, 30),
    ),
    Experiment(
        "transfer",
        "A pretrained model's statistics: freeze, adapt or train them",
        "Ng",
        (0.5, 1),
    ),
)


def find(name: str) -> Experiment:
    """The experiment called `name`."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    raise UserError(f"unknown experiment {name!r}; choose one of: {names}")
