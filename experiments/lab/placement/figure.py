"""Accuracy against steps, for every activation, place and start."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter

from experiments.common.models import ACTIVATIONS
from experiments.common.plots import (
    BLUE,
    GREEN,
    ORANGE,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    entitle,
    headline,
    stretch_steps,
)
from experiments.common.records import Record, series
from experiments.lab.placement.settings import (
    AFTER,
    BEFORE,
    NONE,
    PLACES,
    STARTS,
    PlacementSettings,
    trial_name,
)

COLORS, STYLES = {NONE: ORANGE, BEFORE: BLUE, AFTER: GREEN}, {NONE: "--", BEFORE: "-", AFTER: "-."}


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
        entitle(ax, f"{activation}, {start}", "abcdef"[3 * row + column], fontsize=9)
    _label(axes, settings)
    headline(figure, "Before or after the activation, batch norm works")
    return figure


def _label(axes: np.ndarray, settings: PlacementSettings) -> None:
    stretch_steps(axes[0, 0], settings, LogLocator())
    axes[0, 0].set_ylim(0, 1)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    axes[-1, 1].set_xlabel(
        f"training step, log scale ({data_and_seeds(settings)}, "
        f"learning rate {settings.learning_rate:g})"
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
