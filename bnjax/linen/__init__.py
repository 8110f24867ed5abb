"""Flax linen modules: drop-in replacements that create variables and call :mod:`bnjax`."""

from bnjax.linen._batch_norm import BatchNorm
from bnjax.linen._batch_renorm import BatchRenorm
from bnjax.linen._feature_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from bnjax.linen._weight_norms import SpectralNorm, WeightNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
]
