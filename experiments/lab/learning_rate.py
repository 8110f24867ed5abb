"""Batch norm makes larger learning rates usable (Ioffe & Szegedy 2015, 4.2; Bjorck et al. 2018).

One network, with and without batch norm, is trained at every rate of a grid from 0.001 to 100, from
the same first weights and on the same mini-batches; then all of it again with sigmoids for ReLUs.
Judged are the largest usable rate, the speed at 5 and 30 times the rate that suits the network
without batch norm best, the best accuracy over all rates, and whether sigmoids train.

The paper does this to Inception on ImageNet. The advantage comes with depth, so the network here
has more layers than digits ask for: a multilayer perceptron of six hidden layers, or on CIFAR-10 a
residual network. Weights are drawn by He's rule, which suits the network without batch norm; for
sigmoids they stay the same. The steps from rate to rate are equal factors, and the two that come
nearest to 5 and 30 stand in for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    as_percent,
    paired_interval,
    provided,
    verdict,
    with_interval,
)
from experiments.common.data import NUM_CLASSES, Dataset
from experiments.common.histories import (
    count_steps,
    final_mean,
    log_speed_up,
    mean_steps,
    steps_to_target,
)
from experiments.common.loop import one_by_one
from experiments.common.models import MLP, OfPixels
from experiments.common.norms import batch_norm
from experiments.common.plots import BLUE, GREY, ORANGE, WIDTH_INCHES, data_and_seeds, draw_band
from experiments.common.rates import SGD, at_rate
from experiments.common.records import Record, series
from experiments.common.resnet import ResNet
from experiments.common.settings import Settings
from experiments.common.trials import Trial, training

PLAIN, NORMALISED = NETWORKS = ("without batch norm", "with batch norm")
COLORS, STYLES = {PLAIN: ORANGE, NORMALISED: BLUE}, {PLAIN: "--", NORMALISED: "-"}
RELU, SIGMOID = "ReLU", "sigmoid"
ACTIVATIONS = {RELU: nn.relu, SIGMOID: nn.sigmoid}
LOWEST, HIGHEST = 1e-3, 1e2
CHANCE = 1 / NUM_CLASSES
TARGET_ACCURACY = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.3}
PAPER_SPEED = {
    5: "2.1 against 31.0 million steps to Inception's accuracy (BN-x5, Fig. 3)",
    30: "2.7 against 31.0 million steps to Inception's accuracy (BN-x30, Fig. 3)",
}


@dataclass(frozen=True)
class LearningRateSettings(Settings):
    """Settings of all networks; `learning_rate` has no effect here."""

    rates: int = 15  # of the grid, ends included
    hidden: tuple[int, ...] = (64,) * 6  # of the perceptron
    widths: tuple[int, ...] = (16, 32, 64)  # of the residual network's stages
    blocks: int = 1  # of a stage

    @property
    def grid(self) -> np.ndarray:
        """The learning rates, (rates,)."""
        return np.geomspace(LOWEST, HIGHEST, self.rates)

    @property
    def target_accuracy(self) -> float:
        """The test accuracy for which steps are counted, and from which a rate is usable."""
        return TARGET_ACCURACY[self.data]


PRESETS = {
    "quick": LearningRateSettings(steps=400, eval_every=10),
    "paper": LearningRateSettings(
        data="cifar10", steps=400, batch_size=64, eval_every=20, rates=11
    ),
}


class Sweep(NamedTuple):
    """One kind of network at all rates."""

    accuracy: np.ndarray  # (seeds, rates), mean over the last tenth of training
    steps: np.ndarray  # (seeds, rates) to the target accuracy; inf where it was not reached


def trials(settings: LearningRateSettings, data: Dataset) -> list[Trial]:
    """One trial a rate and network."""
    # Convolutions fill the machine by themselves.
    across_seeds = one_by_one if data.name == "cifar10" else jax.vmap
    made = []
    for activation, function in ACTIVATIONS.items():
        for network in NETWORKS:
            model = make_model(settings, data, function, network == NORMALISED)
            for rate in settings.grid:
                name = trial_name(activation, network, rate)
                options = {"prepare": at_rate(rate), "across_seeds": across_seeds}
                made.append(training(name, model, SGD, data, settings, **options))
    return made


def trial_name(activation: str, network: str, rate: float) -> str:
    """Such as "ReLU with batch norm, rate 0.1"."""
    return f"{activation} {network}, rate {rate:.3g}"


def make_model(
    settings: LearningRateSettings,
    data: Dataset,
    activation: Callable[[jax.Array], jax.Array],
    normalised: bool,
) -> nn.Module:
    """A perceptron, or a residual network for CIFAR-10."""
    if data.name == "cifar10":
        norm = batch_norm() if normalised else None
        network = ResNet(
            norm,
            widths=settings.widths,
            stem_stride=2,
            blocks=settings.blocks,
            activation=activation,
        )
        return OfPixels(network, data.shape)
    he = float(np.sqrt(2 / settings.hidden[0]))
    return MLP(settings.hidden, batch_norm=normalised, activation=activation, init_std=he)


def judge(records: Sequence[Record], settings: LearningRateSettings) -> list[Claim]:
    """The rows of the closing table."""
    plain, normalised = (sweep(records, settings, RELU, network) for network in NETWORKS)
    sigmoid_plain, sigmoid = (sweep(records, settings, SIGMOID, network) for network in NETWORKS)
    return [
        judge_range(plain, normalised, settings),
        *(judge_speed(plain, normalised, settings, factor) for factor in PAPER_SPEED),
        judge_accuracy(plain, normalised, settings),
        judge_sigmoid(sigmoid_plain, sigmoid, settings),
    ]


def sweep(
    records: Sequence[Record], settings: LearningRateSettings, activation: str, network: str
) -> Sweep:
    """Gathers one kind of network over all rates; an accuracy that is NaN counts as 0."""
    accuracy, reached = [], []
    for rate in settings.grid:
        name = trial_name(activation, network, rate)
        steps, history = series(records, name, "test_accuracy")
        accuracy.append(final_mean(steps, np.nan_to_num(history)))
        reached.append(steps_to_target(steps, history, settings.target_accuracy))
    return Sweep(np.stack(accuracy, 1), np.stack(reached, 1))


def best(found: Sweep) -> int:
    """Index of the rate with the highest accuracy, mean over seeds."""
    return int(found.accuracy.mean(0).argmax())


def times(settings: LearningRateSettings, index: int, factor: float) -> int:
    """Index of the rate of the grid nearest to `factor` times that at `index`."""
    ratio = settings.grid[1] / settings.grid[0]
    return index + round(np.log(factor) / np.log(ratio))


def largest_usable(found: Sweep, settings: LearningRateSettings) -> np.ndarray:
    """The largest rate that ends at the target accuracy or above, NaN if none does, (seeds,)."""
    usable = found.accuracy >= settings.target_accuracy
    return np.where(usable.any(1), (usable * settings.grid).max(1), np.nan)


def judge_range(plain: Sweep, normalised: Sweep, settings: LearningRateSettings) -> Claim:
    """Whether batch norm stands larger rates."""
    without, with_norm = (largest_usable(found, settings) for found in (plain, normalised))
    interval = paired_interval(np.log(with_norm / without))
    factor = as_factor(interval)
    target = settings.target_accuracy
    found = f"{with_interval(factor, '#.3g')} times larger"
    if np.isfinite(factor.mean):
        found = (
            f"up to {mean_steps(with_norm):.2g} with, {mean_steps(without):.2g} without; {found}"
        )
    return Claim(
        claim="stands larger learning rates",
        paper="without it, ResNet-110 diverges at rates that suit it with it (Bjorck et al.)",
        found=found,
        verdict=verdict(interval),
        test=f"log ratio of the largest rates that end at {target:.0%} or above. {VERDICT_RULE}",
        numbers={
            "largest_without": without.tolist(),
            "largest_with": with_norm.tolist(),
            "times_larger": factor.mean,
            "interval": [factor.low, factor.high],
        },
    )


def judge_speed(
    plain: Sweep, normalised: Sweep, settings: LearningRateSettings, factor: int
) -> Claim:
    """Whether batch norm at `factor` times the plain network's best rate needs fewer steps."""
    start = best(plain)
    index = min(times(settings, start, factor), settings.rates - 1)
    rate, base = settings.grid[index], settings.grid[start]
    without, with_norm = plain.steps[:, start], normalised.steps[:, index]
    interval = paired_interval(log_speed_up(without, with_norm, settings.steps))
    fewer = as_factor(interval)
    points = 100 * (normalised.accuracy[:, index] - plain.accuracy[:, start]).mean()
    target, last = settings.target_accuracy, settings.steps
    return Claim(
        claim=f"faster at {factor} times the rate that is best without",
        paper=PAPER_SPEED[factor],
        found=(
            f"at {rate:.2g}, {rate / base:.1f} times {base:.2g}: {count_steps(with_norm, last)} "
            f"against {count_steps(without, last)} steps to {target:.0%}, "
            f"{with_interval(fewer, '#.3g')} times fewer; {points:+.1f} points in the end"
        ),
        verdict=verdict(interval),
        test=(
            f"log ratio of steps to {target:.0%} test accuracy, at most the {settings.steps:,} "
            f"trained: without at its best rate, with at the larger one. {VERDICT_RULE}"
        ),
        numbers={
            "rate_without": float(base),
            "rate_with": float(rate),
            "steps_without": without.tolist(),  # null in JSON: never reached
            "steps_with": with_norm.tolist(),
            "times_fewer": fewer.mean,
            "interval": [fewer.low, fewer.high],
        },
    )


def judge_accuracy(plain: Sweep, normalised: Sweep, settings: LearningRateSettings) -> Claim:
    """Whether the best rate with batch norm ends better than the best without."""
    without, with_norm = (found.accuracy[:, best(found)] for found in (plain, normalised))
    interval = paired_interval(with_norm - without)
    rates = [float(settings.grid[best(found)]) for found in (plain, normalised)]
    return Claim(
        claim="ends at a higher accuracy, each at its best rate",
        paper="74.8 % (BN-x30) against 72.2 % (Inception), Fig. 3",
        found=(
            f"{with_norm.mean():.1%} with at {rates[1]:.2g}, {without.mean():.1%} without at "
            f"{rates[0]:.2g}; {with_interval(as_percent(interval), '+.2f')} points"
        ),
        verdict=verdict(interval),
        test=(
            "difference of test accuracy over the last tenth of training, each at the rate with "
            f"the highest mean of it. {VERDICT_RULE}"
        ),
        numbers={
            "accuracy_without": without.tolist(),
            "accuracy_with": with_norm.tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def judge_sigmoid(plain: Sweep, normalised: Sweep, settings: LearningRateSettings) -> Claim:
    """Whether sigmoids train with batch norm, and do not without."""
    without, with_norm = (found.accuracy[:, best(found)] for found in (plain, normalised))
    trains = paired_interval(with_norm - settings.target_accuracy)
    stuck = paired_interval(2 * CHANCE - without)
    return Claim(
        claim="sigmoids train, and at no rate without batch norm",
        paper="69.8 % (BN-x5-Sigmoid); Inception with sigmoids stays at chance (4.2.2)",
        found=f"best over all rates: {with_norm.mean():.1%} with, {without.mean():.1%} without",
        verdict=provided(verdict(trains), stuck),
        test=(
            f"with batch norm, best accuracy minus {settings.target_accuracy:.0%}. {VERDICT_RULE}. "
            f"In part at most, unless without it the best is below twice chance, {2 * CHANCE:.0%}, "
            "by the same rule"
        ),
        numbers={"accuracy_without": without.tolist(), "accuracy_with": with_norm.tolist()},
    )


def draw(records: Sequence[Record], settings: LearningRateSettings) -> Figure:
    """Accuracy above and steps to the target below, against the rate; a column an activation."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, activation in enumerate(ACTIVATIONS):
        for network in NETWORKS:
            found = sweep(records, settings, activation, network)
            style = (COLORS[network], network, STYLES[network])
            reached = np.where(np.isfinite(found.steps), found.steps, np.nan)
            draw_band(axes[0, column], settings.grid, found.accuracy, *style)
            draw_band(axes[1, column], settings.grid, reached, *style)
        _title(axes[0, column], "ab"[column], f"{activation}: accuracy")
        _title(axes[1, column], "cd"[column], f"{activation}: speed")
        axes[1, column].set_xlabel("learning rate (log scale)")
    _mark_factors(axes[0, 0], sweep(records, settings, RELU, PLAIN), settings)
    _label(axes, settings)
    figure.suptitle("Batch norm makes larger learning rates usable", fontsize=13, fontweight="bold")
    note = f"{data_and_seeds(settings)}; c, d: where every seed reaches the target"
    figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def _title(ax: Axes, letter: str, text: str) -> None:
    ax.set_title(f"{letter}   {text}", loc="left", fontweight="bold")


def _mark_factors(ax: Axes, plain: Sweep, settings: LearningRateSettings) -> None:
    """Where 1, 5 and 30 times the best rate without batch norm are."""
    for factor in (1, *PAPER_SPEED):
        index = times(settings, best(plain), factor)
        if index < settings.rates:
            rate = settings.grid[index]
            ax.axvline(rate, color=GREY, linewidth=0.9, linestyle=":")
            label = "best without " if factor == 1 else f" ×{factor}"
            side = "right" if factor == 1 else "left"
            ax.text(rate, 0.02, label, color=GREY, ha=side, fontsize=9)


def _label(axes: np.ndarray, settings: LearningRateSettings) -> None:
    accuracy, speed = axes[:, 0]
    accuracy.set_ylabel(f"test accuracy after {settings.steps:,} steps")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy.set_ylim(0, 1)
    speed.set_ylabel(f"steps to {settings.target_accuracy:.0%} (log scale)")
    speed.set_xscale("log")
    speed.set_yscale("log")
    speed.set_ylim(settings.eval_every / 1.3, settings.steps * 1.3)
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_minor_locator(NullLocator())
    speed.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[0, 1].legend(loc="center", bbox_to_anchor=(0.45, 0.45), framealpha=1)
