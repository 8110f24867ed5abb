"""Which axes a norm keeps and which it reduces, and the dtype it computes in.

Inside the core every per-feature array has the rank of ``x`` with ones on the reduced axes,
so that it broadcasts without rank promotion. Users pass and receive the compact shape.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bnjax.core._checks import as_array, as_dtype

Axes = int | Sequence[int]


def canonical_axes(axes: Axes, ndim: int, name: str) -> tuple[int, ...]:
    """``axes`` as sorted non-negative ints; ``name`` is the argument an error should blame."""
    try:
        given = tuple(operator.index(a) for a in axes)  # type: ignore[union-attr]
    except TypeError:
        try:
            given = (operator.index(axes),)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name} must be an int or a sequence of ints, got {axes!r}.") from None
    if given and not ndim:
        raise ValueError(f"x must have at least one axis for {name}={axes!r}, got a scalar.")
    for a in given:
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{name}={axes!r} is out of range for an input of rank {ndim}: "
                f"every axis must lie in [{-ndim}, {ndim - 1}]."
            )
    canonical = tuple(sorted(a % ndim for a in given))
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"{name}={axes!r} names an axis twice for an input of rank {ndim}.")
    return canonical


def other_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes of a rank-``ndim`` array that are not in ``axes``."""
    return tuple(a for a in range(ndim) if a not in axes)


def whole_number(value, name: str, least: int) -> int:
    """``value`` as an int of at least ``least``, or an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}.")
    return number


def size_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Number of elements that a reduction over ``axes`` combines."""
    return math.prod(shape[a] for a in axes)


def expand(features: jax.Array, shape: tuple[int, ...], kept: tuple[int, ...], name: str):
    """Reshape a per-feature array to broadcast against ``shape``, checking that it fits.

    ``features`` has one entry a feature (``[shape[a] for a in kept]``) or is a scalar.
    """
    if features.ndim == 0:
        return features.reshape((1,) * len(shape))
    check_features(features.shape, shape, kept, name)
    return features.reshape(tuple(n if a in kept else 1 for a, n in enumerate(shape)))


def check_features(features: tuple[int, ...], shape: tuple[int, ...], kept, name: str) -> None:
    """Raise ``ValueError`` unless ``features`` is the shape of ``shape`` on its ``kept`` axes."""
    want = tuple(shape[a] for a in kept)
    if features != want:
        raise ValueError(
            f"{name} has shape {features}, but x of shape {shape} has features of shape {want} on "
            f"the kept axes {kept}. Name the feature axes of x with axis=, or give {name} of "
            f"shape {want}."
        )


def check_inexact(x: jax.Array, name: str = "x") -> None:
    """Raise ``TypeError`` unless ``x`` is floating or complex."""
    if not jnp.issubdtype(x.dtype, jnp.inexact) or _unsigned(x.dtype):
        raise TypeError(
            f"{name} must be floating point or complex, got {x.dtype}. "
            f"Cast it first, for example {name}.astype(jnp.float32)."
        )


def compute_dtype(*dtypes) -> jnp.dtype:
    """The dtype of statistics and arithmetic: the widest of ``dtypes``, at least float32."""
    with jax.numpy_dtype_promotion("standard"):
        widest = jnp.dtype(jnp.float32)
        for dtype in dtypes:
            widest = widest if narrow(dtype) else jnp.promote_types(widest, dtype)
        return widest


def narrow(dtype) -> bool:
    """Whether ``dtype`` is a float below 16 bits or an integer below 8, which JAX promotes to none.

    float32 holds the values of all of them.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits < 16
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8


def _unsigned(dtype) -> bool:
    """Whether ``dtype`` is floating, but has neither 0 nor negative numbers (float8_e8m0fnu)."""
    return jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).min) > 0


def at_least_float32(v: jax.Array) -> jax.Array:
    """``v`` in its compute dtype: half precision widened, all else as it is."""
    return v.astype(compute_dtype(v.dtype))


def inexact_dtype(*arrays) -> jnp.dtype:
    """The dtype Flax gives an output: the promotion of ``arrays`` (or None), never integer.

    Beside others a narrow dtype is the weaker one, as half precision is; two of them are float32.
    """
    with jax.numpy_dtype_promotion("standard"):
        dtypes = {jnp.dtype(a.dtype) for a in arrays if a is not None}
        if len(dtypes) > 1:
            dtypes = {d for d in dtypes if not narrow(d)} or {jnp.dtype(jnp.float32)}
        dtype = jnp.result_type(*dtypes)
        if narrow(dtype) and not jnp.issubdtype(dtype, jnp.floating):
            return jnp.dtype(jnp.float32)
        inexact = jnp.issubdtype(dtype, jnp.inexact)
        return dtype if inexact else jnp.promote_types(jnp.float32, dtype)


def output_dtype(dtype, x) -> jnp.dtype:
    """``dtype``, or that of ``x`` for None; or a clear error."""
    dtype = as_dtype(x.dtype if dtype is None else dtype)
    legal = jnp.complexfloating if jnp.iscomplexobj(x) else jnp.inexact
    if not jnp.issubdtype(dtype, legal):
        raise ValueError(f"dtype must be {legal.__name__} for x of {x.dtype}, got {dtype}.")
    if _unsigned(dtype):
        raise ValueError(f"dtype {dtype} has neither 0 nor negative numbers: y has both.")
    return dtype


def real_dtype(dtype) -> jnp.dtype:
    """The dtype of ``abs`` of a value of ``dtype``."""
    return jnp.finfo(dtype).dtype


def check_mask(mask, x: jax.Array) -> jax.Array | None:
    """``mask`` as a boolean array of the rank of ``x``, or a clear error."""
    if mask is None:
        return None
    mask = as_array(mask, "mask")
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"mask must be boolean (True counts), got {mask.dtype}. Pass mask.astype(bool)."
        )
    try:
        fits = jnp.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask of shape {mask.shape} does not broadcast to x of shape {x.shape}. Shapes align "
            "from the right: give a mask over examples trailing axes of size one, for example "
            "mask[:, None]."
        )
    return mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def zero_unless(counts: jax.Array | None, v: jax.Array) -> jax.Array:
    """``v`` where ``counts``, 0 elsewhere; all of ``v`` for None."""
    return v if counts is None else jnp.where(counts, v, 0)
