"""Checks of other arguments than axes: what is known at trace time is an error that says so."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def as_array(v, name: str) -> jax.Array:
    """``v`` as an array, or an error that names it."""
    try:
        if not isinstance(v, (str, bytes)):  # of which NumPy thinks as of dtypes
            return jnp.asarray(v)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be an array or a number, got {_brief(v)}.")


def known_value(v) -> np.ndarray | None:
    """The value of a number or an array; None where it is traced, or lies on another process."""
    if isinstance(v, Tracer) or not getattr(v, "is_fully_addressable", True):
        return None
    return np.asarray(v)


def is_real(v) -> bool:
    """Whether ``v`` is a real number or a real array, traced perhaps."""
    if isinstance(v, (jax.Array, np.ndarray, np.generic)):
        return jnp.issubdtype(v.dtype, jnp.floating) or jnp.issubdtype(v.dtype, jnp.integer)
    return isinstance(v, (int, float)) and not isinstance(v, bool)


def check_switch(name: str, value) -> bool:
    """``value`` as a bool, or an error that names it."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be a Python bool, got a traced value: the two modes are two programs. "
            f"Make it static, for example with jax.jit(..., static_argnames={name!r})."
        )
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {_brief(value)}.")
    return bool(value)


def check_choice(name: str, value, legal) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``legal``."""
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}.")


def check_type(name: str, value, kind: type, remedy: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be a bnjax.{kind.__name__}, got {type(value).__name__}. {remedy}"
        )


def as_dtype(dtype: Any, name: str = "dtype") -> jnp.dtype:
    """``dtype`` as a dtype, or an error that names it."""
    try:
        return jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name} must be a dtype such as jnp.float32, got {dtype!r}.") from None


def param_dtype_of(dtype: Any) -> jnp.dtype:
    """The dtype of a module's parameters: floating or complex, or an error."""
    found = as_dtype(dtype, "param_dtype")
    if not jnp.issubdtype(found, jnp.inexact):
        raise ValueError(f"param_dtype must be floating or complex, got {found}.")
    return found


def as_mask(mask) -> jax.Array | None:
    """The mask of a module, where integers may stand for booleans as they do in Flax.

    Floats are weights, which no mask holds; Flax takes all but 0 for True, without a word.
    """
    if mask is None:
        return None
    mask = as_array(mask, "mask")
    if not (mask.dtype == jnp.bool_ or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise TypeError(
            f"mask must be boolean (True counts) or of integers, got {mask.dtype}: examples cannot "
            "be weighted. Pass mask > 0, or mask.astype(bool)."
        )
    return mask.astype(bool)


def _brief(v) -> str:
    """``v`` itself where that is short, else its type."""
    return repr(v) if len(repr(v)) < 40 else type(v).__name__
