"""Flax nnx modules: drop-in replacements that hold variables and call :mod:`bnjax.core`."""

from bnjax.nnx._batch_norm import BatchNorm

__all__ = ["BatchNorm"]
