"""Trees of arrays as programs save them: the arrays by path; and those that Flax wrote in msgpack.

A path is one of strings, whatever the keys were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Leaves = dict[tuple[str, ...], np.ndarray]
# What Flax writes in the place of an array that several processes hold together.
_ELSEWHERE = "//GDAPlaceholder:"


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


def is_msgpack(head: bytes) -> bool:
    """Whether a file begins as a map that is empty or has a string for a key, as Flax writes it."""
    start = {b"\xde": 3, b"\xdf": 5}.get(head[:1], 1)
    is_map = start > 1 or b"\x80" <= head[:1] <= b"\x8f"
    key = head[start : start + 1]
    is_string = b"\xa0" <= key <= b"\xbf" or b"\xd9" <= key <= b"\xdb"
    return head == b"\x80" or (is_map and is_string)


def read_msgpack(path: Path) -> Leaves:
    """The arrays in a file of ``flax.serialization``."""
    from flax import serialization

    tree = serialization.msgpack_restore(path.read_bytes())
    texts = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, str))
    if any(text.startswith(_ELSEWHERE) for text in texts):
        raise ValueError(
            "arrays of several processes lie in a folder beside it. Restore it with "
            "flax.training.checkpoints, and save it with orbax"
        )
    return arrays(tree)
