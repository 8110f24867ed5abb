"""Batches that a loader cannot change any more."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def owned(batch: Any) -> Any:
    """``batch`` with a copy of each NumPy array in it; JAX's own arrays as they are.

    A loader may refill one buffer for the next batch. JAX reads NumPy arrays after the call that
    got them has returned, and on a CPU takes their memory for its own, ``jnp.array(copy=True)``
    among the callers: so the copy is NumPy's, which is made when this returns.
    """
    return jax.tree.map(lambda v: np.array(v) if isinstance(v, np.ndarray) else v, batch)
