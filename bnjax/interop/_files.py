"""Checkpoints on disk as variables, and back: orbax, safetensors, msgpack and npz.

What a file is, its first bytes say, not its name. Nothing that is read can run code: pickles are
refused unread.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bnjax._printable import printable
from bnjax.core._checks import whole_number
from bnjax.interop._collections import to_variables
from bnjax.interop._folders import read_folder
from bnjax.interop._limits import Limit, TooLarge, check_regular, check_zip, limit_of
from bnjax.interop._msgpack import is_msgpack, read_msgpack
from bnjax.interop._optional import one_line
from bnjax.interop._safetensors import CHECKSUM, is_safetensors, read_safetensors, verify
from bnjax.interop._torch import load_torch
from bnjax.interop._trees import Leaves, arrays

LEGAL = (
    "Legal are a folder written by orbax or flax.training.checkpoints, a .safetensors file, a "
    ".msgpack file of flax.serialization, and an .npz file of arrays"
)

# How tensorstore, which reads for orbax, begins its messages.
DAMAGE = {
    "OUT_OF_RANGE": "a file is cut short",
    "DATA_LOSS": "a file is broken",
    "FAILED_PRECONDITION": "a file is broken",
    "NOT_FOUND": "a file is missing",
}


def load_variables(
    path: str | Path, *, ignore: str | None = None, max_bytes: int | None = None
) -> dict[str, Any]:
    """The variables in a checkpoint, as linen has them.

    Reads a folder of orbax (``StandardSave``, ``PyTreeSave``, composite items) or of Flax's
    older ``save_checkpoint`` (msgpack), of several steps the newest; and files of safetensors, of
    ``flax.serialization`` (msgpack) and of ``numpy.savez``. The first bytes say which it is;
    pickles, hence files of ``torch.save``, are refused and never run.

    Whatever tree was saved, ``batch_stats`` and the ``params`` beside them are found: linen's
    variables, a training state such as :class:`bnjax.training.TrainState`, an ``nnx.State``, flat
    names (``"params/bn/scale"``, ``"bn.scale"``), and torch's ``state_dict``, whose layers with
    ``running_mean`` and ``running_var`` get Flax's names.

    Every array comes back or is named in an error, but for these:

    - of a training state, which has a whole number called ``step`` or ``epoch`` beside the
      variables or above them, all that is not in its ``params`` or ``batch_stats``; and what lies
      outside of it in whole numbers, such as a position in the data;
    - the folder ``opt_state`` beside a model, unless the file has torch's names;
    - what ``ignore`` leaves out, and what is no number.

    Args:
      path: the folder or file.
      ignore: regular expression; arrays are left out in whose path, such as
        ``"params_ema/bn/weight"``, it is found. Python's ``re`` runs it: one like ``(a+)+$`` takes
        for ever on some names.
      max_bytes: how much may be read, counting 16 KiB more for each array. By default four times
        what the file or the step takes up on the disk, and 256 MiB at least: less than a small
        file made to fill the memory promises. Metadata (lists of members, headers, JSON) may come
        to a 32nd of it.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, nested dicts of NumPy arrays, with linen's other
      collections where there are any; a collection without leaves is left out. Integer keys have
      become strings, as orbax stores them. Where no collections lie at one place of the file
      (``head.params.weight`` beside ``bn.running_mean``), all names are those of layers.

    Raises:
      ValueError: there is nothing, it is damaged, or of no known kind; it is, or a step holds, a
        pipe, a socket or a device; or it promises more than ``max_bytes``. (A changed byte inside
        an array shows where the checkpoint carries a checksum, as :func:`save_safetensors` writes
        it, and in .npz; msgpack, other safetensors and orbax itself do not notice.) Or arrays
        would be lost: variables at several places, two arrays of one name, arrays beside
        collections; or ``ignore`` is found in no name, or in all.
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
    return _load(Path(path), ignore, max_bytes, torch=False)


def load_statistics(
    path: str | Path, *, ignore: str | None = None, max_bytes: int | None = None
) -> dict[str, Any]:
    """As :func:`load_variables`, for reports: files of ``torch.save`` too.

    Torch reads the tensors in them, and runs nothing.
    """
    return _load(Path(path), ignore, max_bytes, torch=True)


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


def _load(path: Path, ignore: str | None, max_bytes: int | None, torch: bool) -> dict[str, Any]:
    if max_bytes is not None:
        whole_number(max_bytes, "max_bytes", 1)
    kind, read = _kind(path, max_bytes)
    if read is _read_torch and not torch:
        raise ValueError(
            f"{path}: {kind}, which could run any code, is not read. Save the state dict by "
            "safetensors.torch.save_file instead, or read it with load_torch, which runs none."
        )
    try:
        leaves = read(path, max_bytes)
    except ImportError:
        raise
    except Exception as error:  # each library has its own errors, and orbax those of many
        text = _one_line(error).removeprefix(str(path)).lstrip("/: ").rstrip(".")
        raise ValueError(f"{path}: cannot be read as {kind}: {text}.") from error
    if not leaves:
        raise ValueError(f"{path}: {kind} without any array.")
    try:
        return to_variables(leaves, ignore)
    except ValueError as error:
        raise ValueError(f"{path}: {printable(str(error)).rstrip('.')}.") from error


def _kind(path: Path, max_bytes: int | None) -> tuple[str, Callable[[Path, int | None], Leaves]]:
    """What ``path`` holds, in words, and what reads it."""
    try:
        check_regular(path)
        if path.is_dir():
            return "a checkpoint of orbax", _read_folder
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. {LEGAL}.") from error
    except ValueError as error:
        raise ValueError(
            f"{path}: {str(error).removeprefix(str(path)).strip()}. {LEGAL}."
        ) from error
    if head[:4] in (b"PK\3\4", b"PK\5\6"):  # the second is an empty one
        return _kind_of_zip(path, max_bytes)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle (as of torch.save)", _read_torch
    if is_safetensors(head):
        return "a safetensors file", read_safetensors
    if is_msgpack(head):
        return "a msgpack file", _read_msgpack
    raise ValueError(f"{path}: {'no checkpoint of a known kind' if head else 'empty'}. {LEGAL}.")


def _kind_of_zip(
    path: Path, max_bytes: int | None
) -> tuple[str, Callable[[Path, int | None], Leaves]]:
    """What is in an archive, by the names of its members, says what it is."""
    try:
        check_zip(path, limit_of(max_bytes, path))
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except TooLarge as error:
        raise ValueError(f"{path}: {error}.") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "an .npz file", _read_npz  # its reader will say what is wrong
    if all(name.endswith(".npy") for name in names):
        return "an .npz file", _read_npz
    if any(name.endswith((".pkl", ".pickle")) for name in names):
        return "a pickle (as of torch.save)", _read_torch
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        raise ValueError(
            f"{path}: a .keras archive. Read it with keras.models.load_model(path), and give the "
            "model to bnjax.interop.from_keras."
        )
    few = printable(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))
    raise ValueError(f"{path}: a zip archive of {few}, no checkpoint of a known kind. {LEGAL}.")


def _read_npz(path: Path, max_bytes: int | None) -> Leaves:
    leaves: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as file:
        members, limit = file.infolist(), limit_of(max_bytes, path)
        limit.check_arrays(len(members), 0)  # their headers are read one by one
        limit.check_arrays(len(members), sum(_promised(file, member) for member in members))
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in leaves:
                raise ValueError(f"two arrays are called {name}")
            with file.open(member) as content:
                leaves[name] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays(leaves)


def _promised(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of the array in a member of an archive, which its header and the archive agree on."""
    with file.open(member) as content:
        version = np.lib.format.read_magic(content)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(content)
        size = math.prod(shape) * dtype.itemsize
        stored = member.file_size - content.tell()
    if not dtype.hasobject and size != stored:
        raise ValueError(
            f"{member.filename} promises {size:,} bytes of {dtype}, and {stored:,} are there"
        )
    return size


def _read_msgpack(path: Path, max_bytes: int | None) -> Leaves:
    return read_msgpack(path, limit_of(max_bytes, path))


def _read_torch(path: Path, max_bytes: int | None) -> Leaves:
    with warnings.catch_warnings(action="ignore"):  # about kinds of files that it refuses
        saved = load_torch(path, max_bytes=max_bytes)
    _check_tensors(saved, limit_of(max_bytes, path))

    def to_numpy(x: Any) -> Any:
        if not hasattr(x, "detach"):
            return x
        x = x.detach().resolve_conj().resolve_neg()
        # NumPy has no bfloat16 that torch knows of; float32 holds all narrower values.
        return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()

    return arrays(jax.tree.map(to_numpy, saved))


def _check_tensors(saved: Any, limit: Limit) -> None:
    """Raise if a pickle makes much of little: one value at many places, or a tensor of one number.

    Lists of ten times the same list, ten deep, are written in a few bytes.
    """
    number, sizes, left = 0, [], [saved]
    while left:
        node = left.pop()
        if isinstance(node, Mapping):
            left += node.values()
        elif isinstance(node, list | tuple | set):
            left += node
        elif hasattr(node, "detach"):
            sizes.append(node.numel() * max(node.element_size(), 4))
        number += 1
        limit.check_nodes(number + len(left))
    limit.check_arrays(len(sizes), sum(sizes))


def _read_folder(path: Path, max_bytes: int | None) -> Leaves:
    leaves = read_folder(path, max_bytes)
    stored = leaves.get((CHECKSUM,))
    # A checkpoint of flat names, as this project's own experiments write it.
    if stored is None or stored.dtype != np.uint32 or any(len(path) > 1 for path in leaves):
        return leaves
    del leaves[CHECKSUM,]
    verify({path[0]: leaf for path, leaf in leaves.items()}, int(stored))
    return leaves


def _one_line(error: Exception) -> str:
    """What went wrong, without the pages that orbax and tensorstore say about it."""
    found = (meaning for word, meaning in DAMAGE.items() if word in str(error))
    meaning = next(found, None)
    if isinstance(error, TooLarge):
        return str(error)
    return one_line(error) if meaning is None else f"it is damaged, {meaning}"
