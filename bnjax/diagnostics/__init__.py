"""The health of running statistics: what is wrong with them, where, and how to mend it.

``report`` reads variables (:func:`bnjax.interop.load_variables` gives those of a checkpoint) and
returns a ``Report`` of each layer's ``LayerStatistics`` and of ``Finding`` after ``Finding``;
``Limits`` are its thresholds. ``python -m bnjax inspect CHECKPOINT`` prints it.
"""

from bnjax.diagnostics._checks import Finding
from bnjax.diagnostics._layers import LayerStatistics
from bnjax.diagnostics._limits import Limits
from bnjax.diagnostics._report import Report, report

__all__ = ["Finding", "LayerStatistics", "Limits", "Report", "report"]
