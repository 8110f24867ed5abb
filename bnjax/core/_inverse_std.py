"""The factor that a variance becomes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bnjax.core._axes import compute_dtype


def inverse_std(
    var: jax.Array,
    epsilon: float,
    count: jax.Array | None = None,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """``rsqrt(var + epsilon)`` in ``dtype`` at least; 0 for an empty set, so that y is bias."""
    inv_std = _rsqrt(var.astype(compute_dtype(var.dtype, dtype)) + epsilon)
    return inv_std if count is None else jnp.where(count > 0, inv_std, 0)


@jax.custom_jvp
def _rsqrt(v):
    return jax.lax.rsqrt(v)


_rsqrt.defjvps(lambda dv, inv_std, v: inverse_std_tangent(inv_std, dv))


def inverse_std_tangent(inv_std: jax.Array, dvar: jax.Array) -> jax.Array:
    r"""Tangent of :func:`inverse_std`, :math:`-\tfrac12 \sigma^{-3} \dot v`.

    Factor by factor: the cube of a deviation of 10¹³ is no float32 number, and these products are.
    """
    return -0.5 * inv_std * (inv_std * (inv_std * dvar))
