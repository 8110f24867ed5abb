"""A report as a figure: one row a layer, one panel a quantity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bnjax.diagnostics._findings import Findings
from bnjax.diagnostics._layers import LayerStatistics, shown
from bnjax.diagnostics._limits import FLOAT16_MAX, ROUNDING, Settings, active_quantile
from bnjax.diagnostics._rules import relative_bias, shift
from bnjax.interop._optional import optional

# Okabe and Ito's colours, told apart under the common kinds of colour blindness.
BLUE, ORANGE, SHADE, GREY = "#0072B2", "#D55E00", "#FBE6D8", "#5A5A5A"
MARKS = {"error": "X", "warning": "o"}
MARK: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.4}
# Inches; 10 in shown 850 pixels wide: 9 points are 11 pixels. More than four panels need more.
WIDTH, PANEL, ROW, MARGIN = 10.0, 1.3, 0.24, 1.35
NAMED = 2  # findings that are named at the end of a row
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
}


class Panel(NamedTuple):
    """One quantity of all layers: how to get it, its axis, and where it is healthy."""

    title: str
    values: Callable[[LayerStatistics], np.ndarray | None]  # (C,)
    scale: str
    view: tuple[float, float]  # what lies beyond is drawn at the edge
    healthy: tuple[float, float]
    checks: tuple[str, ...]  # whose channels to mark


def make_figure(report: Findings) -> Any:
    """Median, 5-95 % and full range of each layer's channels; those with findings are marked."""
    matplotlib, module = optional("matplotlib"), optional("matplotlib.figure")
    panels = _panels(report.settings) + _compared(report)
    with matplotlib.rc_context(STYLE):
        width = WIDTH + PANEL * (len(panels) - 4)
        size = (width, MARGIN + ROW * max(len(report.layers), 3))
        figure = module.Figure(size, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, report)
        _name_rows(axes[0], axes[-1], report)
        figure.suptitle(report.headline(), fontsize=10)
        _add_legend(figure, report)
    return figure


def _panels(settings: Settings) -> list[Panel]:
    limits, epsilon = settings.limits, settings.epsilon
    most = limits.rounding / ROUNDING["bfloat16"]
    deviation = float(np.sqrt(2 * epsilon)), float(np.sqrt(FLOAT16_MAX))
    return [
        Panel(
            "offset of inputs\n|mean| / σ",
            lambda layer: layer.offset(epsilon),
            "log",
            (1e-2, np.inf),
            (0, most),
            ("large offset",),
        ),
        Panel(
            "deviation of inputs\nσ = √(var + ε)",
            lambda layer: layer.std(epsilon),
            "log",
            (0, np.inf),
            deviation,
            ("tiny variance", "negative variance", "float16 overflow"),
        ),
        Panel(
            "scale of outputs\n|scale|",
            lambda layer: None if layer.scale is None else np.abs(layer.scale),
            "log",
            (limits.scale / 10, np.inf),
            (limits.scale, np.inf),
            ("dead",),
        ),
        Panel(
            "place of outputs\nbias / |scale|",
            lambda layer: relative_bias(layer, settings),
            "linear",
            (-8, 8),
            (active_quantile(settings), np.inf),
            ("dead under ReLU", "saturated"),
        ),
    ]


def _compared(report: Findings) -> list[Panel]:
    """Panels of what only data or a history can tell."""
    settings = report.settings

    def gap(layer):
        return None if layer.batch is None else shift(layer, layer.batch, settings.epsilon)

    def drift(layer):
        return shift(layer.history[-1], layer.history[-2], settings.epsilon)

    view, healthy = (1e-3, np.inf), (0, settings.limits.shift)
    panels = []
    if any(layer.batch is not None for layer in report.layers):
        title = "train/eval gap\nof the mean, in σ"
        panels.append(Panel(title, gap, "log", view, healthy, ("train/eval gap",)))
    if all(len(layer.history) > 1 for layer in report.layers):
        title = "last move\nof the mean, in σ"
        panels.append(Panel(title, drift, "log", view, healthy, ("still moving",)))
    return panels


def _draw_panel(ax: Any, panel: Panel, report: Findings) -> None:
    ax.set(title=panel.title, xscale=panel.scale)
    findings = report.of_layers()
    for row, layer in enumerate(report.layers):
        values = panel.values(layer)
        if values is None:
            continue
        values = np.clip(values, *panel.view)
        _draw_row(ax, row, values[np.isfinite(values)])
        for finding in findings[layer.name]:
            if finding.check in panel.checks:
                marked = values[list(finding.channels)]
                style = MARKS[finding.severity]
                ax.plot(marked, np.full(marked.shape, row), style, color=ORANGE, **MARK)
    left, right = _range(ax, panel.scale)
    low, high = panel.healthy
    for start, end in ((left, min(low, right)), (max(high, left), right)):
        if start < end:
            ax.axvspan(start, end, color=SHADE, zorder=0, linewidth=0)
    ax.set_xlim(left, right)
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)


def _range(ax: Any, scale: str) -> tuple[float, float]:
    """A range wide enough to tell what differs from what is nearly the same: whole decades."""
    left, right = ax.get_xlim()
    if scale == "linear":
        return min(left, -1), max(right, 1)
    return 10 ** np.floor(np.log10(left)), 10 ** np.ceil(np.log10(right))


def _draw_row(ax: Any, row: int, values: np.ndarray) -> None:
    if not values.size:
        return
    least, low, middle, high, most = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    ax.plot([least, most], [row, row], color=BLUE, linewidth=0.8)
    ax.plot([low, high], [row, row], color=BLUE, linewidth=5, alpha=0.35, solid_capstyle="butt")
    ax.plot([middle], [row], "|", color=BLUE, markersize=7, markeredgewidth=2)


def _name_rows(left: Any, right: Any, report: Findings) -> None:
    """Names of layers on the left, and of their findings on the right."""
    names, findings = [shown(layer.name) for layer in report.layers], report.of_layers()
    left.set_yticks(range(len(names)), names, parse_math=False)  # "$" is a letter as any other
    left.set_ylim(len(report.layers) - 0.4, -0.6)
    for row, layer in enumerate(report.layers):
        found = findings[layer.name]
        text = ", ".join(f"{f.check} ({len(f.channels)})" for f in found[:NAMED])
        text += f" + {len(found) - NAMED}" if len(found) > NAMED else ""
        weight = "bold" if any(f.severity == "error" for f in found) else "normal"
        style = {"va": "center", "color": ORANGE, "fontsize": 8, "fontweight": weight}
        right.text(1.05, row, text, transform=right.get_yaxis_transform(), **style)


def _add_legend(figure: Any, report: Findings) -> None:
    lines = optional("matplotlib.lines").Line2D
    handles = [
        lines([], [], color=BLUE, marker="|", linestyle="", markeredgewidth=2, label="median"),
        lines([], [], color=BLUE, linewidth=5, alpha=0.35, label="5–95 % of the channels"),
        lines([], [], color=BLUE, linewidth=0.8, label="all channels"),
        lines([], [], color=SHADE, linewidth=8, label="beyond a limit"),
    ]
    for severity, style in MARKS.items():
        if any(finding.severity == severity for finding in report.findings):
            handles.append(lines([], [], color=ORANGE, marker=style, linestyle="", label=severity))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
