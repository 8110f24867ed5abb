"""Arrays of any library as NumPy's, in another dtype, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_empty(x: Any) -> bool:
    """Whether ``x`` is a shape without values: of jax.eval_shape, or of torch's meta device."""
    return isinstance(x, jax.ShapeDtypeStruct) or getattr(x, "is_meta", False)


def to_numpy(x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    # NumPy has no bfloat16 that torch knows of; float32 holds all narrower values.
    return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()


def cast(x: np.ndarray, dtype: Any) -> tuple[np.ndarray, str | None]:
    """``x`` as ``dtype``, and what is lost beyond rounding."""
    if np.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        return x, f"complex does not fit into {dtype}"
    with np.errstate(all="ignore"):
        y = x.astype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        lost = np.isfinite(x) & ~np.isfinite(y)
        fault = f"infinite in {dtype}"
    else:
        lost, fault = x != y, f"not the same in {dtype}"
    return y, f"{lost.sum()} of {lost.size} {fault}" if lost.any() else None


def refuse_losses(losses: Sequence[str]) -> None:
    if losses:
        raise ValueError(
            f"values do not fit into the dtype they are to have: {'; '.join(losses)}. Give the "
            "target a wider dtype, or cast the values yourself before."
        )
