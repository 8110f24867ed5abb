"""What a table or a figure reads of a report."""

from __future__ import annotations

from typing import Protocol

from bnjax.diagnostics._checks import Finding
from bnjax.diagnostics._layers import LayerStatistics
from bnjax.diagnostics._limits import Settings


class Findings(Protocol):
    """The numbers of each layer, and what was found; :class:`bnjax.diagnostics.Report` is one."""

    @property
    def layers(self) -> tuple[LayerStatistics, ...]:
        """The numbers of every layer with running statistics."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, layer by layer."""
        ...

    @property
    def settings(self) -> Settings:
        """What the report was asked for."""
        ...

    def of_layers(self) -> dict[str, list[Finding]]:
        """The findings of each layer, by its name."""
        ...

    def headline(self) -> str:
        """How many layers, channels, errors and warnings there are."""
        ...
