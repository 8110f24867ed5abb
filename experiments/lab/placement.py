"""Batch norm before the activation or after it (Lee; Raschka).

A network of three hidden layers of sigmoid, tanh or ReLU units is trained without batch norm, with
batch norm before each activation, and with batch norm after it, from the same weights, on the same
mini-batches, at every rate of a grid. Speeds are compared at the rate that gets each soonest to the
target accuracy on images held out, and accuracies at the most accurate. Lee: both places work, and
before is advised for a sigmoid, so that its inputs stay where it is not flat. Raschka's lecture
places batch norm before the activation, and says that it works with any of them.

Lee's advice is about saturation, of which there is none when training starts from usual weights (a
variance of one over the number of inputs). So sigmoids are trained a second time from weights 16
times as large, with which most units begin saturated; the output layer starts the same in both.

**The quick preset was shortened, to save time, after its outcome had been looked at once**: it had
400 steps and has 250. The long one is as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import count_steps, final, log_speed_up, steps_to_target
from experiments.common.models import ACTIVATIONS, lecun_mlp
from experiments.common.panels import legend_above
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_band,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
    stretch_accuracy,
    stretch_steps,
)
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record, series
from experiments.common.settings import TargetSettings
from experiments.common.sweep import (
    Score,
    at_rate,
    best_rate,
    best_trial,
    by_accuracy,
    by_speed,
    rate_in_words,
    ring,
)
from experiments.common.trials import Trial, training
from experiments.common.verdicts import TIMES, Row, Test, claim, control

NONE, BEFORE, AFTER = PLACES = ("no batch norm", "before", "after")
COLORS: dict[str, str] = dict(zip(PLACES, (ORANGE, BLUE, GREEN), strict=True))
STYLES: dict[str, str] = dict(zip(PLACES, ("--", "-", "-."), strict=True))
MARKERS: dict[str, str] = dict(zip(PLACES, "s^v", strict=True))
SIGMOID, SATURATED = "sigmoid", "saturated sigmoid"
KINDS = (*ACTIVATIONS, SATURATED)  # of hidden units


@dataclass(frozen=True)
class Settings(TargetSettings):
    """Settings of all networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.25}
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    hidden: tuple[int, ...] = (64, 64, 64)
    enlarged: float = 16.0  # factor of the weights that saturate


PRESETS = {
    "quick": Settings(steps=250, eval_every=5),
    "long": Settings(data="mnist", steps=500, eval_every=25),
}


def trial_name(kind: str, place: str) -> str:
    """Such as "tanh, after"."""
    return f"{kind}, {place}"


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a kind of unit, place and rate."""
    data, made = hold_out(data), []
    for activation, function in ACTIVATIONS.items():
        for place in PLACES:
            options = {"batch_norm": place != NONE, "after_activation": place == AFTER}
            model = lecun_mlp(settings.hidden, activation=function, **options)
            for kind, factor in _starts(activation, settings.enlarged).items():
                for rate in settings.rates:
                    prepare = _both(set_rate(rate), enlarge(factor, len(settings.hidden)))
                    name = at_rate(trial_name(kind, place), rate)
                    made.append(training(name, model, SGD, data, settings, prepare=prepare))
    return made


def _starts(activation: str, enlarged: float) -> dict[str, float]:
    """What first weights are multiplied by, by kind of unit."""
    return {activation: 1.0} | ({SATURATED: enlarged} if activation == SIGMOID else {})


Prepare = Callable[[TrainState], TrainState]


def _both(first: Prepare, second: Prepare) -> Prepare:
    return lambda states: second(first(states))


def enlarge(factor: float, layers: int) -> Prepare:
    """A `prepare` of `train_seeds`: the weights of the first `layers` layers times `factor`."""

    def prepare(states: TrainState) -> TrainState:
        params = dict(states.params)
        for layer in (f"Dense_{number}" for number in range(layers)):
            params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * factor}
        return states.replace(params=params)

    return prepare


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    return [
        _judge_place(records, settings, AFTER, "works", "both places work", "Lee"),
        _judge_place(records, settings, BEFORE, "works", "it works with any activation", "Raschka"),
        _judge_sigmoid(records, settings, SATURATED, "before saturated ones"),
        _judge_sigmoid(records, settings, SIGMOID, "before a sigmoid"),
        control(
            "accuracy",
            "test accuracy at the end, each at its best rate",
            _accuracies(records, settings),
        ),
    ]


def _judge_place(
    records: Sequence[Record], settings: Settings, place: str, short: str, said: str, source: str
) -> Row:
    """Whether batch norm in one place gets there sooner than none, with every activation."""
    tests, found, last = [], [], settings.steps
    for activation in ACTIVATIONS:
        trials = best_trials(records, settings, activation, soonest(settings.target_accuracy))
        reached = _reached(records, settings, trials)
        plain, normalised = reached[NONE], reached[place]
        tests.append(
            Test(
                f"{activation}: log of steps to {settings.target_accuracy:.0%} test accuracy, "
                f"without / with batch norm {place}",
                log_speed_up(plain, normalised, last),
                TIMES,
                capped=bool(np.isinf(plain).any()),
            )
        )
        found.append(
            f"{activation} {count_steps(normalised, last)}, {count_steps(plain, last)} without"
        )
    return claim(
        f"{place}: {short}",
        said,
        source,
        *tests,
        found=f"steps to {settings.target_accuracy:.0%}: {'; '.join(found)}",
    )


def _judge_sigmoid(records: Sequence[Record], settings: Settings, kind: str, short: str) -> Row:
    trials = best_trials(records, settings, kind, by_accuracy)
    reached = _reached(records, settings, trials)
    accuracy = {p: final(records, name, "test_accuracy") for p, name in trials.items()}
    counted = (f"{count_steps(reached[p], settings.steps)} {p}" for p in PLACES)
    scored = (f"{accuracy[p].mean():.1%} {p}" for p in PLACES)
    return claim(
        short,
        "before is advised for a sigmoid, so that its inputs stay off its flat parts",
        "Lee",
        Test(
            f"{kind}: test accuracy over the last tenth of training, before - after",
            accuracy[BEFORE] - accuracy[AFTER],
        ),
        found=f"{', '.join(scored)}; steps to {settings.target_accuracy:.0%}: {', '.join(counted)}",
    )


def _reached(
    records: Sequence[Record], settings: Settings, trials: dict[str, str]
) -> dict[str, np.ndarray]:
    """Steps to the target in each place, (seeds,)."""
    histories = {place: series(records, name, "test_accuracy") for place, name in trials.items()}
    return {p: steps_to_target(*h, settings.target_accuracy) for p, h in histories.items()}


def _accuracies(records: Sequence[Record], settings: Settings) -> str:
    found = []
    for kind in KINDS:
        for name in (trial_name(kind, place) for place in PLACES):
            rate = best_rate(records, name, settings.rates, by_accuracy)
            score = final(records, at_rate(name, rate), "test_accuracy").mean()
            found.append(f"{name}, {rate_in_words(rate, settings.rates)}: {score:.1%}")
    return "; ".join(found)


def soonest(target: float) -> Score:
    """How soon a network arrives, `by_speed`; among rates at which it never does, by accuracy."""

    def score(records: Sequence[Record], trial: str) -> np.ndarray:
        return by_speed(target)(records, trial) + 1e-3 * by_accuracy(records, trial)

    return score


def best_trials(
    records: Sequence[Record], settings: Settings, kind: str, score: Score
) -> dict[str, str]:
    """Of each place the trial at the rate that `score` finds best."""
    return {
        place: best_trial(records, trial_name(kind, place), settings.rates, score)
        for place in PLACES
    }


def _drawn(records: Sequence[Record], settings: Settings, kind: str) -> dict[str, str]:
    """The fastest, but of saturated units, not all of which arrive, the most accurate."""
    saturated = kind == SATURATED
    score = by_accuracy if saturated else soonest(settings.target_accuracy)
    return best_trials(records, settings, kind, score)


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy against steps for each kind of unit; below it the sweep that chose the rates."""
    figure = narrow(9.4)
    axes = figure.subplots(4, 2, height_ratios=(1.35, 1, 1.35, 1))
    for number, kind in enumerate(KINDS):
        row, column = 2 * (number // 2), number % 2
        ax, below = axes[row, column], axes[row + 1, column]
        for place, name in _drawn(records, settings, kind).items():
            steps, accuracy = series(records, name, "test_accuracy")
            label = place if place == NONE else f"{place} activation"
            draw_band(ax, steps, accuracy, COLORS[place], label, STYLES[place])
        _label_accuracy(ax, settings, column)
        entitle(ax, kind, "abcd"[number])
        _draw_sweep(below, records, settings, kind)
        below.set_ylabel("" if column else "by rate")
    legend_above(figure, axes[0, 0], 3)
    return figure


def _label_accuracy(ax: Axes, settings: Settings, column: int) -> None:
    stretch_steps(ax, settings, LogLocator(subs=(1, 3)))
    ax.axhline(settings.target_accuracy, color=GREY, linewidth=0.9, linestyle=":")
    stretch_accuracy(ax, 0.07, 0.993, "" if column else "test accuracy (logit scale)")
    ax.set_xlabel("step")


def _draw_sweep(ax: Axes, records: Sequence[Record], settings: Settings, kind: str) -> None:
    """Markers tell lines that coincide apart; a ring is about the rate that is chosen."""
    for place, chosen in _drawn(records, settings, kind).items():
        names = [at_rate(trial_name(kind, place), rate) for rate in settings.rates]
        means = [by_accuracy(records, name).mean() for name in names]
        color = COLORS[place]
        ax.plot(settings.rates, means, STYLES[place], color=color, marker=MARKERS[place])
        best = names.index(chosen)
        ring(ax, settings.rates[best], means[best], color)
    ax.set_xscale("log")
    ax.set_ylim(0, 1.08)
    set_ticks(ax.xaxis, LogLocator(numticks=6), "{x:g}")
    percent_axis(ax.yaxis)
    ax.set_xlabel("learning rate")
