"""Draws the panels of a benchmark as bars, ours in blue."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmarks.panels import Panel, with_interval
from experiments.benchmarks.timing import Estimate
from experiments.common.plots import BLUE, GREY, ORANGE, WIDTH_INCHES

BAR_INCHES, FRAME_INCHES = 0.27, 0.85
MANY_PANELS = 8  # more than so many stand side by side
MANY_DECADES = 100.0  # from the smallest to the largest: then the axis is logarithmic


def draw(title: str, panels: Sequence[Panel]) -> Figure:
    """One row of bars a panel, the smallest number on top."""
    columns = 2 if len(panels) > MANY_PANELS else 1
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(len(p.bars) for p in row) * BAR_INCHES + FRAME_INCHES for row in rows]
    size = (WIDTH_INCHES * columns, sum(heights) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights).flat
    for ax, panel in zip(axes, panels, strict=False):
        draw_panel(ax, panel)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def draw_panel(ax: Axes, panel: Panel) -> None:
    """Bars with their 95 % intervals, and the number written at the end of each."""
    bars = panel.ordered()
    values = np.array([bar.value for _, bar in bars])
    ends = np.array([[bar.low, bar.high] for _, bar in bars]).T
    errors = np.nan_to_num(np.abs(ends - values))
    rows, colors = np.arange(len(bars)), [_color(name) for name, _ in bars]
    _scale(ax, values - errors[0], values + errors[1])
    ax.barh(rows, np.nan_to_num(values), xerr=errors, color=colors, ecolor=GREY, height=0.7)
    ax.set_yticks(rows, [name for name, _ in bars])
    for row, (_, bar) in enumerate(bars):
        _write(ax, row, bar)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(panel.unit)
    ax.set_title(panel.title, loc="left", fontweight="bold")


def _write(ax: Axes, row: int, bar: Estimate) -> None:
    """The number at the end of its bar, or words in the place of a bar."""
    finite = bool(np.isfinite(bar.value))
    text = with_interval(bar) if finite else "not a number"
    end = float(np.nanmax([bar.value, bar.high])) if finite else 0.0
    # Zero has no place on a logarithmic axis.
    drawn = finite and end > ax.get_xlim()[0]
    where, end = (ax.transData, end) if drawn else (ax.get_yaxis_transform(), 0.0)
    options: dict[str, Any] = {"xycoords": where, "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (end, row), xytext=(4, 0), **options)


def _scale(ax: Axes, lows: np.ndarray, highs: np.ndarray) -> None:
    finite = highs[np.isfinite(highs) & (highs > 0)]
    largest = float(finite.max(initial=1e-9))
    if len(finite) and largest / finite.min() > MANY_DECADES:
        ax.set_xscale("log")
        ax.set_xlim(float(finite.min()) / 3, largest * 30)
    else:
        # A share of time may come out below 0: its interval must be seen whole.
        lowest = float(np.nanmin(lows, initial=0))
        ax.set_xlim(lowest * 1.1, largest * 1.35)


def _color(name: str) -> str:
    if name.startswith("bnjax"):
        return BLUE
    bare = name.startswith("floor") or name in ("multiply-add", "scale and bias")
    return GREY if bare else ORANGE
