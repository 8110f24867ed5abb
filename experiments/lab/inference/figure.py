"""Accuracy against training step, and against the size of the test batch."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, PercentFormatter

from experiments.common.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    draw_band,
    entitle,
    headline,
    set_ticks,
    spread_over_seeds,
)
from experiments.common.records import Record, series
from experiments.lab.inference.settings import (
    BATCH,
    LARGE,
    ONE_CLASS,
    RECALIBRATED,
    RUNNING,
    SHUFFLED,
    InferenceSettings,
)

COLORS = {RUNNING: BLUE, RECALIBRATED: GREEN, SHUFFLED: ORANGE, ONE_CLASS: PINK}


def draw(records: Sequence[Record], settings: InferenceSettings) -> Figure:
    """Accuracy against training step on the left, against size of the test batch on the right."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_training(left, records, settings)
    _draw_sizes(right, records)
    entitle(left, f"in training on {settings.data_label}", "a")
    entitle(right, f"after training ({spread_over_seeds(settings)})", "b")
    headline(figure, "Running averages stand in for the batch at test time")
    return figure


def _draw_training(ax: Axes, records: Sequence[Record], settings: InferenceSettings) -> None:
    for name, color, style in (
        (BATCH, ORANGE, ":"),
        (RECALIBRATED, GREEN, "--"),
        (RUNNING, BLUE, "-"),
    ):
        steps, values = series(records, name, "test_accuracy")
        label = f"test batches of {LARGE}" if name == BATCH else name
        draw_band(ax, steps[1:], values[:, 1:], color, label, style)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, LogLocator(subs=(1, 2, 5)))
    ax.set_xlabel(f"training step (averages look back on {settings.memory:.0f})")
    ax.set_ylabel("test accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(loc="lower right", frameon=False, title="statistics")


def _draw_sizes(ax: Axes, records: Sequence[Record]) -> None:
    for name, style in ((SHUFFLED, "-"), (ONE_CLASS, "--")):
        sizes, values = series(records, name, "test_accuracy")
        draw_band(ax, sizes, values, COLORS[name], f"test batch, {name}", style)
    sizes, _ = series(records, SHUFFLED, "test_accuracy")
    _, running = series(records, RUNNING, "test_accuracy")
    level = np.repeat(running[:, -1:], len(sizes), axis=1)
    draw_band(ax, sizes, level, BLUE, f"{RUNNING}, any size")
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(sizes[::2].tolist()))
    ax.set_xlabel("images in a test batch")
    ax.legend(loc="center right", frameon=False, title="statistics")
