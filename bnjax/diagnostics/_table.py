"""A report as a table of rich: one row a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnjax.diagnostics._findings import Findings
from bnjax.diagnostics._layers import LayerStatistics, shown
from bnjax.interop._optional import optional

COLORS = {"error": "bold red", "warning": "yellow"}


def make_table(report: Findings) -> Any:
    """The number that is worst for each layer's channels, and the names of its findings."""
    module, text = optional("rich.table"), optional("rich.text").Text
    table = module.Table(
        box=optional("rich.box").SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="σ = √(variance + ε); in brackets: channels concerned",
    )
    table.add_column("\nlayer", overflow="fold")
    for title in ("chan-\nnels", "most\n|mean|/σ", "least\nσ", "least\n|scale|"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("\nfindings", overflow="fold", min_width=22)
    findings = report.of_layers()
    for layer in report.layers:
        found = findings[layer.name]
        names = [text(f"{f.check} ({len(f.channels)})", style=COLORS[f.severity]) for f in found]
        table.add_row(
            text(shown(layer.name)),
            f"{layer.mean.size:,}",
            *_numbers(layer, report.settings.epsilon),
            text("\n").join(names) if names else text("ok", style="green"),
        )
    return table


def _numbers(layer: LayerStatistics, epsilon: float) -> list[str]:
    size = np.array([]) if layer.scale is None else np.abs(layer.scale)
    extremes = ((np.max, layer.offset(epsilon)), (np.min, layer.std(epsilon)), (np.min, size))
    finite = [(extreme, values[np.isfinite(values)]) for extreme, values in extremes]
    return [f"{extreme(values):.3g}" if values.size else "-" for extreme, values in finite]
