"""The look that all figures share.

Figures are made without pyplot, so that importing this module picks no window system.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    Locator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from experiments.common.settings import NORMALISED, PLAIN, Settings
from experiments.common.verdicts import CLAIM, FAILS, HOLDS, IN_PART, MARKS, UNDECIDED, Row

# Okabe and Ito's colours, told apart under the common kinds of colour blindness.
ORANGE, BLUE, GREY = "#D55E00", "#0072B2", "#5A5A5A"
GREEN, YELLOW, SKY, PINK = "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
# Of the two networks that most experiments compare.
COLORS, STYLES = {PLAIN: ORANGE, NORMALISED: BLUE}, {PLAIN: "--", NORMALISED: "-"}
COUNT = "{x:,.0f}"  # format of a tick
ACCURACY_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # of a logit axis
WIDTH_INCHES, DPI = 8.5, 200  # 8.5 in shown 850 pixels wide: 10 points are 14 pixels
# Of a picture of the laboratory: on a telephone, 390 pixels wide, 10 points are 10 pixels. Two
# panels beside each other at most.
NARROW_INCHES = 5.4
MARGIN_INCHES = 0.1  # left white around what is drawn
BADGES = {HOLDS: GREEN, IN_PART: "#A87400", FAILS: ORANGE, UNDECIDED: "#8C8C8C"}
# Of a legend on top of a grid.
OPAQUE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "framealpha": 1}
STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
}


def style():
    """A context in which figures are made and saved; nothing global stays changed."""
    return mpl.rc_context(STYLE)


def data_and_seeds(settings: Settings) -> str:
    """What a figure of bands shows, such as "MNIST, mean and range of 5 seeds"."""
    return f"{settings.data_label}, {spread_over_seeds(settings)}"


def spread_over_seeds(settings: Settings) -> str:
    """What a line and its band are, such as "mean and range of 5 seeds"."""
    seeds = settings.seeds_in_words
    return seeds if settings.seeds == 1 else f"mean and range of {seeds}"


def draw_band(
    ax: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    color: str,
    label: str,
    linestyle: str = "-",
    marker: str = "",
) -> None:
    """The mean over seeds as a line, and the smallest and largest as a band.

    Args:
      ax: where to draw.
      steps: (evaluations,).
      values: (seeds, evaluations), NaN where nothing was measured.
    """
    ax.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    look: dict[str, Any] = {"linestyle": linestyle, "linewidth": 1.8}
    look |= {"marker": marker, "markersize": 5}
    ax.plot(steps, values.mean(0), color=color, label=label, **look)


def draw_dots(
    ax: Axes, place: float, values: np.ndarray, color: str, width: float = 0.7, marker: str = "o"
) -> None:
    """A dot for each of `values` (seeds,), side by side about x = `place`, and a line: the mean."""
    beside = place + 0.6 * np.linspace(-width / 2, width / 2, len(values))
    ax.plot(beside, values, marker, color=color, alpha=0.6, markersize=4)
    half = width / 2
    ax.hlines(values.mean(), place - half, place + half, color=color, linewidth=2)


def narrow(height: float) -> Figure:
    """A figure for a picture of the laboratory; `frame` adds what stands above and below it."""
    return Figure(figsize=(NARROW_INCHES, height), layout="constrained")


def frame(figure: Figure, title: str, rows: Sequence[Row], note: str) -> None:
    """Title above, a badge for the verdict of each claim below, and what all of it shows.

    All three stand outside of the figure as it was made, which `save` makes room for.
    """
    title = "\n".join(textwrap.wrap(title, 50))
    figure.text(0.01, 1.02, title, fontsize=12, fontweight="bold", va="bottom", linespacing=1.25)
    bottom = _draw_badges(figure, [row for row in rows if row.kind == CLAIM])
    note = "\n".join(textwrap.wrap(note, 80))
    figure.text(0.01, bottom, note, fontsize=8.5, color=GREY, va="top", linespacing=1.3)


def _draw_badges(figure: Figure, rows: Sequence[Row]) -> float:
    """Badges in lines below the figure; returns where there is room again."""
    height = 0.27 / figure.get_figheight()
    x, y = 0.02, -0.5 * height
    for row in rows:
        box = {"boxstyle": "round,pad=0.25", "facecolor": BADGES[row.verdict], "edgecolor": "none"}
        style = {"fontsize": 9, "color": "white", "fontweight": "bold", "va": "top", "bbox": box}
        text = figure.text(x, y, f"{MARKS[row.verdict]} {row.short}", **style)
        width = text.get_window_extent().width / figure.bbox.width
        if x > 0.02 and x + width > 0.99:
            x, y = 0.02, y - height
            text.set_position((x, y))
        x += width + 0.035
    return y - 1.1 * height if rows else y


def entitle(ax: Axes, text: str, letter: str = "", **options: Any) -> None:
    """The title of one panel, after its letter; `options` are those of `Axes.set_title`."""
    title = f"{letter}   {text}" if letter else text
    ax.set_title(title, loc="left", fontweight="bold", **options)


def set_ticks(axis: Axis, locator: Locator, form: str | Formatter = COUNT) -> None:
    """Ticks of a logarithmic axis where `locator` says, and none between them."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(form)


class _Shares(MaxNLocator):
    """Round percents, and none above 100, where there is room for a legend at most."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        ticks = np.asarray(super().tick_values(vmin, vmax))
        return ticks[ticks <= 1 + 1e-9]


def percent_axis(axis: Axis) -> None:
    """Ticks of a linear axis of shares as percents, such as 0.125 as 12.5%."""
    axis.set_major_locator(_Shares(8, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%")


def log_axis(ax: Axes, places: Sequence[float], form: str | Formatter = COUNT) -> None:
    """A logarithmic x-axis with ticks at `places`, and none between them."""
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(list(places)), form)


def stretch_steps(ax: Axes, settings: Settings, locator: Locator) -> None:
    """Training steps on a logarithmic axis, from the first evaluation on."""
    ax.set_xscale("log")
    ax.set_xlim(min(settings.eval_every, settings.steps / 2), settings.steps)
    set_ticks(ax.xaxis, locator)


def stretch_accuracy(
    ax: Axes,
    low: float,
    high: float,
    label: str = "test accuracy (logit scale)",
    ticks: Sequence[float] = ACCURACY_TICKS,
) -> None:
    """Accuracies from `low` to `high` on a logit axis: as much room near 100 % as near 0 %."""
    ax.set_ylim(low, high)  # before the scale, which warns where nothing could be drawn
    ax.set_yscale("logit", nonpositive="clip")
    within = [tick for tick in ticks if low <= tick <= high]
    set_ticks(ax.yaxis, FixedLocator(within), PercentFormatter(1, decimals=0))
    ax.set_ylabel(label)


def save(figure: Figure, path: Path | io.BytesIO) -> None:
    """Writes `figure` as a PNG on white; the same figure gives the same bytes."""
    room: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": MARGIN_INCHES}
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None}, **room)
