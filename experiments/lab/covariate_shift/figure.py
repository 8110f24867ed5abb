"""Accuracy against the number of unlabelled images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    entitle,
    headline,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.lab.covariate_shift.settings import (
    MIXED,
    PAINTS,
    SHIFTS,
    SOURCE,
    Colour,
    CovariateShiftSettings,
    trial_name,
)
from experiments.lab.covariate_shift.verdict import accuracy_adapted, accuracy_as_trained


def draw(records: Sequence[Record], settings: CovariateShiftSettings) -> Figure:
    """Accuracy against the number of unlabelled images, a panel a shift."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    axes = figure.subplots(1, len(SHIFTS), sharey=True)
    for letter, ax, shift in zip("abc", axes, SHIFTS, strict=True):
        _draw_shift(ax, records, shift)
        entitle(ax, shift, letter, y=1.02)
        _draw_sample(ax, *PAINTS[shift])
    axes[0].set_ylabel("test accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    headline(
        figure, f"Statistics adapted to new data restore the accuracy\n({data_and_seeds(settings)})"
    )
    return figure


def _draw_sample(ax: Axes, ground: Colour, ink: Colour) -> None:
    """A blot of ink on the ground, at the right end of the title."""
    sample = ax.inset_axes((0.87, 1.02, 0.13, 0.09))
    sample.set(xticks=[], yticks=[], facecolor=ground)
    sample.plot(0, 0, "o", color=ink, markersize=9)
    for side in sample.spines.values():
        side.set(visible=True, color=GREY, linewidth=0.8)


def _draw_shift(ax: Axes, records: Sequence[Record], shift: str) -> None:
    numbers, adapted = accuracy_adapted(records, shift)
    _, mixed = series(records, trial_name(shift, MIXED), "test_accuracy")

    def level(paint: str) -> np.ndarray:
        return np.repeat(accuracy_as_trained(records, paint)[:, None], len(numbers), axis=1)

    draw_band(ax, numbers, level(SOURCE), GREY, "grey, as trained", ":")
    draw_band(ax, numbers, level(shift), ORANGE, "new paint, as trained", "--")
    draw_band(ax, numbers, adapted, BLUE, "adapted")
    draw_band(ax, numbers, mixed, GREEN, "adapted, old weighted in", "-.")
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(numbers[::2].tolist()))
    ax.set_xlabel("unlabelled images")
