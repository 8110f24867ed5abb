"""The spread, and the gap between test and training loss."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    SKY,
    WIDTH_INCHES,
    YELLOW,
    draw_band,
    draw_dots,
    entitle,
    headline,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.lab.regularisation.settings import (
    LARGE,
    PLAIN_LARGE,
    PLAIN_SMALL,
    SIZES,
    SMALL,
    SPREAD,
    VIRTUAL,
    RegularisationSettings,
)
from experiments.lab.regularisation.verdict import gap, slopes

COLORS = {SMALL: BLUE, LARGE: GREEN, VIRTUAL: SKY, PLAIN_SMALL: ORANGE, PLAIN_LARGE: YELLOW}
STYLES = {SMALL: "-", LARGE: "-", VIRTUAL: "--", PLAIN_SMALL: "-", PLAIN_LARGE: "--"}


def draw(records: Sequence[Record], settings: RegularisationSettings) -> Figure:
    """The spread and what it does to the gap, above; the gap in the course of training below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.8), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    draw_spread(figure.add_subplot(grid[0, 0]), records)
    draw_differences(figure.add_subplot(grid[0, 1]), records, settings)
    draw_gaps(figure.add_subplot(grid[1, :]), records, settings)
    headline(figure, "The noise of batches regularises, that of large ones less")
    return figure


def draw_spread(ax: Axes, records: Sequence[Record]) -> None:
    """Both spreads against batch size, and a line of slope -1/2."""
    for name, label, color in (("mean", "mean", BLUE), ("std", "standard deviation", GREEN)):
        sizes, spreads = series(records, SPREAD, f"{name}_spread")
        slope = slopes(records, f"{name}_spread").mean()
        draw_band(ax, sizes, spreads, color, f"{label}: slope {slope:.2f}")
    ax.plot(SIZES, np.array(SIZES) ** -0.5, ":", color=GREY, label="1 / sqrt(size)")
    ax.set(xscale="log", yscale="log", xlabel="batch size (images)", ylim=(0.01, None))
    set_ticks(ax.xaxis, FixedLocator(SIZES), "{x:.0f}")
    set_ticks(ax.yaxis, FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2]), "{x:g}")
    ax.set_ylabel("spread over batches\n(standard deviations of the data)")
    ax.legend(loc="lower left", **OPAQUE)
    entitle(ax, "noise of the statistics")


def draw_differences(ax: Axes, records: Sequence[Record], settings: RegularisationSettings) -> None:
    """By how much the gap is wider for large batches, seed by seed."""
    sizes = f"{settings.large}\nagainst {settings.batch_size}"
    differences = (
        (f"batch norm,\n{sizes}", LARGE, SMALL),
        (f"its statistics,\nof {sizes}", LARGE, VIRTUAL),
        (f"no norm,\n{sizes}", PLAIN_LARGE, PLAIN_SMALL),
    )
    for place, (_, wide, narrow) in enumerate(differences):
        draw_dots(ax, place, gap(records, wide) - gap(records, narrow), COLORS[narrow])
    ax.axhline(0, color=GREY, linewidth=0.9)
    ax.set_xticks(range(len(differences)), [label for label, *_ in differences])
    ax.set_ylabel("difference of the gaps")
    entitle(ax, f"gap wider for large batches, {settings.seeds_in_words}")


def draw_gaps(ax: Axes, records: Sequence[Record], settings: RegularisationSettings) -> None:
    """Test minus training loss against steps."""
    small, large = settings.batch_size, settings.large
    labels = {
        SMALL: f"batch norm, batches of {small}",
        LARGE: f"batch norm, {large}",
        VIRTUAL: f"batch norm, {large}, statistics of {small}",
        PLAIN_SMALL: f"no norm, {small}",
        PLAIN_LARGE: f"no norm, {large}",
    }
    for network, label in labels.items():
        steps, gaps = series(records, network, "loss_gap")
        draw_band(ax, steps, gaps, COLORS[network], label, STYLES[network])
    rate = f"learning rate {settings.learning_rate:g} throughout"
    ax.set(xlabel=f"training step ({rate})", ylabel="test minus training loss")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))  # the legend goes above
    ax.legend(loc="upper left", **OPAQUE, ncols=2)
    entitle(ax, f"gap in training on {settings.images:,} images of {settings.data_label}")
