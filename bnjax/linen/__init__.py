"""Flax linen modules: drop-in replacements that create variables and call :mod:`bnjax.core`."""

from bnjax.linen._batch_norm import BatchNorm

__all__ = ["BatchNorm"]
