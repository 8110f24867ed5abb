"""bnjax: batch normalisation for JAX, accurate, fast and explicit.

The functional core is here and needs jax alone. ``bnjax.linen`` and ``bnjax.nnx`` hold drop-in
Flax modules, ``bnjax.training`` the step around them and the statistics after it;
``bnjax.surgery`` changes a trained model, ``bnjax.interop`` carries it over from and to other
libraries, ``bnjax.diagnostics`` tells what ails it; ``bnjax.testing`` is the float64 reference.
Import them by name.
"""

from bnjax import _oldest  # noqa: F401 (before what an older JAX lacks)
from bnjax.core import (
    BatchStats,
    Moments,
    PendingUpdate,
    SpectralState,
    batch_norm,
    batch_renorm,
    begin_update,
    dataset_moments,
    group_norm,
    init_batch_stats,
    init_spectral_norm,
    instance_norm,
    layer_norm,
    merge,
    moments,
    normalize,
    rms_norm,
    save_norm_statistics,
    scale_shift,
    spectral_norm,
    update_batch_stats,
    weight_norm,
    weight_standardize,
)

__version__ = "0.1.0"

__all__ = [
    "BatchStats",
    "Moments",
    "PendingUpdate",
    "SpectralState",
    "batch_norm",
    "batch_renorm",
    "begin_update",
    "dataset_moments",
    "group_norm",
    "init_batch_stats",
    "init_spectral_norm",
    "instance_norm",
    "layer_norm",
    "merge",
    "moments",
    "normalize",
    "rms_norm",
    "save_norm_statistics",
    "scale_shift",
    "spectral_norm",
    "update_batch_stats",
    "weight_norm",
    "weight_standardize",
]
