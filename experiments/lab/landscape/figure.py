"""Figs. 2 to 4 of the paper, drawn from what was logged."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.common.plots import (
    BLUE,
    COUNT,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    entitle,
    headline,
)
from experiments.common.records import Record, series
from experiments.common.settings import NORMALISED, PLAIN
from experiments.lab.landscape.settings import L1, LINF, NETWORKS, NOISY, LandscapeSettings

COLORS = {PLAIN: ORANGE, NORMALISED: BLUE, NOISY: PINK, L1: GREEN, LINF: SKY}
STYLES = {PLAIN: "--", NORMALISED: "-", NOISY: "-.", L1: ":", LINF: (0, (5, 1, 1, 1, 1, 1))}
PAIR = (PLAIN, NORMALISED)


def draw(records: Sequence[Record], settings: LandscapeSettings) -> Figure:
    """The landscape above, covariate shift and test accuracy below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    draw_ranges(axes[0], records, "loss", "loss along the gradient", "cross-entropy")
    draw_ranges(axes[1], records, "change", "change of the gradient", "l2 distance")
    draw_metric(axes[2], records, PAIR, "beta", "effective smoothness", "beta")
    draw_metric(axes[3], records, PAIR, "shift", "covariate shift: size", "|G - G'|, l2 distance")
    draw_metric(axes[4], records, PAIR, "shift_cosine", "covariate shift: angle", "cos(G, G')")
    draw_metric(axes[5], records, NETWORKS, "test_accuracy", "all networks", "test accuracy")
    axes[3].set_yscale("log")
    axes[4].set_ylim(top=1.03)
    axes[5].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for letter, ax in zip("abcdef", axes, strict=True):
        entitle(ax, ax.get_title(loc="left"), letter)
    for ax in axes[3:]:
        ax.set_xlabel("training step")
    handles, labels = axes[5].get_legend_handles_labels()
    options = {"loc": "outside lower center", "ncols": 5, "frameon": False, "fontsize": 9}
    note = f"{data_and_seeds(settings)} (a, b: range along the gradient); "
    note += settings.rate_in_words
    figure.legend(handles, labels, title=note, title_fontsize=9, **options)
    headline(figure, "A smoother loss explains batch norm, not less covariate shift")
    return figure


def draw_ranges(ax: Axes, records: Sequence[Record], name: str, title: str, axis: str) -> None:
    """From the smallest to the largest value along the gradient, geometric means over seeds."""
    for network in PAIR:
        steps, low = series(records, network, f"{name}_low")
        _, high = series(records, network, f"{name}_high")
        with np.errstate(divide="ignore"):
            low, high = (np.exp(np.log(values).mean(0)) for values in (low, high))
        color = COLORS[network]
        ax.fill_between(steps, low, high, color=color, alpha=0.3, linewidth=0)
        for edge in (low, high):
            ax.plot(steps, edge, color=color, linewidth=0.9, linestyle=STYLES[network])
    ax.set_yscale("log")
    _finish(ax, title, axis)


def draw_metric(
    ax: Axes, records: Sequence[Record], networks: Sequence[str], name: str, title: str, axis: str
) -> None:
    """The mean over seeds in the range of the seeds."""
    for network in networks:
        steps, values = series(records, network, name)
        draw_band(ax, steps, values, COLORS[network], network, STYLES[network])
    _finish(ax, title, axis)


def _finish(ax: Axes, title: str, axis: str) -> None:
    ax.set_title(title, loc="left")
    ax.set_ylabel(axis)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(COUNT)
