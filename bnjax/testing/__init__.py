"""What tests and benchmarks share: an oracle to compare with and a table of layers to examine.

``batch_norm_forward``, ``batch_norm_backward``, ``batch_norm_jvp``, ``moments``, ``merge``,
``normalize``, ``scale_shift`` and ``update_batch_stats`` are the float64 NumPy oracle, derived by
hand and independent of the library; ``relative_error`` is the one number by which results are
compared. A ``Layer`` of ``LAYERS`` is a pure ``init`` and ``apply``, so that one test can examine
them all.
"""

from bnjax.testing._layers import LAYERS, Layer
from bnjax.testing._oracle import (
    Cache,
    Forward,
    Moments,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_jvp,
    merge,
    moments,
    normalize,
    relative_error,
    scale_shift,
    update_batch_stats,
)

__all__ = [
    "LAYERS",
    "Cache",
    "Forward",
    "Layer",
    "Moments",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_jvp",
    "merge",
    "moments",
    "normalize",
    "relative_error",
    "scale_shift",
    "update_batch_stats",
]
