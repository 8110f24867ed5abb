"""Batch norm makes larger learning rates usable (Ioffe & Szegedy 2015, 4.2; Bjorck et al. 2018).

One network, with and without batch norm, is trained at every rate of a grid from 0.001 to 100, from
the same first weights and on the same mini-batches; then at every other rate with sigmoids for
ReLUs. Rates called best are so on images held out, and test images judge.

The paper does this to Inception on ImageNet. There a rate five times larger sent the network
without batch norm to machine infinity. Its fastest networks, BN-x5 and BN-x30, have larger rates
and more than that: no dropout and no local response norm, a weaker L2 penalty, and a rate that
falls sooner. What batch norm alone does is BN-Baseline, and here nothing but the rate changes.

The advantage comes with depth, so the network here has more layers than digits ask for: a
perceptron of six hidden layers, or on CIFAR-10 a residual network. Weights are drawn by He's rule,
which suits the network without batch norm; for sigmoids they stay the same. Rates of the grid are
equal factors apart, and those nearest to 5 and 30 times the best stand in for them. The largest
usable rate lies between two of the grid, so for how many times larger it is with batch norm a bound
is given: the largest that is usable with it over the smallest above what is usable without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.common.data import NUM_CLASSES, Dataset, hold_out
from experiments.common.histories import count_steps, final, log_speed_up, steps_to_target
from experiments.common.loop import one_by_one
from experiments.common.models import ACTIVATIONS, MLP, OfPixels
from experiments.common.norms import batch_norm
from experiments.common.plots import (
    COLORS,
    GREY,
    STYLES,
    draw_band,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.common.resnet import ResNet
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, TargetSettings
from experiments.common.sweep import at_rate, best_rate, rate_in_words, trained_at
from experiments.common.trials import Trial
from experiments.common.verdicts import TIMES, Row, Test, claim

RELU, SIGMOID = "ReLU", "sigmoid"
LOWEST, HIGHEST = 1e-3, 1e2
CHANCE = 1 / NUM_CLASSES
FIG = "Ioffe & Szegedy 2015, Fig. 3"
SAID = {  # by the factor of the rate
    1: "batch norm alone, 13.3 against 31.0 million steps to Inception's accuracy (BN-Baseline)",
    5: "2.1 against 31.0 million steps (BN-x5, which changes more than the rate)",
    30: "2.7 against 31.0 million steps (BN-x30, which changes more than the rate)",
}


@dataclass(frozen=True)
class RateSettings(TargetSettings):
    """Settings of all networks, but for the learning rate."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    # On CIFAR-10 twice chance: 400 steps take few networks further without batch norm.
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.2}
    rates: int = 15  # of the grid, ends included
    hidden: tuple[int, ...] = (64,) * 6  # of the perceptron
    widths: tuple[int, ...] = (16, 32, 64)  # of the residual network's stages
    blocks: int = 1  # of a stage

    def grid(self, activation: str = RELU) -> tuple[float, ...]:
        """The learning rates; of sigmoids every other one."""
        rates = (float(f"{rate:.3g}") for rate in np.geomspace(LOWEST, HIGHEST, self.rates))
        return tuple(rates)[:: 1 if activation == RELU else 2]


PRESETS = {
    "quick": RateSettings(steps=300, eval_every=10),
    "long": RateSettings(data="cifar10", steps=400, batch_size=64, eval_every=20, rates=11),
}


class Sweep(NamedTuple):
    """One kind of network at all rates."""

    grid: tuple[float, ...]
    best: float  # rate, by the images held out
    accuracy: np.ndarray  # on test images over the last tenth of training, (seeds, rates)
    steps: np.ndarray  # to the target accuracy; inf where it was not reached, (seeds, rates)

    @property
    def index(self) -> int:
        """Of the best rate."""
        return self.grid.index(self.best)


def trials(settings: RateSettings, data: Dataset) -> list[Trial]:
    """One trial a network and rate."""
    # Convolutions fill the machine by themselves.
    across_seeds = one_by_one if data.name == "cifar10" else jax.vmap
    data = hold_out(data)
    made = []
    for activation in (RELU, SIGMOID):
        for network in NETWORKS:
            model = make_model(settings, data, activation, network == NORMALISED)
            grid, name = settings.grid(activation), _name(activation, network)
            made += trained_at(name, model, grid, data, settings, across_seeds=across_seeds)
    return made


def make_model(
    settings: RateSettings, data: Dataset, activation: str, normalised: bool
) -> nn.Module:
    """A perceptron, or a residual network for CIFAR-10."""
    function = ACTIVATIONS[activation]
    if data.name == "cifar10":
        norm, sizes = batch_norm() if normalised else None, (settings.widths, 2, settings.blocks)
        widths, stem_stride, blocks = sizes
        network = ResNet(
            norm, widths=widths, stem_stride=stem_stride, blocks=blocks, activation=function
        )
        return OfPixels(network, data.shape)
    he = float(np.sqrt(2 / settings.hidden[0]))
    return MLP(settings.hidden, batch_norm=normalised, activation=function, init_std=he)


def _name(activation: str, network: str) -> str:
    return f"{activation} {network}"


def sweep(
    records: Sequence[Record], settings: RateSettings, activation: str, network: str
) -> Sweep:
    """Gathers one kind of network over all rates; an accuracy that is NaN counts as 0."""
    grid, name = settings.grid(activation), _name(activation, network)
    accuracy, reached = [], []
    for rate in grid:
        trial = at_rate(name, rate)
        accuracy.append(np.nan_to_num(final(records, trial, "test_accuracy")))
        history = series(records, trial, "test_accuracy")
        reached.append(steps_to_target(*history, settings.target_accuracy))
    best = best_rate(records, name, grid)
    return Sweep(grid, best, np.stack(accuracy, 1), np.stack(reached, 1))


def times(found: Sweep, factor: float) -> int:
    """Index of the rate of the grid nearest to `factor` times the best; the last at most."""
    ratio = found.grid[1] / found.grid[0]
    return min(found.index + round(np.log(factor) / np.log(ratio)), len(found.grid) - 1)


def largest_usable(found: Sweep, target: float) -> np.ndarray:
    """Index of the largest rate that ends at `target` or above, -1 if none does, (seeds,)."""
    usable = found.accuracy >= target
    return np.where(usable.any(1), (usable * np.arange(len(found.grid))).max(1), -1)


def judge(records: Sequence[Record], settings: RateSettings) -> list[Row]:
    """The rows of the closing table."""
    plain, normalised = (sweep(records, settings, RELU, network) for network in NETWORKS)
    return [
        _judge_range(plain, normalised, settings),
        _judge_five(plain, normalised, settings),
        *(_judge_speed(plain, normalised, settings, factor) for factor in SAID),
        _judge_accuracy(plain, normalised),
        _judge_sigmoid(records, settings),
    ]


def _judge_range(plain: Sweep, normalised: Sweep, settings: RateSettings) -> Row:
    target, grid = settings.target_accuracy, np.array(plain.grid)
    without, with_norm = (largest_usable(found, target) for found in (plain, normalised))
    too_large = grid[np.minimum(without + 1, len(grid) - 1)]
    usable = np.where(with_norm < 0, np.nan, grid[with_norm])
    return claim(
        "larger rates",
        '"Batch Normalization enables higher learning rates"; it "primarily enables training with '
        'larger learning rates"',
        "Ioffe & Szegedy 2015, section 3.3; Bjorck et al. 2018, abstract",
        Test(
            f"log of the largest rate that ends at {target:.0%} or above with batch norm / the "
            "next above the largest without",
            np.log(usable / too_large),
            TIMES,
            capped=True,
        ),
        found=f"usable up to {np.median(usable):g} with, not from {np.median(too_large):g} on "
        "without (medians)",
    )


def _judge_five(plain: Sweep, normalised: Sweep, settings: RateSettings) -> Row:
    target, index = settings.target_accuracy, times(plain, 5)
    rate = plain.grid[index]
    without, with_norm = (found.accuracy[:, index] for found in (plain, normalised))
    return claim(
        "×5 breaks it without",
        'a rate five times larger, without batch norm, "caused the model parameters to reach '
        'machine infinity"',
        "Ioffe & Szegedy 2015, section 4.2.2",
        Test(f"{target:.0%} less test accuracy without batch norm", target - without),
        found=f"at {rate:g}, {rate / plain.best:.1f} times the best without: {without.mean():.1%} "
        f"without, {with_norm.mean():.1%} with; below {target:.0%} by",
    )


def _judge_speed(plain: Sweep, normalised: Sweep, settings: RateSettings, factor: int) -> Row:
    index = times(plain, factor)
    rate, last = plain.grid[index], settings.steps
    without, with_norm = plain.steps[:, plain.index], normalised.steps[:, index]
    target = settings.target_accuracy
    at = f"{factor} times the" if factor > 1 else "the same"
    return claim(
        f"faster, rate ×{factor}" if factor > 1 else "faster, same rate",
        SAID[factor],
        FIG,
        Test(
            f"log of steps to {target:.0%} test accuracy, without at its best rate / with at {at} "
            "rate",
            log_speed_up(without, with_norm, last),
            TIMES,
            capped=bool(np.isinf(without).any()),
        ),
        found=f"at {rate:g}, {rate / plain.best:.1f} times {plain.best:g}: "
        f"{count_steps(with_norm, last)} against {count_steps(without, last)} steps",
    )


def _judge_accuracy(plain: Sweep, normalised: Sweep) -> Row:
    without, with_norm = (found.accuracy[:, found.index] for found in (plain, normalised))
    return claim(
        "ends more accurate",
        "72.7 % (BN-Baseline) and 74.8 % (BN-x30) against 72.2 % (Inception)",
        FIG,
        Test(
            "test accuracy over the last tenth of training, with - without batch norm, each at "
            "its best rate",
            with_norm - without,
        ),
        found=f"{with_norm.mean():.1%} with at {rate_in_words(normalised.best, normalised.grid)}, "
        f"{without.mean():.1%} without at {rate_in_words(plain.best, plain.grid)}",
    )


def _judge_sigmoid(records: Sequence[Record], settings: RateSettings) -> Row:
    found = [sweep(records, settings, SIGMOID, network) for network in NETWORKS]
    without, with_norm = (each.accuracy[:, each.index] for each in found)
    target = settings.target_accuracy
    return claim(
        "sigmoids train",
        'with sigmoids 69.8 % (BN-x5-Sigmoid); "without Batch Normalization, Inception with '
        'sigmoid never achieves better than 1/1000 accuracy"',
        "Ioffe & Szegedy 2015, section 4.2.2",
        Test(f"test accuracy with batch norm less {target:.0%}", with_norm - target),
        Test(f"twice chance less test accuracy without, {RELU}s aside", 2 * CHANCE - without),
        found=f"at the best rate {with_norm.mean():.1%} with, {without.mean():.1%} without; beyond "
        f"{target:.0%} and below {2 * CHANCE:.0%} by",
    )


def draw(records: Sequence[Record], settings: RateSettings) -> Figure:
    """Accuracy above and steps to the target below, against the rate; a column an activation."""
    figure = narrow(5.8)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, activation in enumerate((RELU, SIGMOID)):
        accuracy, speed = axes[:, column]
        for network in NETWORKS:
            found = sweep(records, settings, activation, network)
            grid, style = np.array(found.grid), (COLORS[network], network, STYLES[network])
            reached = np.where(np.isfinite(found.steps), found.steps, np.nan)
            draw_band(accuracy, grid, found.accuracy, *style)
            draw_band(speed, grid, reached, *style)
        entitle(accuracy, f"{activation}: accuracy", "ab"[column])
        entitle(speed, f"{activation}: speed", "cd"[column])
        speed.set_xlabel("learning rate (log scale)")
    _mark_factors(axes[0, 0], sweep(records, settings, RELU, PLAIN))
    _label(axes, settings)
    return figure


def _mark_factors(ax: Axes, plain: Sweep) -> None:
    """Where the rates of the grid are that are closest to 1, 5 and 30 times the best without."""
    for factor in SAID:
        rate = plain.grid[times(plain, factor)]
        ax.axvline(rate, color=GREY, linewidth=0.9, linestyle=":")
        label = "best without " if factor == 1 else f" ≈×{factor}"
        side = "right" if factor == 1 else "left"
        ax.text(rate, 0.02, label, color=GREY, ha=side, fontsize=8.5)


def _label(axes: np.ndarray, settings: RateSettings) -> None:
    accuracy, speed = axes[:, 0]
    accuracy.set_ylabel(f"test accuracy after {settings.steps:,} steps")
    percent_axis(accuracy.yaxis)
    accuracy.set_ylim(0, min(1.03, accuracy.dataLim.y1 * 1.1))  # on CIFAR-10 far below 1
    speed.set_ylabel(f"steps to {settings.target_accuracy:.0%} (log scale)")
    speed.set_xscale("log")
    speed.set_yscale("log")
    speed.set_ylim(settings.eval_every / 1.3, settings.steps * 1.3)
    set_ticks(speed.xaxis, LogLocator(numticks=4), "{x:g}")
    set_ticks(speed.yaxis, LogLocator(subs=(1, 2, 5)))
    axes[1, 1].legend(loc="lower left", fontsize=9, framealpha=1)
