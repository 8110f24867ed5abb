"""Leaves of a checkpoint, whatever program wrote them, sorted into linen's collections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

Path = tuple[str, ...]
Flat = dict[Path, Any]

COLLECTIONS = ("params", "batch_stats")
# Leaf of a layer with running statistics: where linen has it. The second table is nnx's.
TORCH: dict[str, Path] = {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
    "num_batches_tracked": ("batch_stats", "count"),
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
}
NNX: dict[str, Path] = {name: ("batch_stats", name) for name in ("mean", "var", "count")}
# A path as Python would write it, which is what jax.tree_util.keystr gives.
_KEY = r"\['([^']*)'\]|\[(\d+)\]|\.([A-Za-z_]\w*)"


def to_variables(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Variables by collection: of linen, of a training state, of nnx or of torch.

    Args:
      leaves: arrays by path. Paths of one name each are taken for flat names, and split.
    """
    flat = {_without_box(path): leaf for path, leaf in _split(leaves).items()}
    if any(name in path for path in flat for name in COLLECTIONS):
        return traverse_util.unflatten_dict(_shallowest(flat))
    flat = {path: leaf for path, leaf in flat.items() if "opt_state" not in path}
    torch = any(path[-1] == "running_var" for path in flat)
    return traverse_util.unflatten_dict(_renamed(flat, TORCH if torch else NNX))


def split_name(name: str) -> Path:
    """``"params/bn/scale"``, ``"params.bn.scale"`` or ``".params['bn']['scale']"`` as a path."""
    if re.fullmatch(f"({_KEY})+", name):
        return tuple("".join(key) for key in re.findall(_KEY, name))
    return tuple(name.split("/" if "/" in name else "."))


def _split(leaves: Mapping[Path, Any]) -> Flat:
    if any(len(path) > 1 for path in leaves):
        return dict(leaves)
    return {split_name(path[0]): leaf for path, leaf in leaves.items()}


def _without_box(path: Path) -> Path:
    """The path of a variable, not of the value in it (``nnx.Variable``, ``nn.Partitioned``)."""
    return path[:-1] if len(path) > 1 and path[-1] == "value" else path


def _shallowest(flat: Flat) -> Flat:
    """The collections that lie side by side nearest to the root; running statistics come first."""
    marker = next(name for name in reversed(COLLECTIONS) if any(name in path for path in flat))
    prefix = min((path[: path.index(marker)] for path in flat if marker in path), key=len)
    depth = len(prefix)
    inside = {path[depth:]: leaf for path, leaf in flat.items() if path[:depth] == prefix}
    return {path: leaf for path, leaf in inside.items() if path[0] in COLLECTIONS}


def _renamed(flat: Flat, names: Mapping[str, Path]) -> Flat:
    """Leaves of layers with running statistics by ``names``; all else is a parameter."""
    mean, var = (next(k for k, v in names.items() if v[-1] == name) for name in ("mean", "var"))
    layers = {path[:-1] for path in flat if path[-1] == var and (*path[:-1], mean) in flat}

    def place(path: Path) -> Path:
        if path[:-1] not in layers or path[-1] not in names:
            return ("params", *path)
        collection, name = names[path[-1]]
        return (collection, *path[:-1], name)

    return {place(path): leaf for path, leaf in flat.items()}
