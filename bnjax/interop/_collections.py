"""Leaves of a checkpoint, whatever program wrote them, sorted into linen's collections.

Names alone never decide that an array is lost: it comes back, is left out by a rule that
:func:`bnjax.interop.load_variables` states, or is named in an error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from flax import traverse_util

from bnjax._variables import name, regular

Path = tuple[str, ...]


class Leaf(NamedTuple):
    """An array of a file."""

    name: str  # there
    array: Any


Flat = dict[Path, Leaf]

COLLECTIONS = ("params", "batch_stats")
OPTIMIZER = "opt_state"
MOST_DEPTH, MOST_LETTERS = 128, 2**14  # of a path
# Whole numbers that only a training state has beside the variables.
STEPS = ("step", "epoch")
# Leaf of a layer with running statistics: where linen has it. The second table is nnx's.
TORCH: dict[str, Path] = {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
    "num_batches_tracked": ("batch_stats", "count"),
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
}
NNX: dict[str, Path] = {leaf: ("batch_stats", leaf) for leaf in ("mean", "var", "count")}
# A path as Python would write it, which is what jax.tree_util.keystr gives.
_KEY = r"\['([^']*)'\]|\[(\d+)\]|\.([A-Za-z_]\w*)"


def to_variables(leaves: Mapping[Path, Any], ignore: str | None = None) -> dict[str, Any]:
    """Variables by collection: of linen, of a training state, of nnx or of torch.

    Args:
      leaves: arrays by path. Paths of one name each are taken for flat names, and split.
      ignore: regular expression; arrays in whose path it is found are left out.

    Raises:
      ValueError: arrays that would be lost, two that would be one, or ``ignore`` matches none.
    """
    named = {path: Leaf(name(path), array) for path, array in leaves.items()}
    if (letters := max(len(leaf.name) for leaf in named.values())) > MOST_LETTERS:
        raise ValueError(f"a name has {letters:,} letters, at most {MOST_LETTERS:,} are read")
    split = _splitter(named)
    flat = _moved(_without_ignored(named, split, ignore), split)
    torch = bool(_layers(flat, TORCH))
    flat = _variables_of_training(flat if torch else _without_boxes(flat))
    if not torch:
        flat = _without_optimizer(flat)
    arrays = {path: leaf.array for path, leaf in _sorted(flat, torch).items()}
    return traverse_util.unflatten_dict(arrays)


def split_name(text: str) -> Path:
    """``"params/bn/scale"``, ``"params.bn.scale"`` or ``".params['bn']['scale']"`` as a path."""
    if re.fullmatch(f"({_KEY})+", text):
        return tuple("".join(key) for key in re.findall(_KEY, text))
    return tuple(text.split("/" if "/" in text else "."))


def _splitter(leaves: Flat) -> Callable[[Path], Path]:
    """What splits flat names, also those of a ``state_dict`` that is part of a tree."""
    trees = any(len(path) > 1 for path in leaves)
    if trees and not any(path[-1].endswith(".running_var") for path in leaves):
        return _checked
    return lambda path: _checked(sum(map(split_name, path), ()))


def _checked(path: Path) -> Path:
    """``path``; an error if no model would have it, and all that walks it would take for ever."""
    if len(path) > MOST_DEPTH:
        raise ValueError(
            f"{name(path[:3])}/... is {len(path):,} levels deep, {MOST_DEPTH} are read"
        )
    return path


def _without_ignored(leaves: Flat, split: Callable[[Path], Path], ignore: str | None) -> Flat:
    if ignore is None:
        return leaves
    expression = regular(ignore, "ignore")
    left = {path: x for path, x in leaves.items() if not expression.search(name(split(path)))}
    if len(left) in (0, len(leaves)):
        found = "in no name" if left else "in every name"
        raise ValueError(
            f"ignore={ignore!r} is found {found}; the arrays are {_listed(leaves.values())}"
        )
    return left


def _without_boxes(flat: Flat) -> Flat:
    """Paths of variables, not of the value in each (``nnx.Variable``, ``nn.Partitioned``)."""
    children: dict[Path, set[str]] = {}
    for path in flat:
        for depth, child in enumerate(path):
            children.setdefault(path[:depth], set()).add(child)

    def move(path: Path) -> Path:
        return path[:-1] if len(path) > 1 and children[path[:-1]] == {"value"} else path

    return _moved(flat, move)


def _variables_of_training(flat: Flat) -> Flat:
    """Of a training state what the model is made of; any other tree as it is."""
    params, stats = (_folders(flat, collection) for collection in COLLECTIONS)
    counted = {
        path[:-1]
        for path, leaf in flat.items()
        if path[-1] in STEPS and np.ndim(leaf.array) == 0 and leaf.array.dtype.kind in "iu"
    }
    # The variables lie beside the number, or are one entry of what lies beside it: both
    # collections, or params with nothing else.
    numbers = {(*place, number) for place in counted for number in STEPS}
    model = [path for path in flat if path not in numbers and OPTIMIZER not in path]
    alone = {p for p in params if all(path[: len(p) + 1] == (*p, "params") for path in model)}
    within = {p for p in params & stats | alone if any(p[:i] in counted for i in range(len(p)))}
    found = {p for p in (params | stats) & counted | within if OPTIMIZER not in p}
    places = [p for p in found if not any(p[:depth] in found for depth in range(len(p)))]
    if not places:
        return flat
    if len(places) > 1:
        _refuse_several(flat, places)
    inside = _below(flat, places[0])
    if len(_layers(flat, TORCH)) > len(_layers(inside, TORCH)):
        return flat  # a model of torch, some layer of which is called params and counts
    # What is left out is of the state. Outside of it may lie a configuration, or a position in the
    # data, in whole numbers; other arrays are weights.
    state = min((c for c in counted if places[0][: len(c)] == c), key=len)
    outside = [leaf.array for path, leaf in flat.items() if path[: len(state)] != state]
    if any(np.ndim(array) and array.dtype.kind not in "biu" for array in outside):
        _refuse_several(flat, places)
    return {path: leaf for path, leaf in inside.items() if path[0] in COLLECTIONS and path[1:]}


def _without_optimizer(flat: Flat) -> Flat:
    """Without the folder ``opt_state`` beside a model, if it is of optax: entries have numbers."""
    state = _below(flat, (*_place(flat), OPTIMIZER))
    if not any(key.isdecimal() or key == "count" for path in state for key in path):
        return flat
    depth = len(_place(flat))
    return {p: x for p, x in flat.items() if p[depth] != OPTIMIZER or not p[depth + 1 :]} or flat


def _sorted(flat: Flat, torch: bool) -> Flat:
    """Leaves by collection."""
    inside = _below(flat, _place(flat))
    tops = {path[0] for path in inside}
    bare = {path[0]: leaf for path, leaf in inside.items() if len(path) == 1}
    inner = {path[1] for path in inside if path[2:]}
    if tops == {"params"} and "batch_stats" in inner and all(path[2:] for path in inside):
        # Variables that were given to a training state for its params.
        return _sorted(_below(inside, ("params",)), torch)
    found = [collection for collection in COLLECTIONS if collection in tops - bare.keys()]
    alone = tops == {*found}
    if torch and not (alone and "batch_stats" in found):
        return _renamed(_below(inside, ("params",)) if alone else flat, TORCH)
    norms = {path[0] for path in _layers(inside, NNX) if path}
    if len(found) < 2 and "batch_stats" not in norms and (norms - {*found} or not found):
        if several := _folders(flat, "params") & _folders(flat, "batch_stats"):
            _refuse_several(flat, several)
        return _renamed(flat, NNX)
    if bare:
        raise ValueError(
            f"beside {' and '.join(found)} are arrays that belong to no collection and would be "
            f"lost: {_listed(bare.values())}. Leave them out with ignore="
        )
    return inside


def _refuse_several(flat: Flat, places: Iterable[Path]) -> NoReturn:
    first, *others = sorted(places)
    kept = [(*first, collection) for collection in COLLECTIONS]
    rest = [leaf for path, leaf in flat.items() if path[: len(first) + 1] not in kept]
    found = " and also ".join(name(place) or "the top" for place in (first, *others))
    raise ValueError(
        f"variables lie in {found}: with those in {name(first) or 'the top'} alone, there would be "
        f"lost {_listed(rest)}. Leave out what you do not need with ignore=, a regular expression "
        "that is found in its names"
    )


def _renamed(flat: Flat, names: Mapping[str, Path]) -> Flat:
    """Leaves of layers with running statistics by ``names``; all else is a parameter."""
    layers = _layers(flat, names)

    def place(path: Path) -> Path:
        if path[:-1] not in layers or path[-1] not in names:
            return ("params", *path)
        collection, leaf = names[path[-1]]
        return (collection, *path[:-1], leaf)

    return _moved(flat, place)


def _layers(flat: Iterable[Path], names: Mapping[str, Path]) -> set[Path]:
    """Paths of layers that have running statistics under ``names``."""
    mean, var = (next(k for k, v in names.items() if v[-1] == leaf) for leaf in ("mean", "var"))
    return {p[:-1] for p in flat if p[-1] == var and (*p[:-1], mean) in flat}


def _place(flat: Flat) -> Path:
    """The folder that everything is in, outside of any collection."""
    first, last = min(flat)[:-1], max(flat)[:-1]  # what these two share, all share
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return tuple(
        itertools.takewhile(lambda key: key not in COLLECTIONS, (key for key, _ in shared))
    )


def _folders(flat: Iterable[Path], child: str) -> set[Path]:
    """Where a folder called ``child`` lies."""
    return {path[:i] for path in flat for i, key in enumerate(path[:-1]) if key == child}


def _below(flat: Flat, place: Path) -> Flat:
    depth = len(place)
    return {path[depth:]: leaf for path, leaf in flat.items() if path[:depth] == place}


def _moved(flat: Flat, move: Callable[[Path], Path]) -> Flat:
    """``flat`` with other paths; an error where two arrays have one, or one is in the other."""
    moved: Flat = {}
    for path, leaf in flat.items():
        twin = moved.setdefault(move(path), leaf)
        if twin is not leaf:
            raise ValueError(
                f"{twin.name} and {leaf.name} would both be {name(move(path))}, and one of them "
                "lost. Leave out one with ignore="
            )
    for path, leaf in moved.items():
        if outer := next((moved[path[:i]] for i in range(1, len(path)) if path[:i] in moved), None):
            raise ValueError(
                f"{outer.name} is an array, and {leaf.name} would be one in it: one of them would "
                "be lost. Leave out one with ignore="
            )
    return moved


def _listed(leaves: Iterable[Leaf]) -> str:
    names = [leaf.name for leaf in leaves]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(names[:8])}{more}"
