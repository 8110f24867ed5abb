"""Which axes a norm keeps and which it reduces, and the dtype it computes in.

Inside the core every per-feature array has the rank of ``x`` with ones on the reduced axes,
so that it broadcasts without rank promotion. Users pass and receive the compact shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Axes = int | Sequence[int]
Shape = tuple[int, ...]


def other_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes of a rank-``ndim`` array that are not in ``axes``."""
    return tuple(a for a in range(ndim) if a not in axes)


def size_of(shape: Shape, axes: tuple[int, ...]) -> int:
    """Number of elements that a reduction over ``axes`` combines."""
    return math.prod(shape[a] for a in axes)


def zero_unless(counts: jax.Array | None, v: jax.Array) -> jax.Array:
    """``v`` where ``counts``, 0 elsewhere; all of ``v`` for None."""
    return v if counts is None else jnp.where(counts, v, 0)


@functools.cache  # 10 μs of an eager call
def compute_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype of statistics and arithmetic: the widest of ``dtypes``, at least float32."""
    with jax.numpy_dtype_promotion("standard"):
        widest = jnp.dtype(jnp.float32)
        for dtype in dtypes:
            widest = widest if narrow(dtype) else jnp.promote_types(widest, dtype)
        return widest


def at_least_float32(v: jax.Array) -> jax.Array:
    """``v`` in its compute dtype: half precision widened, all else as it is."""
    return v.astype(compute_dtype(v.dtype))


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of ``abs`` of a value of ``dtype``."""
    return jnp.finfo(dtype).dtype


def narrow(dtype: DTypeLike) -> bool:
    """Whether ``dtype`` is a float below 16 bits or an integer below 8, which JAX promotes to none.

    float32 holds the values of all of them.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits < 16
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8


def unsigned(dtype: DTypeLike) -> bool:
    """Whether ``dtype`` is floating, but has neither 0 nor negative numbers (float8_e8m0fnu)."""
    return jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).min) > 0
