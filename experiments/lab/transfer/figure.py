"""Accuracy against examples a class, and against the mini-batch."""

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
    draw_band,
    entitle,
    headline,
    set_ticks,
    spread_over_seeds,
)
from experiments.common.records import Record, series
from experiments.lab.transfer.settings import (
    ADAPTED,
    BY_BATCH,
    BY_EXAMPLES,
    FROZEN,
    SCRATCH,
    TRAINED,
    TransferSettings,
    trial_name,
)

STYLES = {
    FROZEN: (ORANGE, "--"),
    ADAPTED: (GREEN, "-."),
    TRAINED: (BLUE, "-"),
    SCRATCH: (GREY, ":"),
}


def draw(records: Sequence[Record], settings: TransferSettings) -> Figure:
    """Accuracy against examples a class on the left, against the mini-batch on the right."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_ways(left, records, BY_EXAMPLES)
    _draw_ways(right, records, BY_BATCH)
    entitle(left, f"mini-batches of {settings.batch_size}", "a")
    entitle(right, f"{settings.few} examples a class", "b")
    left.set_xlabel("examples a class")
    right.set_xlabel("images in a mini-batch")
    left.set_ylabel("test accuracy on the new classes")
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    headline(
        figure,
        "A pretrained model's statistics: freeze, adapt or train them\n"
        f"({settings.data_label}, classes 0-4 to 5-9, {spread_over_seeds(settings)})",
    )
    return figure


def _draw_ways(ax: Axes, records: Sequence[Record], varied: str) -> None:
    values = np.array([])
    for way, (color, style) in STYLES.items():
        values, accuracy = series(records, trial_name(way, varied), "test_accuracy")
        draw_band(ax, values, accuracy, color, way, style)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(values.tolist()))
