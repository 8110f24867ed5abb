"""Every error that a user of the core can make, once: what came, what is legal, how to mend it.

All is checked where a public function is entered, at trace time; behind that door nothing is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import Axes, Shape, unsigned


def as_array(v: Any, name: str) -> jax.Array:
    """``v`` as an array, or an error that names it."""
    try:
        if not isinstance(v, (str, bytes)):  # of which NumPy thinks as of dtypes
            return jnp.asarray(v)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be an array or a number, got {_brief(v)}.")


def as_inexact(v: Any, name: str) -> jax.Array:
    """``v`` as a floating or complex array, or an error that names it."""
    v = as_array(v, name)
    if not jnp.issubdtype(v.dtype, jnp.inexact) or unsigned(v.dtype):
        raise TypeError(
            f"{name} must be floating point or complex, got {v.dtype}. "
            f"Cast it first, for example {name}.astype(jnp.float32)."
        )
    return v


def as_mask(mask: ArrayLike | None, x: jax.Array) -> jax.Array | None:
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


def as_features(
    v: ArrayLike, name: str, shape: Shape, kept: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    """``v`` as one number a feature of ``shape``, or one for all.

    ``dtype`` is that of the arithmetic: it must not lose an imaginary part.
    """
    features = as_array(v, name)
    check_complex(features, name, dtype)
    if features.ndim:
        check_features(features.shape, name, shape, kept)
    return features


def check_complex(v: ArrayLike, name: str, dtype: DTypeLike) -> None:
    """Raise ``TypeError`` if arithmetic in ``dtype`` would lose an imaginary part of ``v``."""
    if jnp.iscomplexobj(v) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is complex, but the result is of real dtype, which would lose its imaginary "
            f"part. Make x complex, or {name} real."
        )


def check_features(found: Shape, name: str, shape: Shape, kept: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``found`` is the shape of ``shape`` on its ``kept`` axes."""
    want = tuple(shape[a] for a in kept)
    if found != want:
        raise ValueError(
            f"{name} has shape {found}, but x of shape {shape} has features of shape {want} on "
            f"the kept axes {kept}. Name the feature axes of x with axis=, or give {name} of "
            f"shape {want}."
        )


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


def as_dtype(dtype: Any, name: str = "dtype") -> jnp.dtype:
    """``dtype`` as a dtype, or an error that names it."""
    try:
        return jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name} must be a dtype such as jnp.float32, got {dtype!r}.") from None


def output_dtype(dtype: DTypeLike | None, x: jax.Array) -> jnp.dtype:
    """``dtype``, or that of ``x`` for None; or a clear error."""
    dtype = as_dtype(x.dtype if dtype is None else dtype)
    legal = jnp.complexfloating if jnp.iscomplexobj(x) else jnp.inexact
    if not jnp.issubdtype(dtype, legal):
        raise ValueError(f"dtype must be {legal.__name__} for x of {x.dtype}, got {dtype}.")
    if unsigned(dtype):
        raise ValueError(f"dtype {dtype} has neither 0 nor negative numbers: y has both.")
    return dtype


def whole_number(value: Any, name: str, least: int) -> int:
    """``value`` as an int of at least ``least``, or an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}.")
    return number


def check_epsilon(epsilon: Any) -> float:
    """``epsilon`` as a Python float, or a clear error."""
    if isinstance(epsilon, Tracer):
        raise TypeError(
            "epsilon must be a number known at trace time, got a traced value. Make it a static "
            "argument of the function under jit."
        )
    try:
        value = float(epsilon)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf") or isinstance(epsilon, str):
        raise ValueError(
            f"epsilon must be a finite non-negative number, got {epsilon!r}. "
            "It is added to the variance; 1e-5 is usual."
        )
    return value


def check_decay(decay: Any) -> None:
    """Raise unless ``decay`` is None, a number in [0, 1], or a scalar array (perhaps traced)."""
    if decay is None or (isinstance(decay, float) and 0 <= decay <= 1):
        return
    scalar = is_real(decay) and jnp.ndim(decay) == 0
    value = known_value(decay) if scalar else None
    if scalar and (value is None or 0 <= value <= 1):
        return
    raise ValueError(
        "decay (momentum in the Flax modules) must lie in [0, 1] or be None (average of all "
        f"updates), got {decay!r}. It is the weight of the old value: PyTorch's momentum=0.1 is "
        "decay=0.9."
    )


def check_ddof(ddof: Any) -> int:
    """``ddof``, or an error unless it is 0 or 1."""
    if isinstance(ddof, bool) or ddof not in (0, 1):
        raise ValueError(
            f"ddof must be 0 (population variance) or 1 (sample variance), got {ddof!r}."
        )
    return int(ddof)


def check_switch(name: str, value: Any) -> bool:
    """``value`` as a bool, or an error that names it."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be a Python bool, got a traced value: the two modes are two programs. "
            f"Make it static, for example with jax.jit(..., static_argnames={name!r})."
        )
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {_brief(value)}.")
    return bool(value)


def check_choice(name: str, value: Any, legal: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``legal``."""
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}.")


def check_type(name: str, value: Any, kind: type | tuple[type, ...], remedy: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a ``kind``, or the first of several."""
    if not isinstance(value, kind):
        wanted = kind[0] if isinstance(kind, tuple) else kind
        raise TypeError(
            f"{name} must be a bnjax.{wanted.__name__}, got {type(value).__name__}. {remedy}"
        )


def known_value(v: Any) -> np.ndarray | None:
    """The value of a number or an array; None where it is traced, or lies on another process."""
    if isinstance(v, Tracer) or not getattr(v, "is_fully_addressable", True):
        return None
    return np.asarray(v)


def is_real(v: Any) -> bool:
    """Whether ``v`` is a real number or a real array, traced perhaps."""
    if isinstance(v, (jax.Array, np.ndarray, np.generic)):
        return jnp.issubdtype(v.dtype, jnp.floating) or jnp.issubdtype(v.dtype, jnp.integer)
    return isinstance(v, (int, float)) and not isinstance(v, bool)


def _brief(v: Any) -> str:
    """``v`` itself where that is short, else its type."""
    return repr(v) if len(repr(v)) < 40 else type(v).__name__
