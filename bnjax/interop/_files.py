"""Checkpoints on disk as variables, and back: orbax, safetensors, msgpack and npz.

What a file is, its first bytes say, not its name. Nothing that is read can run code: pickles are
refused unread.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import _variables
from bnjax.interop._collections import COLLECTIONS, to_variables
from bnjax.interop._optional import optional

Leaves = dict[tuple[str, ...], np.ndarray]
CHECKSUM = "checksum"
LEGAL = (
    "Legal are a folder written by orbax, a .safetensors file, a .msgpack file of "
    "flax.serialization, and an .npz file of arrays"
)

# How tensorstore, which reads for orbax, begins its messages.
DAMAGE = {
    "OUT_OF_RANGE": "a file is cut short",
    "DATA_LOSS": "a file is broken",
    "FAILED_PRECONDITION": "a file is broken",
    "NOT_FOUND": "a file is missing",
}


def load_variables(path: str | Path) -> dict[str, Any]:
    """The variables in a checkpoint, as linen has them.

    Reads a folder of orbax (``StandardSave``, ``PyTreeSave``, composite items; of a
    ``CheckpointManager`` the newest step), and files of safetensors, of ``flax.serialization``
    (msgpack) and of ``numpy.savez``. The first bytes say which it is; pickles, hence files of
    ``torch.save``, are refused and never run.

    Whatever tree was saved, ``batch_stats`` and the ``params`` beside them are found: linen's
    variables, a training state such as :class:`bnjax.training.TrainState` (of which the rest is
    left out), an ``nnx.State``, flat names (``"params/bn/scale"``, ``"bn.scale"``), and torch's
    ``state_dict``, whose layers with ``running_mean`` and ``running_var`` get Flax's names.

    Args:
      path: the folder or file.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, nested dicts of NumPy arrays; a collection without
      leaves is left out. Integer keys have become strings, as orbax stores them.

    Raises:
      ValueError: there is nothing, it is damaged, or of no known kind. (A changed byte inside an
        array shows where the checkpoint carries a checksum, as :func:`save_safetensors` writes
        it, and in .npz; msgpack, other safetensors and orbax itself do not notice.)
      ImportError: orbax or safetensors is needed and not installed.

    Example:
      >>> import os, tempfile, flax, numpy as np
      >>> from bnjax.interop import load_variables
      >>> stats = {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "model.msgpack")
      ...     with open(path, "wb") as file:
      ...         _ = file.write(flax.serialization.to_bytes({"step": 7, "batch_stats": stats}))
      ...     print(load_variables(path)["batch_stats"]["bn"]["var"])
      [1. 1.]

    Source: the formats' own libraries; each needs the tree or the kind of file to be known
    beforehand. PyTorch's ``torch.load`` runs pickles unless told otherwise.
    """
    path = Path(path)
    kind, read = _kind(path)
    try:
        leaves = read(path)
        _verify(leaves)
    except ImportError:
        raise
    except Exception as error:  # each library has its own errors, and orbax those of many
        raise ValueError(f"{path}: cannot be read as {kind}: {_one_line(error)}.") from error
    if not leaves:
        raise ValueError(f"{path}: {kind} without any array.")
    return to_variables(leaves)


def save_safetensors(variables: Any, path: str | Path) -> None:
    """Write parameters and running statistics as a safetensors file, with a checksum.

    Names are ``"params/block/bn/scale"``, ``"batch_stats/block/bn/mean"``; any dtype of JAX that
    the format knows, bfloat16 among them. :func:`load_variables` reads it.

    Args:
      variables: linen's variables or an ``nnx.State``; other collections are left out.
      path: the file, replaced if it is there.

    Raises:
      TypeError: ``variables`` is neither.
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
    arrays = {
        _variables.name(path): np.ascontiguousarray(leaf)
        for path, leaf in flat.items()
        if path[0] in COLLECTIONS
    }
    metadata = {CHECKSUM: str(checksum(arrays))}
    optional("safetensors.numpy").save_file(arrays, path, metadata=metadata)


def checksum(leaves: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of all names and bytes."""
    value = 0
    for name in sorted(leaves):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(leaves[name]).tobytes(), value)
    return value


@functools.cache
def quiet_orbax() -> None:
    """For command lines: leaves the error that is raised, where orbax logs pages about it.

    Beside the array that raises, others fail: asyncio complains that nobody asked for their
    errors, and tensorstore's threads that nobody listens any more.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    usual = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            usual(unraisable)

    sys.unraisablehook = hook


def _verify(leaves: Leaves) -> None:
    """Compare, and take out, the checksum of flat names if there is one; else do nothing."""
    stored = leaves.pop((CHECKSUM,), None)
    if stored is None or any(len(path) > 1 for path in leaves):
        return
    if int(stored) != checksum({path[0]: leaf for path, leaf in leaves.items()}):
        raise ValueError("it is damaged, the checksum is wrong")


def _kind(path: Path) -> tuple[str, Callable[[Path], Leaves]]:
    """What ``path`` holds, in words, and what reads it."""
    if path.is_dir():
        return "a checkpoint of orbax", _read_orbax
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. {LEGAL}.") from error
    if head[:4] == b"PK\3\4" and not _has_pickle(path):
        return "an .npz file", _read_npz
    if head[:4] == b"PK\3\4" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        raise ValueError(
            f"{path}: a pickle (as of torch.save), which could run any code, is not read. Save "
            "the state dict by safetensors.torch.save_file instead."
        )
    # Its header's length, far below 2**32, and the header, which is JSON.
    if head[4:9] == b"\0\0\0\0{":
        return "a safetensors file", _read_safetensors
    if _is_msgpack_map(head):
        return "a msgpack file", _read_msgpack
    raise ValueError(f"{path}: {'no checkpoint of a known kind' if head else 'empty'}. {LEGAL}.")


def _is_msgpack_map(head: bytes) -> bool:
    """A map that is empty, or whose first key is a string, as Flax writes it."""
    start = {b"\xde": 3, b"\xdf": 5}.get(head[:1], 1)
    is_map = start > 1 or b"\x80" <= head[:1] <= b"\x8f"
    key = head[start : start + 1]
    is_string = b"\xa0" <= key <= b"\xbf" or b"\xd9" <= key <= b"\xdb"
    return head == b"\x80" or (is_map and is_string)


def _has_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return not all(name.endswith(".npy") for name in file.namelist())
    except zipfile.BadZipFile:
        return False  # its reader will say so


def _read_safetensors(path: Path) -> Leaves:
    with optional("safetensors").safe_open(path, framework="numpy") as file:
        leaves = {(name,): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored = (file.metadata() or {}).get(CHECKSUM)
    return leaves if stored is None else leaves | {(CHECKSUM,): np.array(int(stored))}


def _read_msgpack(path: Path) -> Leaves:
    from flax import serialization

    return _arrays(serialization.msgpack_restore(path.read_bytes()))


def _read_npz(path: Path) -> Leaves:
    # Opened here: numpy leaves a file open that is no archive after all.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {(name,): arrays[name] for name in arrays.files}


def _read_orbax(path: Path) -> Leaves:
    items = _orbax_items(path)
    if not items:
        raise ValueError("there is no _METADATA in it, nor in a folder of a step")
    if items == [path]:
        return _read_item(path)
    parts = {item.name: _read_item(item) for item in items}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {(name, *key): leaf for name, part in parts.items() for key, leaf in part.items()}


def _orbax_items(folder: Path) -> list[Path]:
    """Folders with trees of arrays: this one, items in it, or items of the newest step in it."""
    if (folder / "_METADATA").exists():
        return [folder]
    inner = [f for f in folder.iterdir() if f.is_dir() and ".orbax-checkpoint-tmp" not in f.name]
    items = sorted(f for f in inner if (f / "_METADATA").exists())
    if items:
        return items
    steps = {int(m[0]): f for f in inner if (m := re.search(r"\d+$", f.name))}
    if steps:
        return _orbax_items(steps[max(steps)])
    runs = [f for f in inner if f.name == "checkpoints"]  # the folder of a run
    return _orbax_items(runs[0]) if runs else []


def _read_item(folder: Path) -> Leaves:
    ocp, folder = optional("orbax.checkpoint"), folder.absolute()
    handler = ocp.PyTreeCheckpointHandler()
    # As NumPy arrays, whatever devices they were on: those may not be here.
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    args = jax.tree.map(lambda _: kind, handler.metadata(folder).tree)
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
    handler.close()
    return _arrays(tree)


def _arrays(tree: Any) -> Leaves:
    """Arrays and numbers in ``tree`` by path; all else, such as names of functions, is left out."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): np.asarray(leaf)
        for path, leaf in pairs
        if isinstance(leaf, np.ndarray | np.generic | int | float | complex)
    }
    return {path: leaf for path, leaf in leaves.items() if is_numeric(leaf.dtype)}


def is_numeric(dtype: np.dtype) -> bool:
    """Whether numbers or truth values are in it, of NumPy's dtypes or JAX's."""
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))


def _one_line(error: Exception) -> str:
    """What went wrong, without the pages that orbax and tensorstore say about it."""
    for word, meaning in DAMAGE.items():
        if word in str(error):
            return f"it is damaged, {meaning}"
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 200 else text[:197] + "...").rstrip(".")
