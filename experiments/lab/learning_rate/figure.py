"""Accuracy and speed against the learning rate."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter

from experiments.common.plots import (
    COLORS,
    GREY,
    STYLES,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    entitle,
    footnote,
    headline,
    set_ticks,
)
from experiments.common.records import Record
from experiments.common.settings import NETWORKS, PLAIN
from experiments.lab.learning_rate.settings import RELU, SIGMOID, LearningRateSettings
from experiments.lab.learning_rate.sweep import Sweep, best, sweep, times
from experiments.lab.learning_rate.verdict import PAPER_SPEED


def draw(records: Sequence[Record], settings: LearningRateSettings) -> Figure:
    """Accuracy above and steps to the target below, against the rate; a column an activation."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, activation in enumerate((RELU, SIGMOID)):
        for network in NETWORKS:
            found = sweep(records, settings, activation, network)
            style = (COLORS[network], network, STYLES[network])
            reached = np.where(np.isfinite(found.steps), found.steps, np.nan)
            draw_band(axes[0, column], settings.grid, found.accuracy, *style)
            draw_band(axes[1, column], settings.grid, reached, *style)
        entitle(axes[0, column], f"{activation}: accuracy", "ab"[column])
        entitle(axes[1, column], f"{activation}: speed", "cd"[column])
        axes[1, column].set_xlabel("learning rate (log scale)")
    _mark_factors(axes[0, 0], sweep(records, settings, RELU, PLAIN), settings)
    _label(axes, settings)
    headline(figure, "Batch norm makes larger learning rates usable")
    footnote(figure, f"{data_and_seeds(settings)}; c, d: where every seed reaches the target")
    return figure


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
    accuracy.set_ylim(0, None)
    speed.set_ylabel(f"steps to {settings.target_accuracy:.0%} (log scale)")
    speed.set_xscale("log")
    speed.set_yscale("log")
    speed.set_ylim(settings.eval_every / 1.3, settings.steps * 1.3)
    set_ticks(speed.yaxis, LogLocator(subs=(1, 2, 5)))
    axes[1, 1].legend(loc="lower left", framealpha=1)
