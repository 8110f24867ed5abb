"""Variables as a file of safetensors, and the arrays in one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import _variables
from bnjax.interop._collections import COLLECTIONS
from bnjax.interop._optional import optional
from bnjax.interop._trees import Leaves

CHECKSUM = "checksum"
# Of safetensors, and of JAX.
FLOAT8 = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def save_safetensors(variables: Any, path: str | Path) -> None:
    """Write parameters and running statistics as a safetensors file, with a checksum.

    Names are ``"params/block/bn/scale"``, ``"batch_stats/block/bn/mean"``; any dtype of JAX that
    the format knows, bfloat16 among them. :func:`load_variables` reads it.

    Args:
      variables: linen's variables or an ``nnx.State``, boxed or frozen ones too; other
        collections are left out.
      path: the file, replaced if it is there.

    Raises:
      TypeError: ``variables`` is neither, or a leaf is no array or has a dtype that the format
        does not know (int4, complex128).
      ValueError: two leaves would have one name, as ``{"a/b": ...}`` beside ``{"a": {"b": ...}}``.
      ImportError: safetensors is not installed.

    Example:
      >>> import os, tempfile, numpy as np
      >>> from bnjax.interop import load_variables, save_safetensors
      >>> variables = {"batch_stats": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "model.safetensors")
      ...     save_safetensors(variables, path)
      ...     print(load_variables(path)["batch_stats"]["bn"]["mean"])
      [0. 0.]

    Source: the safetensors format. PyTorch's files have names with dots and carry no checksum.
    """
    flat, _ = _variables.flatten(variables)
    leaves: dict[str, np.ndarray] = {}
    for key, leaf in flat.items():
        if key[0] not in COLLECTIONS:
            continue
        name = _variables.name(key)
        if name in leaves:
            raise ValueError(f"two leaves of variables are called {name}. Rename one of them.")
        leaves[name] = _to_write(name, leaf)
    metadata = {CHECKSUM: str(checksum(leaves))}
    numpy, error_type = optional("safetensors.numpy"), optional("safetensors").SafetensorError
    try:
        numpy.save_file(leaves, path, metadata=metadata)
    except error_type as error:
        unknown = [n for n, leaf in leaves.items() if f'"{leaf.dtype.name}"' in str(error)]
        if not unknown:
            raise
        few = ", ".join(f"{name} of {leaves[name].dtype}" for name in unknown[:3])
        raise TypeError(f"safetensors has no dtype for {few}. Cast before you save.") from error


def checksum(leaves: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of all names and bytes."""
    value = 0
    for name in sorted(leaves):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(leaves[name]).tobytes(), value)
    return value


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins so: the length of its header, far below 2**32, and this, in JSON."""
    return head[4:9] == b"\0\0\0\0{"


def read_safetensors(path: Path) -> Leaves:
    """Its arrays, by flat names."""
    safetensors = optional("safetensors")
    leaves, narrow = {}, []
    with safetensors.safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            try:
                leaves[name] = file.get_tensor(name)
            except AttributeError:  # a dtype that safetensors looks for in NumPy itself
                narrow.append(name)
        stored = (file.metadata() or {}).get(CHECKSUM, "")
    if narrow:
        raw = dict(safetensors.deserialize(path.read_bytes()))
        for name in narrow:
            dtype = jnp.dtype(FLOAT8[raw[name]["dtype"]])
            leaves[name] = np.frombuffer(raw[name]["data"], dtype).reshape(raw[name]["shape"])
    if stored.isdecimal():  # as save_safetensors writes it
        verify(leaves, int(stored))
    return {(name,): leaf for name, leaf in leaves.items()}


def verify(leaves: Mapping[str, np.ndarray], stored: int) -> None:
    """Raise unless ``stored`` is the checksum of ``leaves``."""
    if stored != checksum(leaves):
        raise ValueError("it is damaged, the checksum is wrong")


def _to_write(name: str, leaf: Any) -> np.ndarray:
    """``leaf`` as an array of NumPy, in the order of bytes that files have."""
    is_array = hasattr(leaf, "__array__") or isinstance(leaf, int | float | complex)
    if not is_array or jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jax.dtypes.prng_key):
        raise TypeError(
            f"variables must hold arrays of numbers, got {type(leaf).__name__} at {name}. Of a key "
            "save jax.random.key_data(key)."
        )
    array = np.asarray(leaf, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
