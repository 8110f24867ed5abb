"""The settings that all training experiments share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """One training run; an experiment's own settings extend this class."""

    data: str = "digits"
    seeds: int = 5
    steps: int = 4000
    batch_size: int = 60
    learning_rate: float = 0.1
    eval_every: int = 50
