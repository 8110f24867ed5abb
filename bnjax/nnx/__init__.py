"""Flax nnx modules: drop-in replacements that hold variables and call :mod:`bnjax.core`."""

from bnjax.nnx._batch_norm import BatchNorm
from bnjax.nnx._one_update import one_update

__all__ = ["BatchNorm", "one_update"]
