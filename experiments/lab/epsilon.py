"""Epsilon keeps batch norm from dividing by zero (Raschka).

A layer divides by sqrt(variance + epsilon). Of a feature with standard deviation s it makes

    output      s / sqrt(s^2 + epsilon)
    gradient    1 / sqrt(s^2 + epsilon)     of the input, for one of the output

so features well above sqrt(epsilon) are normalised, those well below are passed on small, and a
constant one is 0 / 0 without epsilon. The layer is measured against these formulas.

Then networks are trained: batch norm of the pixels, of which some are always black and others are
in almost every mini-batch, a hidden layer of ReLUs, and a linear layer, with several epsilons, each
at its own best rate. A network that meets 0 / 0 never recovers: its output is NaN, and counts as
wrong. What epsilon is best is not claimed by anybody and stands beside it.

The lecture normalises the net inputs of hidden layers. They are sums over many pixels and hardly
ever constant: a network with batch norm there, and there alone, is trained with and without epsilon
as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, LogLocator

import bnjax
from bnjax.linen import BatchNorm
from experiments.common.data import NUM_CLASSES, Dataset, hold_out
from experiments.common.histories import final, last
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    draw_dots,
    entitle,
    log_axis,
    narrow,
    set_ticks,
    stretch_accuracy,
)
from experiments.common.records import Record, series
from experiments.common.settings import Settings as CommonSettings
from experiments.common.sweep import at_rate, best_rate, by_accuracy, trained_at
from experiments.common.trials import Trial, once
from experiments.common.verdicts import Row, Test, claim, control, identity

DEFAULT = 1e-5
EPSILONS = (0.0, 1e-12, DEFAULT, 1e-3, 0.1, 10.0)
PIXELS, HIDDEN = "of the pixels", "of the hidden layer"
SPREADS = tuple(np.geomspace(1e-7, 1, 15).tolist())  # standard deviations of a feature
ACCURACY_TICKS = (0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.97, 0.99)

COLORS = dict(zip(EPSILONS, (ORANGE, PINK, BLUE, SKY, GREEN, GREY), strict=True))
STYLES = dict(zip(EPSILONS, ("--", ":", "-", "-.", (0, (6, 1)), (0, (1, 1))), strict=True))
MARKERS = dict(zip(EPSILONS, "sD^ovP", strict=True))


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of all networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    hidden: int = 64
    momentum: float = 0.9


PRESETS = {
    "quick": Settings(steps=400, eval_every=20),
    "long": Settings(data="mnist", steps=3000, eval_every=100),
}


class Net(nn.Module):
    """A hidden layer of ReLUs, with batch norm of the pixels or before the ReLUs.

    Attributes:
      epsilon: of batch norm.
      place: PIXELS or HIDDEN.
      hidden: units.
      momentum: weight of the old value in the running averages.
    """

    epsilon: float
    place: str
    hidden: int
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps pixels (batch, pixels) to logits (batch, classes)."""
        norm = BatchNorm(not train, momentum=self.momentum, epsilon=self.epsilon)
        x = nn.Dense(self.hidden)(norm(x) if self.place == PIXELS else x)
        x = nn.relu(x if self.place == PIXELS else norm(x))
        return nn.Dense(NUM_CLASSES)(x)


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """The layer by itself, and one trial a network and rate."""
    held = hold_out(data)
    made = [once(layer_name(e), partial(measure, e, settings)) for e in EPSILONS]
    made.append(once(PIXELS, partial(_count_constant, held, settings)))
    for place, epsilons in ((PIXELS, EPSILONS), (HIDDEN, (0.0, DEFAULT))):
        for epsilon in epsilons:
            model = Net(epsilon, place, settings.hidden, settings.momentum)
            name = network_name(place, epsilon)
            made += trained_at(name, model, settings.rates, held, settings)
    return made


def layer_name(epsilon: float) -> str:
    """Of the measurement of one layer."""
    return f"layer, epsilon {epsilon:g}"


def network_name(place: str, epsilon: float) -> str:
    """Of a network at every rate."""
    return f"batch norm {place}, epsilon {epsilon:g}"


def measure(epsilon: float, settings: Settings) -> Iterator[Record]:
    """What a layer makes of features of every spread, and last of a constant one."""
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        spreads = np.array([*SPREADS, 0.0])
        x = rng.standard_normal((settings.batch_size, len(spreads)))
        x = (spreads * (x - x.mean(0)) / x.std(0)).astype(np.float32)
        sent = rng.standard_normal(x.shape).astype(np.float32)
        y, back = (np.asarray(v, np.float64) for v in _through(x, sent, epsilon))
        output = y.std(0)
        gradient = np.linalg.norm(back, axis=0) / np.linalg.norm(sent, axis=0)
        for i, spread in enumerate(spreads):
            found = {"output": float(output[i]), "gradient": float(gradient[i])}
            yield {"seed": seed, "step": i, "spread": float(spread)} | found


def _through(x: np.ndarray, sent: np.ndarray, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The output of a layer, and the gradient for `sent`."""

    def layer(x: jax.Array) -> jax.Array:
        stats = bnjax.init_batch_stats(x.shape[1])
        return bnjax.batch_norm(x, None, None, stats, train=True, epsilon=epsilon)[0]

    y, pull = jax.vjp(layer, jnp.asarray(x))
    return y, pull(jnp.asarray(sent))[0]


def _count_constant(data: Dataset, settings: Settings) -> Iterator[Record]:
    """Pixels that are the same in all training images, and in a mini-batch of every seed."""
    images = data.train.images
    always = int((np.ptp(images, axis=0) == 0).sum())
    for seed in range(settings.seeds):
        rows = np.random.default_rng(seed).choice(len(images), settings.batch_size, replace=False)
        batch = int((np.ptp(images[rows], axis=0) == 0).sum())
        found = {"always": always, "in_batch": batch, "pixels": images.shape[1]}
        yield {"seed": seed, "step": 0} | found


# Judgement


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    accuracy = {e: _at_best(records, PIXELS, e, settings) for e in EPSILONS}
    hidden = {e: _at_best(records, HIDDEN, e, settings) for e in (0.0, DEFAULT)}
    always, in_batch, pixels = (
        series(records, PIXELS, name)[1].mean() for name in ("always", "in_batch", "pixels")
    )
    largest = max(_off_formula(records, e) for e in EPSILONS)
    constant = {e: last(records, layer_name(e), "output") for e in EPSILONS}
    zeros = [e for e in EPSILONS if e > 0 and (constant[e] == 0).all()]
    return [
        claim(
            "against division by 0",
            "epsilon, against division by zero",
            "Raschka",
            Test(
                f"test accuracy, epsilon {DEFAULT:g} - epsilon 0, batch norm of the pixels",
                accuracy[DEFAULT] - accuracy[0.0],
            ),
            found=f"{accuracy[DEFAULT].mean():.1%} with, {accuracy[0.0].mean():.1%} without, where "
            f"{always:.0f} of {pixels:.0f} pixels are constant and {in_batch:.0f} in a mini-batch",
        ),
        control(
            "which epsilon",
            "test accuracy with batch norm of the pixels, each epsilon at its own best rate",
            ", ".join(
                f"{accuracy[e].mean():.1%} with {e:g} at rate "
                f"{_best(records, PIXELS, e, settings):g}"
                for e in EPSILONS
            ),
        ),
        control(
            "in the hidden layer",
            "test accuracy with batch norm of net inputs, as in the lecture, each at its best rate",
            f"{hidden[DEFAULT].mean():.2%} with epsilon {DEFAULT:g}, {hidden[0.0].mean():.2%} "
            "without epsilon",
        ),
        identity(
            "s / sqrt(s^2 + epsilon)",
            "the spread of the output of a layer",
            f"off by {largest:.1e} of it at most, for s from {SPREADS[0]:g} to {SPREADS[-1]:g}",
        ),
        identity(
            "a constant feature",
            "comes out as 0, without epsilon as NaN",
            f"0 with epsilon {', '.join(f'{e:g}' for e in zeros)}; without "
            f"{'NaN' if np.isnan(constant[0.0]).all() else 'a number'}",
        ),
    ]


def _best(records: Sequence[Record], place: str, epsilon: float, settings: Settings) -> float:
    return best_rate(records, network_name(place, epsilon), settings.rates)


def _at_best(
    records: Sequence[Record], place: str, epsilon: float, settings: Settings
) -> np.ndarray:
    """Test accuracy (seeds,) at the best rate."""
    name = at_rate(network_name(place, epsilon), _best(records, place, epsilon, settings))
    return final(records, name, "test_accuracy")


def _off_formula(records: Sequence[Record], epsilon: float) -> float:
    """The largest relative error of the output's spread, of features that are not constant."""
    spread, output = (
        series(records, layer_name(epsilon), n)[1][:, :-1] for n in ("spread", "output")
    )
    wanted = spread / np.sqrt(spread**2 + epsilon)
    return float(np.abs(output / wanted - 1).max())


# Drawing


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """The layer above, the trained networks below."""
    figure = narrow(7.2)
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 0.15))
    axes = np.array([[figure.add_subplot(grid[i, j]) for j in (0, 1)] for i in (0, 1)])
    for ax, metric in zip(axes[0], ("output", "gradient"), strict=True):
        _draw_layer(ax, records, metric)
    axes[0, 0].set_ylabel("spread of the output")
    axes[0, 1].set_ylabel("gradient, in / out")
    entitle(axes[0, 0], "small ones stay small", "a")
    entitle(axes[0, 1], "bounded gradients", "b")
    _draw_accuracy(axes[1, 0], records, settings)
    _draw_sweeps(axes[1, 1], records, settings)
    below = figure.add_subplot(grid[2, :])
    below.axis("off")
    entries = axes[1, 1].get_legend_handles_labels()
    below.legend(*entries, title="epsilon", ncols=3, loc="center", frameon=False)
    return figure


def _draw_layer(ax: Axes, records: Sequence[Record], metric: str) -> None:
    """The mean over seeds against the spread of the input."""
    for e in EPSILONS:
        values = series(records, layer_name(e), metric)[1][:, :-1].mean(0)
        ax.plot(SPREADS, values, color=COLORS[e], linestyle=STYLES[e], linewidth=1.8)
    ax.set(xscale="log", yscale="log", xlabel="spread of the input")
    set_ticks(ax.xaxis, LogLocator(numticks=4), LogFormatterMathtext())


def _draw_accuracy(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """A dot a seed, at the best rate of each epsilon."""
    for place, e in enumerate(EPSILONS):
        accuracy = _at_best(records, PIXELS, e, settings)
        draw_dots(ax, place, accuracy, COLORS[e], marker=MARKERS[e])
    # Every other label is a line lower, or they would touch.
    ticks = ["\n" * (place % 2) + _tick(e) for place, e in enumerate(EPSILONS)]
    ax.set_xticks(range(len(EPSILONS)), ticks)
    ax.set_xlabel("epsilon")
    stretch_accuracy(ax, 0.06, 0.994, "test accuracy (logit)", ACCURACY_TICKS)
    entitle(ax, "trained, at best rates", "c")


def _tick(epsilon: float) -> str:
    if 0 < epsilon < 0.01:
        return f"$10^{{{round(np.log10(epsilon))}}}$"
    return f"{epsilon:g}"


def _draw_sweeps(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """The sweeps that chose the rates."""
    for e in EPSILONS:
        name = network_name(PIXELS, e)
        scores = [by_accuracy(records, at_rate(name, rate)).mean() for rate in settings.rates]
        look = {"color": COLORS[e], "linestyle": STYLES[e], "marker": MARKERS[e]}
        ax.plot(settings.rates, scores, label=_tick(e), markersize=5, linewidth=1.6, **look)
    log_axis(ax, settings.rates, "{x:g}")
    ax.set_xlabel("learning rate")
    stretch_accuracy(ax, 0.06, 0.994, "validation accuracy", ACCURACY_TICKS)
    entitle(ax, "the sweep", "d")
