"""Folders of checkpoints: those of orbax, and of the files that Flax wrote before it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bnjax.interop._limits import Limit, check_regular, files, limit_of
from bnjax.interop._msgpack import is_msgpack, read_msgpack
from bnjax.interop._ocdbt import MANIFEST, check_nodes
from bnjax.interop._optional import optional
from bnjax.interop._trees import Leaves, arrays

# Files of orbax and of zarr that are read as a whole, before any array.
_METADATA = {
    "_CHECKPOINT_METADATA",
    "_METADATA",
    "_sharding",
    ".zarray",
    ".zattrs",
    MANIFEST,
    "zarr.json",
}
_STEP = re.compile(r"\d+(\.\d+)?$")  # Flax's steps may be fractions


def read_folder(folder: Path, max_bytes: int | None) -> Leaves:
    """The arrays of the newest step in ``folder``, or of the one that it is."""
    items = _items(folder)
    if not items:
        raise ValueError(
            "there is no _METADATA in it, nor in a folder of a step, nor is a file of Flax, such "
            "as checkpoint_100"
        )
    limit = limit_of(max_bytes, *items)
    if items == [folder]:
        return _read_orbax(folder, limit)
    parts = {i.name: _read_orbax(i, limit) if i.is_dir() else read_msgpack(i, limit) for i in items}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {(name, *key): leaf for name, part in parts.items() for key, leaf in part.items()}


def _items(folder: Path, deep: int = 0) -> list[Path]:
    """Trees of arrays: this one, items in it, or those of the newest step in it."""
    if deep > 8:  # as no program writes it; a link that leads back does
        raise ValueError("there is a step in a step in a step: name the one that you mean")
    if folder.is_file() or (folder / "_METADATA").exists():
        return [folder]
    inner = [f for f in folder.iterdir() if ".orbax-checkpoint-tmp" not in f.name]
    items = sorted(f for f in inner if (f / "_METADATA").exists())
    if not all(_STEP.search(item.name) for item in items):
        return items
    steps = {f: float(m[0]) for f in inner if (m := _STEP.search(f.name)) and _is_step(f)}
    if steps:
        return _items(_newest(steps), deep + 1)
    runs = [f for f in inner if f.name == "checkpoints" and f.is_dir()]  # the folder of a run
    return _items(runs[0], deep + 1) if runs else []


def _newest(steps: dict[Path, float]) -> Path:
    last = max(steps.values())
    newest = sorted(f for f, step in steps.items() if step == last)
    if len(newest) > 1:
        raise ValueError(
            f"its last step is there as {' and '.join(f.name for f in newest)}: name one"
        )
    return newest[0]


def _is_step(path: Path) -> bool:
    if path.is_dir():
        return True
    try:
        check_regular(path)
    except (OSError, ValueError):
        return False
    with path.open("rb") as file:
        return is_msgpack(file.read(9))


def _read_orbax(folder: Path, limit: Limit) -> Leaves:
    found = list(files(folder))
    for file, stat in found:
        if file.name in _METADATA or file.parent.name == "array_metadatas":
            limit.check_text(file.name, stat.st_size)
    if any(file.name == MANIFEST for file, _ in found):
        for file, _ in found:
            check_nodes(file, limit)
    ocp, folder = optional("orbax.checkpoint"), folder.absolute()
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    _check_arrays(tree, limit)
    # As NumPy arrays, whatever devices they were on: those may not be here.
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    args = jax.tree.map(lambda _: kind, tree)
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
    handler.close()
    return arrays(tree)


def _check_arrays(tree: Any, limit: Limit) -> None:
    """Raise if the arrays, or the chunks that they are stored in, are more than may be read."""
    sizes = []
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "shape"):
            chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
            size = max(math.prod(leaf.shape), math.prod(chunk))
            sizes.append(size * np.dtype(leaf.dtype or np.float64).itemsize)
    limit.check_arrays(len(sizes), sum(sizes))
