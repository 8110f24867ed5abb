"""Contours and paths, how the loss falls, and condition numbers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    WIDTH_INCHES,
    entitle,
    headline,
)
from experiments.common.records import Record, series
from experiments.lab.feature_scaling.bowl import quadratic
from experiments.lab.feature_scaling.settings import (
    CLOSE,
    INPUTS,
    NORMALISED,
    RAW,
    STANDARDISED,
    FeatureScalingSettings,
)
from experiments.lab.feature_scaling.verdict import fact, mean_in_words

COLORS = {RAW: ORANGE, STANDARDISED: GREEN, NORMALISED: BLUE}
STYLES = {RAW: "-", STANDARDISED: "-", NORMALISED: "--"}
SHOWN_SEED = 0  # of the contours
LEVELS = np.geomspace(1e-3, 1e7, 21)  # of the loss above the least


def draw(records: Sequence[Record], settings: FeatureScalingSettings) -> Figure:
    """Contours and paths above; how the loss falls and the condition numbers below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.8), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(1.15, 1))
    for column, inputs in enumerate(INPUTS):
        ax = figure.add_subplot(grid[0, 2 * column : 2 * column + 2])
        draw_contours(ax, records, inputs, settings)
        if inputs == RAW:
            ax.legend(loc="upper left", **OPAQUE)
    draw_descent(figure.add_subplot(grid[1, :4]), records, settings)
    draw_condition(figure.add_subplot(grid[1, 4:]), records)
    headline(figure, "Features of unlike scale make a ravine; standardising rounds it")
    return figure


def draw_contours(
    ax: Axes, records: Sequence[Record], inputs: str, settings: FeatureScalingSettings
) -> None:
    """The loss over both weights, on axes of the same unit, and the path of one seed."""
    chosen = [r for r in records if (r["network"], r["seed"]) == (inputs, SHOWN_SEED)]
    hessian, best = (np.array(chosen[0][name]) for name in ("hessian", "best"))
    path = np.array([(r["w1"], r["w2"]) for r in chosen])
    half = 1.15 * np.abs(path - best).max()
    first, second = (np.linspace(b - half, b + half, 400) for b in best)
    loss = quadratic(hessian, np.stack(np.meshgrid(first, second), -1) - best)
    ax.contour(first, second, loss / chosen[0]["gain"], LEVELS, colors=[GREY], linewidths=0.6)
    ax.plot(*path.T, ".-", color=COLORS[inputs], linewidth=1.2, markersize=5)
    ax.plot(*path[0], "o", color=COLORS[inputs], markersize=8, label="start")
    ax.plot(*best, "*", color="black", markersize=11, label="minimum", linestyle="none")
    ax.set(aspect="equal", xlabel="weight $w_1$", ylabel="weight $w_2$")
    ax.grid(False)
    arrived = chosen[-1]["arrived"]
    when = f"not there after {settings.steps:,}" if arrived is None else f"there after {arrived:,}"
    condition = mean_in_words([chosen[0]["condition_number"]])
    entitle(ax, f"{inputs}\ncondition number {condition},\n{when} steps")


def draw_descent(ax: Axes, records: Sequence[Record], settings: FeatureScalingSettings) -> None:
    """The loss against steps, a line a seed and their geometric mean."""
    for inputs in INPUTS:
        steps, excess = series(records, inputs, "excess")
        later = steps > 0
        steps, excess = steps[later], np.maximum(excess[:, later], 1e-6)
        color = COLORS[inputs]
        ax.fill_between(steps, excess.min(0), excess.max(0), color=color, alpha=0.15, linewidth=0)
        middle = np.exp(np.log(excess).mean(0))
        ax.plot(steps, middle, STYLES[inputs], color=color, label=inputs, linewidth=1.8)
    ax.axhline(CLOSE, color=GREY, linewidth=0.9, linestyle=":")
    ax.set(xscale="log", yscale="log", ylim=(1e-4, None))
    share = f"{settings.learning_rate:.0%} of the largest stable rate"
    ax.set_xlabel(f"step of gradient descent, at {share}")
    ax.set_ylabel("loss above the least\n(1: that of zero weights)")
    ax.legend(loc="upper right", **OPAQUE)
    entitle(
        ax, f"{settings.data_label}: geometric mean and range of {settings.seeds} pairs of pixels"
    )


def draw_condition(ax: Axes, records: Sequence[Record]) -> None:
    """The condition number of every seed."""
    for place, inputs in enumerate(INPUTS):
        values = fact(records, inputs, "condition_number")
        spread = place + np.linspace(-0.2, 0.2, len(values))
        ax.plot(spread, values, "o", color=COLORS[inputs], alpha=0.6, markersize=5)
    ax.set(yscale="log", xlim=(-0.5, 2.5), ylim=(0.8, None))
    ax.set_xticks(range(len(INPUTS)), ["raw", "standard-\nised", "batch\nnorm"])
    ax.set_ylabel("condition number of the Hessian")
    entitle(ax, "every pair")
