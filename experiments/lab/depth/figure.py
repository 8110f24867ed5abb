"""Gradients by layer, and accuracy by depth."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter, ScalarFormatter

from experiments.common.models import ACTIVATIONS
from experiments.common.plots import (
    COLORS,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    entitle,
    footnote,
    headline,
    set_ticks,
)
from experiments.common.records import Record
from experiments.common.settings import NETWORKS
from experiments.lab.depth.histories import final_accuracy, logged_gradients
from experiments.lab.depth.settings import DepthSettings

FLOOR = 1e-14  # of the norms in the figure; what is below is as good as 0


def draw(records: Sequence[Record], settings: DepthSettings) -> Figure:
    """Gradients by layer above, accuracy by depth below; a column an activation."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.4), layout="constrained")
    axes = figure.subplots(2, len(ACTIVATIONS), sharey="row")
    for column, activation in enumerate(ACTIVATIONS):
        draw_gradients(axes[0, column], records, settings, activation)
        draw_accuracy(axes[1, column], records, settings, activation)
        for row, what in enumerate(("gradient", "training")):
            entitle(axes[row, column], f"{activation}: {what}", "abcdef"[3 * row + column])
    axes[0, 0].set_ylabel("norm of a layer's gradient\n(log scale)")
    axes[1, 0].set_ylabel(f"test accuracy\nafter {settings.steps:,} steps")
    axes[1, 0].set_ylim(0, 1)
    axes[1, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylim(FLOOR, 1e5)
    axes[0, 1].legend(loc="lower center", fontsize=8, framealpha=1)
    headline(figure, "Batch norm keeps gradients from vanishing or exploding")
    footnote(figure, f"layers of {settings.width} units; {data_and_seeds(settings)}")
    return figure


def draw_gradients(
    ax: Axes, records: Sequence[Record], settings: DepthSettings, activation: str
) -> None:
    """Norms in the deepest network, before training and at its end."""
    depth = max(settings.depths)
    layers = np.arange(1, depth + 1)
    for network in NETWORKS:
        norms = logged_gradients(records, settings, activation, network, depth)
        for moment, when, linestyle in ((0, "start", "-"), (-1, "end", ":")):
            label = f"{network}, {when}"
            draw_band(ax, layers, norms[moment].T, COLORS[network], label, linestyle)
    ax.set_yscale("log")
    ax.set_xlabel(f"layer, of {depth}")


def draw_accuracy(
    ax: Axes, records: Sequence[Record], settings: DepthSettings, activation: str
) -> None:
    """Accuracy at the end of training against depth."""
    for network in NETWORKS:
        accuracy = final_accuracy(records, settings, activation, network)
        draw_band(ax, np.array(settings.depths), accuracy, COLORS[network], network)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(settings.depths), ScalarFormatter())
    ax.set_xlabel("hidden layers (log scale)")
