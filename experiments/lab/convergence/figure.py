"""Fig. 1 of the paper, drawn from what was logged."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, PercentFormatter

from experiments.common.histories import final_mean, geometric_mean, steps_to_target
from experiments.common.plots import (
    COLORS,
    COUNT,
    GREY,
    OPAQUE,
    STYLES,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    entitle,
    headline,
    set_ticks,
    stretch_steps,
)
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.lab.convergence.settings import ConvergenceSettings

ACCURACY_TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.99)
SHOWN_SEED = 0  # percentiles of one network, as in the paper: a unit has no sign to average over


def draw(records: Sequence[Record], settings: ConvergenceSettings) -> Figure:
    """Test accuracy above, percentiles of a sigmoid's input without and with batch norm below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
    draw_accuracy(figure.add_subplot(grid[0, :]), records, settings)
    left = figure.add_subplot(grid[1, 0])
    right = figure.add_subplot(grid[1, 1], sharey=left)
    for letter, ax, network in (("b", left, PLAIN), ("c", right, NORMALISED)):
        draw_percentiles(ax, records, network)
        entitle(ax, f"sigmoid input {network} (seed {SHOWN_SEED})", letter)
    left.set_ylabel("input of one last-layer sigmoid\n(percentiles over the test set)")
    headline(figure, "Batch norm trains faster and steadier")
    return figure


def draw_accuracy(ax: Axes, records: Sequence[Record], settings: ConvergenceSettings) -> None:
    """Accuracy against steps, the mean over seeds in the range of the seeds."""
    target = settings.target_accuracy
    for network in NETWORKS:
        steps, accuracy = series(records, network, "test_accuracy")
        reached = steps_to_target(steps, accuracy, target)
        label = f"{network}: {_outcome(steps, accuracy, reached, target)}"
        draw_band(ax, steps, accuracy, COLORS[network], label, STYLES[network])
        if np.isfinite(reached).all():
            ax.plot(geometric_mean(reached), target, "o", color=COLORS[network], zorder=3)
    ax.axhline(target, color=GREY, linewidth=0.9, linestyle=":")
    _stretch_axes(ax, settings)
    rate = f"learning rate {settings.learning_rate:g}, mini-batch {settings.batch_size}"
    ax.set_xlabel(f"training step, log scale ({rate})")
    ax.legend(loc="upper left", **OPAQUE)
    entitle(ax, f"three layers of 100 sigmoids: {data_and_seeds(settings)}", "a")


def _stretch_axes(ax: Axes, settings: ConvergenceSettings) -> None:
    """Logarithmic steps, and accuracy stretched near 100 %, for what happens early and late."""
    stretch_steps(ax, settings, LogLocator(subs=(1, 2, 5)))
    ax.set_yscale("logit")
    ax.set_ylim(0.07, 0.997)  # the legend goes above
    set_ticks(ax.yaxis, FixedLocator(ACCURACY_TICKS), PercentFormatter(1, decimals=0))
    ax.set_ylabel("test accuracy (logit scale)")


def _outcome(steps: np.ndarray, accuracy: np.ndarray, reached: np.ndarray, target: float) -> str:
    """Such as "90% after 51 steps, 94.7% at the end", for the label of a curve."""
    speed = f"{target:.0%} after {geometric_mean(reached):,.0f} steps"
    if np.isinf(reached).any():
        speed = f"{target:.0%} not reached by every seed"
    return f"{speed}, {final_mean(steps, accuracy).mean():.1%} at the end"


def draw_percentiles(ax: Axes, records: Sequence[Record], network: str) -> None:
    """Median, and the band from the 15th to the 85th percentile, of one seed."""
    color = COLORS[network]
    steps, _ = series(records, network, "input_p50")
    low, middle, high = (
        series(records, network, f"input_p{q}")[1][SHOWN_SEED] for q in (15, 50, 85)
    )
    ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    for values, name in ((high, "85th"), (middle, "50th"), (low, "15th")):
        ax.plot(steps, values, color=color, linewidth=1.8 if name == "50th" else 1.0)
        _label_end(ax, steps, values, name)
    ax.set_xlim(0, steps[-1])
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(COUNT)
    ax.set_xlabel("training step")


def _label_end(ax: Axes, steps: np.ndarray, values: np.ndarray, name: str) -> None:
    if np.isfinite(values[-1]):
        where = (float(steps[-1]), float(values[-1]))
        ax.annotate(name, where, xytext=(4, 0), textcoords="offset points", va="center", color=GREY)
