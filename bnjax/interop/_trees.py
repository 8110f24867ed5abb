"""Trees of arrays as programs save them: the arrays by path.

A path is one of strings, whatever the keys were.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Leaves = dict[tuple[str, ...], np.ndarray]


def arrays(tree: Any) -> Leaves:
    """Arrays and numbers in ``tree`` by path; all else, such as names of functions, is left out."""
    leaves: Leaves = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, np.ndarray | np.generic | int | float | complex):
            continue
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
        if path in leaves:
            raise ValueError(f"two arrays are called {'/'.join(path)}")
        leaves[path] = np.asarray(leaf)
    return {path: leaf for path, leaf in leaves.items() if is_numeric(leaf.dtype)}


def is_numeric(dtype: np.dtype) -> bool:
    """Whether numbers or truth values are in it, of NumPy's dtypes or JAX's."""
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))
