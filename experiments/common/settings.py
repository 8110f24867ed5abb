"""The settings that all training experiments share, and the two networks that most compare."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

DATA = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}  # in words
PLAIN, NORMALISED = NETWORKS = ("without batch norm", "with batch norm")


@dataclass(frozen=True)
class Settings:
    """One training run; an experiment's own settings extend this class."""

    unused: ClassVar[tuple[str, ...]] = ()  # fields that mean nothing to the experiment
    data: str = "digits"
    seeds: int = 10
    steps: int = 4000
    batch_size: int = 60
    learning_rate: float = 0.1
    eval_every: int = 50
    data_note: str = ""  # in words, such as which part of the data the files hold

    @property
    def data_name(self) -> str:
        """Such as "MNIST", or "CIFAR-10 (first batch)"."""
        name = DATA.get(self.data, self.data)
        return f"{name} ({self.data_note})" if self.data_note else name

    @property
    def data_label(self) -> str:
        """The same for a picture, where dollars would set mathematics."""
        return self.data_name.encode(errors="replace").decode().replace("$", r"\$")

    @property
    def seeds_in_words(self) -> str:
        """Such as "5 seeds"."""
        return "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"

    @property
    def steps_in_words(self) -> str:
        """Such as "300 steps of 60 images, learning rate 0.1"."""
        return f"{self.steps:,} steps of {self.batch_size:,} images, {self.rate_in_words}"

    @property
    def rate_in_words(self) -> str:
        """Such as "learning rate 0.1"."""
        varied = "learning_rate" in self.unused
        return "several learning rates" if varied else f"learning rate {self.learning_rate:g}"


COMMON = tuple(field.name for field in fields(Settings))  # what every experiment has


@dataclass(frozen=True)
class TargetSettings(Settings):
    """Settings of an experiment with a test accuracy to reach."""

    targets: ClassVar[dict[str, float]]  # by data set

    @property
    def target_accuracy(self) -> float:
        """Steps are counted to this test accuracy, and from it on a network counts as trained."""
        return self.targets[self.data]


@dataclass(frozen=True)
class SameImages(Settings):
    """Settings of an experiment that shows as many images in batches of any size.

    Steps, rates and momentum are those of `batch_size`, and change in proportion with the size.
    """

    unused: ClassVar[tuple[str, ...]] = ("learning_rate", "batch_size")
    batch_size: int = 64
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    momentum: float = 0.9  # weight of the old value in running averages

    def at(self, size: int) -> Self:
        """The settings for as many images in batches of `size`."""
        share = size / self.batch_size
        return replace(
            self,
            batch_size=size,
            steps=max(1, round(self.steps / share)),
            eval_every=max(1, round(self.eval_every / share)),
            rates=tuple(rate * share for rate in self.rates),
            momentum=self.momentum**share,
        )


@dataclass(frozen=True)
class MLPSettings(Settings):
    """Settings of a network with batch norm, `experiments.common.models.relu_mlp`."""

    hidden: tuple[int, ...] = (64, 64, 64)
    init_std: float = 0.1
    momentum: float = 0.9
