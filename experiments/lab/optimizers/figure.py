"""Accuracy, and how far scale and shift have moved."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, PercentFormatter

from experiments.common.plots import (
    COLORS,
    GREEN,
    PINK,
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
from experiments.common.settings import NETWORKS, NORMALISED
from experiments.lab.optimizers.settings import OPTIMIZERS, OptimizerSettings, trial_name
from experiments.lab.optimizers.verdict import histories

MOVES = (("scale", "scale, from 1", GREEN, "-"), ("bias", "shift, from 0", PINK, "--"))


def draw(records: Sequence[Record], settings: OptimizerSettings) -> Figure:
    """Accuracy above, how far scale and shift have moved below; a column an optimizer."""
    figure = Figure(figsize=(WIDTH_INCHES, 5.2), layout="constrained")
    axes = figure.subplots(2, len(OPTIMIZERS), sharex=True, sharey="row")
    for column, (optimizer, (_, rate)) in enumerate(OPTIMIZERS.items()):
        steps, *accuracies = histories(records, optimizer)
        for network, accuracy in zip(NETWORKS, accuracies, strict=True):
            draw_band(axes[0, column], steps, accuracy, COLORS[network], network, STYLES[network])
        for name, label, color, style in MOVES:
            _, moved = series(records, trial_name(optimizer, NORMALISED), f"moved_{name}")
            draw_band(axes[1, column], steps, moved, color, label, style)
        entitle(axes[0, column], f"{optimizer}, rate {rate:g}")
    _label(axes, settings)
    headline(figure, "Scale and shift learn under every optimizer")
    figure.supxlabel(f"training step, log scale ({data_and_seeds(settings)})", fontsize=10)
    return figure


def _label(axes: np.ndarray, settings: OptimizerSettings) -> None:
    corner = axes[0, 0]
    stretch_steps(corner, settings, LogLocator())
    corner.set_yscale("logit")  # what happens near 100 % is seen as well
    corner.set_ylim(0.09, 0.993)
    set_ticks(corner.yaxis, FixedLocator((0.1, 0.5, 0.8, 0.9, 0.95, 0.98)), PercentFormatter(1, 0))
    corner.set_ylabel("test accuracy (logit scale)")
    axes[1, 0].set_ylim(0, None)
    axes[1, 0].set_ylabel("change since the start\n(root mean square)")
    for ax in axes[:, 0]:
        ax.legend(loc=("lower right" if ax is corner else "upper left"), fontsize=8, framealpha=1)
