"""Error against batch size, and what batches of few classes do to it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    draw_dots,
    entitle,
    footnote,
    headline,
    set_ticks,
)
from experiments.common.records import Record
from experiments.lab.batch_size.settings import (
    BATCH,
    CLASSES,
    FEW_CLASSES_AT,
    GROUP,
    RENORM,
    VIRTUAL,
    VIRTUAL_SIZE,
    BatchSizeSettings,
    trial_name,
)
from experiments.lab.batch_size.verdict import error

COLORS = {BATCH: BLUE, GROUP: GREEN, RENORM: ORANGE, VIRTUAL: PINK}
STYLES = {BATCH: "-", GROUP: "--", RENORM: "-.", VIRTUAL: ":"}
ERRORS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)  # ticks, in percent


def draw(records: Sequence[Record], settings: BatchSizeSettings) -> Figure:
    """Error against batch size, and what batches of few classes do to it."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.6), layout="constrained")
    sizes, few = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    draw_sizes(sizes, records, settings)
    draw_few(few, records)
    sizes.set_yscale("log")
    set_ticks(sizes.yaxis, FixedLocator(ERRORS), PercentFormatter(100, decimals=0))
    headline(figure, "Small batches hurt batch norm, not group norm or batch renorm")
    footnote(figure, data_and_seeds(settings))
    return figure


def draw_sizes(ax: Axes, records: Sequence[Record], settings: BatchSizeSettings) -> None:
    """Error against batch size, the mean over seeds in the range of the seeds."""
    every = [*settings.sizes, settings.huge]
    present = {record["network"] for record in records}
    for norm, color in COLORS.items():
        sizes = [size for size in every if trial_name(norm, size) in present]
        errors = np.stack([error(records, trial_name(norm, size)) for size in sizes], 1)
        label = f"{norm} of {VIRTUAL_SIZE}" if norm == VIRTUAL else norm
        draw_band(ax, np.array(sizes), errors, color, label, STYLES[norm])
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(every), "{x:.0f}")
    ax.set_xlabel("batch size (images; the learning rate in proportion)")
    ax.set_ylabel("test error (log scale)")
    ax.legend(loc="upper right", **OPAQUE)
    entitle(ax, "error against batch size", "a")


def draw_few(ax: Axes, records: Sequence[Record]) -> None:
    """Every seed's error with batches of all and of few classes, side by side."""
    for place, norm in enumerate((BATCH, RENORM, GROUP)):
        for few, color in ((False, GREY), (True, COLORS[norm])):
            values = error(records, trial_name(norm, FEW_CLASSES_AT, few=few))
            draw_dots(ax, 2 * place + 0.8 * few, values, color)
    ax.set_xticks(
        [2 * place + 0.4 for place in range(3)], ["batch\nnorm", "batch\nrenorm", "group\nnorm"]
    )
    ax.set_xlabel(f"grey: all classes in a batch, colour: {CLASSES}")
    entitle(ax, f"few classes, batches of {FEW_CLASSES_AT}", "b")
