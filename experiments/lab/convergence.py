"""Batch norm trains faster (Ioffe & Szegedy 2015, section 4.1, Fig. 1).

Two networks of three hidden layers of 100 sigmoid units, one with batch norm before each sigmoid,
are trained on black-and-white digits by plain gradient descent, from the same weights, on the same
mini-batches, at every rate of a grid. Each is then seen at the rate that suits it best: that with
the fewest steps to the target accuracy on images held out. With one rate for both, the outcome
hangs on that rate: on MNIST batch norm is at 90 % 5.6 times sooner at 0.1, 1.6 times at 1.

The paper does not name the spread of its "small random Gaussian" weights. Here it is 0.1, as suits
a layer of 100 inputs. A smaller one starves the network without batch norm alone: with 0.01, a run
on MNIST had it at 85 % after 10,000 steps, where it has almost 97 % with 0.1.

How far the input of a sigmoid wanders is asked of all units of the last hidden layer; of a single
one, as the paper draws, either network can look the steadier::

    drift    = mean over units and over the 15th, 50th and 85th percentile of the input (over the
               test set) of that percentile's standard deviation over training, its first tenth
               left out
    relative = drift / mean over units of the distance between the 15th and 85th percentile
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from experiments.common.data import Dataset, binarize, hold_out
from experiments.common.histories import count_steps, final, last, log_speed_up, steps_to_target
from experiments.common.metrics import evaluate_with_inputs
from experiments.common.models import MLP
from experiments.common.plots import (
    COLORS,
    GREY,
    OPAQUE,
    STYLES,
    draw_band,
    draw_dots,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
    stretch_accuracy,
    stretch_steps,
)
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, TargetSettings
from experiments.common.sweep import (
    at_rate,
    best_rate,
    by_speed,
    draw_sweep,
    rate_in_words,
    trained_at,
)
from experiments.common.trials import Trial
from experiments.common.verdicts import TIMES, Row, Test, claim

FIG = "Ioffe & Szegedy 2015, section 4.1, Fig. 1"
ACCURACY_TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.99)


@dataclass(frozen=True)
class Settings(TargetSettings):
    """Settings of both networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.97, "cifar10": 0.3}
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    init_std: float = 0.1  # standard deviation of the first weights
    momentum: float = 0.9  # weight of the old value in batch norm's running averages


PRESETS = {
    "quick": Settings(steps=1000, eval_every=20),
    "long": Settings(data="mnist", steps=10_000, eval_every=100),
    "paper": Settings(data="mnist", steps=50_000, eval_every=250),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network and rate."""
    data = hold_out(binarize(data))  # the paper's input is a binary image
    made = []
    for network in NETWORKS:
        model = MLP(
            batch_norm=network == NORMALISED,
            init_std=settings.init_std,
            momentum=settings.momentum,
        )
        options = {"evaluate": evaluate_with_inputs, "summarise": drift}
        made += trained_at(network, model, settings.rates, data, settings, **options)
    return made


def drift(steps: np.ndarray, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of percentiles (evaluations, seeds, 3, units), as the module's docstring has it."""
    settled = seen["percentiles"][steps >= 0.1 * steps[-1]]
    wandering = settled.std(0).mean((1, 2))
    width = (settled[:, :, -1] - settled[:, :, 0]).mean((0, 2))
    with np.errstate(invalid="ignore", divide="ignore"):  # a network that diverged has no width
        return {"drift": wandering, "relative_drift": wandering / width}


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    target = settings.target_accuracy
    rates = _best_rates(records, settings)
    names = {network: at_rate(network, rate) for network, rate in rates.items()}
    chosen = ", ".join(f"{rate_in_words(r, settings.rates)} {n}" for n, r in rates.items())

    histories = {n: series(records, name, "test_accuracy") for n, name in names.items()}
    reached = {n: steps_to_target(*history, target) for n, history in histories.items()}
    end = float(histories[PLAIN][0][-1])
    faster = Test(
        f"log of steps to {target:.0%} test accuracy, without / with batch norm",
        log_speed_up(reached[PLAIN], reached[NORMALISED], end),
        TIMES,
        capped=bool(np.isinf(reached[PLAIN]).any()),
    )
    accuracy = {n: final(records, names[n], "test_accuracy") for n in names}
    better = Test(
        "test accuracy over the last tenth of training, with - without batch norm",
        accuracy[NORMALISED] - accuracy[PLAIN],
    )
    return [
        claim(
            "trains faster",
            '"Batch Normalization helps the network train faster"',
            f"{FIG}a",
            faster,
            found=f"steps to {target:.0%}: {count_steps(reached[NORMALISED], end)} with, "
            f"{count_steps(reached[PLAIN], end)} without ({chosen})",
        ),
        claim(
            "ends more accurate",
            '"the batch-normalized network enjoys the higher test accuracy"',
            f"{FIG}a",
            better,
            found=f"{accuracy[NORMALISED].mean():.2%} with, {accuracy[PLAIN].mean():.2%} without",
        ),
        _steadier(
            "steadier inputs",
            '"distributions in the batch-normalized network are much more stable as training '
            'progresses"',
            records,
            names,
            "drift",
        ),
        _steadier(
            "for their spread",
            "the same, relative to how far inputs are spread",
            records,
            names,
            "relative_drift",
        ),
    ]


def _steadier(
    short: str, said: str, records: Sequence[Record], names: dict[str, str], metric: str
) -> Row:
    moved = {n: last(records, name, metric) for n, name in names.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        less = Test(
            f"log of {metric.replace('_', ' ')}, without / with batch norm",
            np.log(moved[PLAIN]) - np.log(moved[NORMALISED]),
            TIMES,
        )
    means = (f"{moved[n].mean():.2g} {n.split()[0]}" for n in (NORMALISED, PLAIN))
    found = f"percentiles drift by {', '.join(means)}"
    return claim(short, said, f"{FIG}b, c", less, found=found)


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy at the best rates, the sweeps that chose them, and the drift of every seed."""
    figure = narrow(6.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
    chosen = _best_rates(records, settings)
    names = {n: at_rate(n, rate) for n, rate in chosen.items()}
    _draw_accuracy(figure.add_subplot(grid[0, :]), records, names, settings)
    sweeps, drifts = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    for network in NETWORKS:
        rates, color = settings.rates, COLORS[network]
        draw_sweep(sweeps, records, network, rates, color, STYLES[network], chosen[network])
    percent_axis(sweeps.yaxis)
    entitle(sweeps, "accuracy by rate", "b")
    _draw_drift(drifts, records, names)
    return figure


def _best_rates(records: Sequence[Record], settings: Settings) -> dict[str, float]:
    score = by_speed(settings.target_accuracy)
    return {n: best_rate(records, n, settings.rates, score) for n in NETWORKS}


def _draw_accuracy(
    ax: Axes, records: Sequence[Record], names: dict[str, str], settings: Settings
) -> None:
    for network, name in names.items():
        steps, accuracy = series(records, name, "test_accuracy")
        label = name.replace(",", ":")
        draw_band(ax, steps, accuracy, COLORS[network], label, STYLES[network])
    ax.axhline(settings.target_accuracy, color=GREY, linewidth=0.9, linestyle=":")
    stretch_steps(ax, settings, LogLocator(subs=(1, 2, 5)))
    stretch_accuracy(ax, 0.07, 0.998, ticks=ACCURACY_TICKS)  # the legend goes above
    ax.set_xlabel("training step (log scale)")
    ax.legend(loc="upper left", **OPAQUE)
    entitle(ax, "each network at its fastest rate", "a")


def _draw_drift(ax: Axes, records: Sequence[Record], names: dict[str, str]) -> None:
    """A dot a seed, of both ways to measure."""
    for place, metric in enumerate(("drift", "relative_drift")):
        for beside, (network, name) in zip((-0.2, 0.2), names.items(), strict=True):
            values = last(records, name, metric)
            draw_dots(ax, place + beside, values, COLORS[network], width=0.3)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, FixedLocator((0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)), "{x:g}")
    ax.set_xticks((0, 1), ("absolute", "relative to\nthe spread"))
    ax.set_ylabel("drift (log scale)")
    entitle(ax, "sigmoid inputs drift", "c")
