"""Batch norm before the activation or after it (Lee; Raschka).

A multilayer perceptron with sigmoid, tanh or ReLU is trained without batch norm, with batch norm
before each activation, and with batch norm after it, at one learning rate, from the same weights,
on the same mini-batches. Judged is whether either place speeds training up, and the lectures'
advice to put it before a sigmoid, so that the sigmoid's input stays where it is not flat.

That advice is about saturation, of which there is none when training starts from usual weights (a
variance of one over the number of inputs). So all of it is done a second time from weights 16 times
as large, with which most units begin saturated; the output layer starts the same in both. How large
matters: in a trial with 4 times the weights, the sigmoid did better with batch norm after it (96.0
against 95.1 %); with 16 times, before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import flax.linen as nn
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from bnjax.training import TrainState
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    as_factor,
    as_percent,
    overall,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.data import Dataset
from experiments.common.histories import final_mean, log_speed_up, steps_to_target
from experiments.common.models import MLP
from experiments.common.plots import BLUE, GREEN, ORANGE, WIDTH_INCHES, data_and_seeds, draw_band
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, training

NONE, BEFORE, AFTER = PLACES = ("none", "before", "after")
COLORS, STYLES = {NONE: ORANGE, BEFORE: BLUE, AFTER: GREEN}, {NONE: "--", BEFORE: "-", AFTER: "-."}
ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "ReLU": nn.relu}
USUAL, SATURATED = STARTS = ("usual weights", "saturating weights")
TARGET_ACCURACY = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.25}


@dataclass(frozen=True)
class PlacementSettings(Settings):
    """Settings of all networks."""

    hidden: tuple[int, ...] = (64, 64, 64)
    enlarged: float = 16.0  # factor of the weights that saturate

    @property
    def target_accuracy(self) -> float:
        """The test accuracy for which steps are counted."""
        return TARGET_ACCURACY[self.data]


PRESETS = {
    "quick": PlacementSettings(steps=1000, eval_every=10),
    "paper": PlacementSettings(data="mnist", steps=10_000, eval_every=50, hidden=(100, 100, 100)),
}


def trials(settings: PlacementSettings, data: Dataset) -> list[Trial]:
    """One trial an activation, place and start."""
    optimizer = optax.sgd(settings.learning_rate)
    made = []
    for (activation, function), place in product(ACTIVATIONS.items(), PLACES):
        model = MLP(
            settings.hidden,
            batch_norm=place != NONE,
            after_activation=place == AFTER,
            activation=function,
            init_std=settings.hidden[0] ** -0.5,
        )
        for start in STARTS:
            factor = settings.enlarged if start == SATURATED else 1.0
            prepare = enlarge(factor, len(settings.hidden))
            name = trial_name(activation, place, start)
            made.append(training(name, model, optimizer, data, settings, prepare=prepare))
    return made


def trial_name(activation: str, place: str, start: str) -> str:
    """Such as "tanh, batch norm before, usual weights"."""
    return f"{activation}, batch norm {place}, {start}"


def enlarge(factor: float, layers: int) -> Callable[[TrainState], TrainState]:
    """A `prepare` of `train_seeds`: the weights of the first `layers` layers times `factor`."""

    def prepare(states: TrainState) -> TrainState:
        params = dict(states.params)
        for layer in (f"Dense_{number}" for number in range(layers)):
            params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * factor}
        return states.replace(params=params)

    return prepare


def judge(records: Sequence[Record], settings: PlacementSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        *(judge_place(records, settings, place) for place in (BEFORE, AFTER)),
        *(judge_sigmoid(records, settings, start) for start in STARTS),
    ]


def speed_up(
    records: Sequence[Record],
    settings: PlacementSettings,
    activation: str,
    start: str,
    places: tuple[str, str],
) -> Interval:
    """The log ratio of steps to the target at the first of two places over the second."""
    histories = (
        series(records, trial_name(activation, place, start), "test_accuracy") for place in places
    )
    slow, fast = (steps_to_target(*history, settings.target_accuracy) for history in histories)
    return paired_interval(log_speed_up(slow, fast, settings.steps))


def final_accuracy(
    records: Sequence[Record], activation: str, place: str, start: str
) -> np.ndarray:
    """Test accuracy over the last tenth of training, (seeds,)."""
    return final_mean(*series(records, trial_name(activation, place, start), "test_accuracy"))


def judge_place(records: Sequence[Record], settings: PlacementSettings, place: str) -> Claim:
    """Whether batch norm at one place speeds up training with every activation."""
    speeds = {a: speed_up(records, settings, a, USUAL, (NONE, place)) for a in ACTIVATIONS}
    found = ", ".join(
        f"{activation} {with_interval(as_factor(logs), '#.3g')}"
        for activation, logs in speeds.items()
    )
    accuracies = ", ".join(
        f"{a} {final_accuracy(records, a, place, USUAL).mean():.1%} "
        f"(without {final_accuracy(records, a, NONE, USUAL).mean():.1%})"
        for a in ACTIVATIONS
    )
    target = settings.target_accuracy
    return Claim(
        claim=f"{place} the activation, batch norm speeds training up",
        paper="both places work (Lee; Raschka)",
        found=f"times fewer steps to {target:.0%}: {found}; in the end {accuracies}",
        verdict=overall(verdict(logs) for logs in speeds.values()),
        test=(
            f"for each activation the log ratio of steps to {target:.0%} without and with, never "
            f"reached counting as {settings.steps:,}. {VERDICT_RULE}. In part, if that differs "
            "between activations"
        ),
        numbers={activation: list(as_factor(logs)) for activation, logs in speeds.items()},
    )


def judge_sigmoid(records: Sequence[Record], settings: PlacementSettings, start: str) -> Claim:
    """Whether a sigmoid fares better with batch norm before it than after it."""
    accuracy = {place: final_accuracy(records, "sigmoid", place, start) for place in PLACES}
    interval = paired_interval(accuracy[BEFORE] - accuracy[AFTER])
    speed = as_factor(speed_up(records, settings, "sigmoid", start, (AFTER, BEFORE)))
    found = ", ".join(f"{accuracy[place].mean():.1%} {place}" for place in PLACES)
    return Claim(
        claim=f"sigmoid, {start}: before is better than after",
        paper="before is advised: inputs then stay off the flat parts (Lee)",
        found=(
            f"{found}; before minus after "
            f"{with_interval(as_percent(interval), '+.2f')} points; "
            f"{with_interval(speed, '#.3g')} times fewer steps to {settings.target_accuracy:.0%}"
        ),
        verdict=verdict(interval),
        test=f"difference of accuracy over the last tenth of training. {VERDICT_RULE}",
        numbers={
            "accuracy_before": accuracy[BEFORE].tolist(),
            "accuracy_after": accuracy[AFTER].tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
            "times_fewer_steps": list(speed),
        },
    )


def draw(records: Sequence[Record], settings: PlacementSettings) -> Figure:
    """Accuracy against steps: a column an activation, a row a start."""
    figure = Figure(figsize=(WIDTH_INCHES, 5.8), layout="constrained")
    axes = figure.subplots(len(STARTS), len(ACTIVATIONS), sharex=True, sharey=True)
    for (row, start), (column, activation) in product(enumerate(STARTS), enumerate(ACTIVATIONS)):
        ax = axes[row, column]
        for place in PLACES:
            steps, accuracy = series(records, trial_name(activation, place, start), "test_accuracy")
            label = "no batch norm" if place == NONE else f"{place} the activation"
            draw_band(ax, steps, accuracy, COLORS[place], label, STYLES[place])
        _title(ax, "abcdef"[3 * row + column], f"{activation}, {start}")
    _label(axes, settings)
    figure.suptitle(
        "Before or after the activation, batch norm works", fontsize=13, fontweight="bold"
    )
    return figure


def _title(ax: Axes, letter: str, text: str) -> None:
    ax.set_title(f"{letter}   {text}", loc="left", fontweight="bold", fontsize=9)


def _label(axes: np.ndarray, settings: PlacementSettings) -> None:
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xlim(min(settings.eval_every, settings.steps / 2), settings.steps)
    axes[0, 0].set_ylim(0, 1)
    axes[0, 0].xaxis.set_major_locator(LogLocator())
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    axes[0, 0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    axes[-1, 1].set_xlabel(
        f"training step, log scale ({data_and_seeds(settings)}, "
        f"learning rate {settings.learning_rate:g})"
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
