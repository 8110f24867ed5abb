"""What scale and shift are worth, what they replace and undo."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.common.histories import final
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    draw_band,
    draw_dots,
    entitle,
    headline,
)
from experiments.common.records import Record, series
from experiments.lab.affine.settings import (
    BOTH,
    IDENTITY,
    MOST_ROUNDINGS,
    NEITHER,
    REDUNDANT,
    SCALE,
    SHIFT,
    AffineSettings,
)

COLORS = {BOTH: BLUE, SCALE: GREEN, SHIFT: PINK, NEITHER: ORANGE}
STYLES = {BOTH: "-", SCALE: "--", SHIFT: ":", NEITHER: "-"}
LEAST = 1e-9  # that is drawn


def draw(records: Sequence[Record], settings: AffineSettings) -> Figure:
    """What scale and shift are worth above; what they replace and undo below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    where = f"{settings.data_label}, {settings.seeds_in_words}"
    draw_loss(figure.add_subplot(grid[0, :3]), records, f"training loss ({where})")
    draw_errors(figure.add_subplot(grid[0, 3:]), records, "test error, every seed")
    draw_bias(figure.add_subplot(grid[1, :3]), records, "a bias before batch norm does nothing")
    draw_identity(figure.add_subplot(grid[1, 3:]), records, "the identity, every seed")
    headline(figure, "Scale and shift help, and can undo the normalisation")
    return figure


def draw_loss(ax: Axes, records: Sequence[Record], title: str) -> None:
    """Training loss with both, one and neither of scale and shift."""
    for network, color in COLORS.items():
        steps, loss = series(records, network, "train_loss")
        draw_band(ax, steps[1:], loss[:, 1:], color, network, STYLES[network])
    ax.set(yscale="log", xlabel="training step", ylabel="cross-entropy")
    ax.legend(loc="upper right", **OPAQUE)
    entitle(ax, title)


def draw_errors(ax: Axes, records: Sequence[Record], title: str) -> None:
    """Test error at the end, a dot a seed and a line for their mean."""
    for place, (network, color) in enumerate(COLORS.items()):
        error = 1 - final(records, network, "test_accuracy")
        draw_dots(ax, place, error, color)
    ax.set_xticks(range(len(COLORS)), ["scale\n+ shift", "scale\nonly", "shift\nonly", "neither"])
    ax.set_ylim(0, None)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    entitle(ax, title)


def draw_bias(ax: Axes, records: Sequence[Record], title: str) -> None:
    """The bias' gradient, and how far apart training is with and without the bias."""
    steps, shares = series(records, REDUNDANT, "bias_gradient")
    _, with_bias = series(records, REDUNDANT, "train_loss")
    _, without = series(records, BOTH, "train_loss")
    apart = np.abs(with_bias / without - 1)[:, 1:]
    draw_band(ax, steps, shares, PINK, "gradient of the bias / of the shift")
    # Equal to the last bit is 0, which a logarithmic axis cannot show.
    draw_band(ax, steps[1:], np.maximum(apart, LEAST), GREEN, "change of the training loss", "--")
    ax.axhline(1, color=GREY, linewidth=0.9, linestyle=":")
    ax.text(0, 0.5, "1: a bias that does something", va="top", color=GREY)
    ax.set(yscale="log", ylim=(LEAST, 10), xlabel="training step", ylabel="share")
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.75), facecolor="white", edgecolor="none")
    entitle(ax, title)


def draw_identity(ax: Axes, records: Sequence[Record], title: str) -> None:
    """How far the output is from the input where scale and shift undo the normalisation."""
    roundings = series(records, IDENTITY, "roundings")[1][:, 0]
    draw_dots(ax, 0, roundings, BLUE)
    ax.axhline(MOST_ROUNDINGS, color=GREY, linewidth=0.9, linestyle=":")
    ax.set(xlim=(-1, 1), xticks=[], ylim=(0, None))
    ax.set_ylabel("largest |output - input|\n(roundings of float32)")
    ax.set_xlabel("dotted: two for each of -, /, *, +")
    entitle(ax, title)
