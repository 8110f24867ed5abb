"""Arithmetic of surgery: on the host, in double precision, rounded once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def double(v) -> np.ndarray:
    """``v`` in double precision, in NumPy: nothing is compiled for each shape."""
    v = np.asarray(v)
    return v.astype(np.promote_types(v.dtype, np.float64))  # complex stays complex


def narrow(wide: np.ndarray, like, name: str) -> jax.Array:
    """``wide`` in the dtype of ``like`` and on its devices; an error if that cannot hold it."""
    with np.errstate(over="ignore"):
        rounded = wide.astype(like.dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"{name} folded reaches {np.abs(wide).max():.3g}, which is not finite in "
            f"{rounded.dtype}: fold in float32 or bfloat16, or see what is wrong with the norm."
        )
    placed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(rounded, like.sharding) if placed else jnp.asarray(rounded)
