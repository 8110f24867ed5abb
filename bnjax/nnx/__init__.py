"""Flax nnx modules: drop-in replacements that hold variables and call :mod:`bnjax`.

``one_update`` lets several passes through them be one update of the running statistics.
"""

from bnjax.nnx._batch_norm import BatchNorm
from bnjax.nnx._batch_renorm import BatchRenorm
from bnjax.nnx._feature_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from bnjax.nnx._one_update import one_update
from bnjax.nnx._weight_norms import SpectralNorm, WeightNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
    "one_update",
]
