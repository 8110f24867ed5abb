"""Folders of checkpoints: those of orbax, and of the files that Flax wrote before it."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

from bnjax.interop._optional import optional
from bnjax.interop._trees import Leaves, arrays, is_msgpack, read_msgpack

_STEP = re.compile(r"\d+(\.\d+)?$")  # Flax's steps may be fractions


def read_folder(folder: Path) -> Leaves:
    """The arrays of the newest step in ``folder``, or of the one that it is."""
    items = _items(folder)
    if not items:
        raise ValueError(
            "there is no _METADATA in it, nor in a folder of a step, nor is a file of Flax, such "
            "as checkpoint_100"
        )
    if items == [folder]:
        return _read_orbax(folder)
    parts = {i.name: _read_orbax(i) if i.is_dir() else read_msgpack(i) for i in items}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {(name, *key): leaf for name, part in parts.items() for key, leaf in part.items()}


def _items(folder: Path) -> list[Path]:
    """Trees of arrays: this one, items in it, or those of the newest step in it."""
    if folder.is_file() or (folder / "_METADATA").exists():
        return [folder]
    inner = [f for f in folder.iterdir() if ".orbax-checkpoint-tmp" not in f.name]
    items = sorted(f for f in inner if (f / "_METADATA").exists())
    if not all(_STEP.search(item.name) for item in items):
        return items
    steps = {f: float(m[0]) for f in inner if (m := _STEP.search(f.name)) and _is_step(f)}
    if steps:
        return _items(_newest(steps))
    runs = [f for f in inner if f.name == "checkpoints" and f.is_dir()]  # the folder of a run
    return _items(runs[0]) if runs else []


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
    with path.open("rb") as file:
        return is_msgpack(file.read(9))


def _read_orbax(folder: Path) -> Leaves:
    ocp, folder = optional("orbax.checkpoint"), folder.absolute()
    handler = ocp.PyTreeCheckpointHandler()
    # As NumPy arrays, whatever devices they were on: those may not be here.
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    args = jax.tree.map(lambda _: kind, handler.metadata(folder).tree)
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
    handler.close()
    return arrays(tree)
