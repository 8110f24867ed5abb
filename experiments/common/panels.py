"""A legend for several panels, and the part of a sweep that tells networks apart."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.plots import percent_axis


def legend_above(figure: Figure, ax: Axes, columns: int, inches: float = 0.3) -> None:
    """The legend of `ax` above all panels, where room of that height is kept for it.

    Inside of the figure, other than "outside upper": `experiments.common.plots.frame` adds a title
    above it.
    """
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - inches / figure.get_figheight()))
    options: dict[str, Any] = {"frameon": False, "fontsize": 9, "columnspacing": 1.2}
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.0}
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=columns, handlelength=1.9, **options, **place)


def near_best(ax: Axes, points: float = 0.1) -> None:
    """Accuracies down to `points` below the best line, or the best of the worst one.

    Those of networks that diverge are cut.
    """
    peaks = [float(np.nanmax(np.asarray(line.get_ydata(), float))) for line in ax.lines]
    low = min(max(peaks) - points, min(peaks) - points / 5)
    ax.set_ylim(max(low, 0), min(max(peaks) + points / 5, 1))
    percent_axis(ax.yaxis)
