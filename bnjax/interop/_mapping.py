"""Foreign names paired with leaves of variables, and arrays copied along the pairs.

A library's rules say for each foreign name which leaves it may be and how its axes lie there. The
same pairs serve both directions, so what one direction reads the other writes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import _variables
from bnjax._variables import Flat, Path
from bnjax.interop._layout import Layout, Shape
from bnjax.interop._names import chosen
from bnjax.interop._values import cast, is_empty, refuse_losses, to_numpy

MOST_NEW = 3  # layers of other shapes that may be new ones; with more of them something is wrong
Part = slice | EllipsisType  # of the first axis of a foreign array


class Place(NamedTuple):
    """A leaf that a foreign array, or a part of it, may be."""

    leaf: str  # "params/block/kernel"
    layout: Layout
    part: Part = ...
    option: str = ""  # the argument that alone may say that the array lies so
    faint: bool = False  # nothing but the shape speaks for it


class Pair(NamedTuple):
    name: str
    path: Path
    layout: Layout
    part: Part


class Pairing(NamedTuple):
    pairs: list[Pair]
    uncounted: list[Path]  # counters of norms whose statistics come without one


# Shapes of all leaves of params and batch_stats, by name.
Leaves = Mapping[str, Shape]
# Of a foreign name, its shape and all leaves: for each part of the array the places where it may
# lie, best first. No part: it is known to have no counterpart.
Places = Callable[[str, Shape, Leaves], Sequence[Sequence[Place]]]


def read(
    foreign: Mapping[str, Any], variables: Any, places: Places, library: str, ignore: str | None
) -> Any:
    """``variables`` with the values of ``foreign``, in their own dtypes."""
    flat, rebuild = _variables.flatten(variables)
    pairs, uncounted = pair(foreign, flat, places, library, ignore)
    if empty := [name for name, *_ in pairs if is_empty(foreign[name])]:
        raise ValueError(f"{library} has no values at {', '.join(empty)}, only shapes.")
    new, losses = dict(flat), []
    for name, path, layout, part in pairs:
        dtype = jax.dtypes.canonicalize_dtype(flat[path].dtype)
        x, loss = cast(layout.read(to_numpy(foreign[name])[part]), dtype)
        new[path] = jnp.asarray(x)
        losses += [f"{name}: {loss}"] if loss else []
    refuse_losses(losses)
    for path in uncounted:  # statistics of nobody knows how many updates
        new[path] = jnp.zeros(flat[path].shape, flat[path].dtype)
    _check_filled(new)
    return rebuild(new)


def write(
    variables: Any, foreign: Mapping[str, Any], places: Places, library: str, ignore: str | None
) -> dict[str, np.ndarray]:
    """The values of ``variables`` by foreign name, in the shapes and dtypes of ``foreign``."""
    flat, _ = _variables.flatten(variables)
    pairs, _ = pair(foreign, flat, places, library, ignore)
    _variables.refuse_shapes({path: flat[path] for _, path, _, _ in pairs})
    new, losses = {}, []
    for name, path, layout, part in pairs:
        whole = new.setdefault(name, _blank(foreign[name], part))
        x, loss = cast(layout.write(np.asarray(flat[path]), whole[part].shape), whole.dtype)
        whole[part] = x
        losses += [f"{_variables.name(path)}: {loss}"] if loss else []
    refuse_losses(losses)
    return new


def pair(
    foreign: Mapping[str, Any], flat: Flat, places: Places, library: str, ignore: str | None
) -> Pairing:
    """Each foreign name with its leaf; one error lists all that do not fit."""
    _check_foreign(foreign, library)
    _check_leaves(flat)
    paths = {_variables.name(path): path for path in flat if path[0] in _variables.KINDS}
    leaves = {leaf: tuple(flat[path].shape) for leaf, path in paths.items()}
    _check_collections(leaves, flat, foreign)
    left_out = chosen([*foreign, *leaves], ignore, "ignore")
    pairs: dict[str, Pair] = {}
    unknown, twice, misshapen, doubts = [], [], [], []
    parts = [
        (name, x, slot)
        for name, x in foreign.items()
        for slot in places(name, tuple(x.shape), leaves)
    ]
    for name, x, slot in parts:
        place = _best(slot, leaves)
        if name in left_out or (place and place.leaf in left_out):
            left_out |= {place.leaf} if place else set()
        elif place is None:
            unknown.append((name, list(dict.fromkeys(p.leaf for p in slot))))
        elif place.leaf in pairs:
            twice.append(f"{pairs[place.leaf].name} and {name} (both {place.leaf})")
        else:
            pairs[place.leaf] = Pair(name, paths[place.leaf], place.layout, place.part)
            misshapen += _misfit(name, x, place, leaves[place.leaf])
            doubts += _doubts(name, place, slot, leaves)
    rest = [leaf for leaf in leaves if leaf not in pairs and leaf not in left_out]
    uncounted = [leaf for leaf in rest if _counts(leaf, pairs)]
    faults = {
        **_unknown(unknown, leaves, library),
        f"leaves of variables missing in {library}": [x for x in rest if x not in uncounted],
        "two names for one leaf": twice,
        "shapes that differ": [fault for _, fault in misshapen],
        **_questions(doubts),
    }
    if any(faults.values()):
        raise ValueError(_report(faults, library) + _advice(name for name, _ in misshapen))
    return Pairing(list(pairs.values()), [paths[leaf] for leaf in uncounted])


def _best(slot: Sequence[Place], leaves: Leaves) -> Place | None:
    """The first place that exists and fits; else the first that exists."""
    there = [place for place in slot if place.leaf in leaves and not place.option]
    fitting = [place for place in there if place.layout.shape == leaves[place.leaf]]
    return next(iter([*fitting, *there]), None)


def _unknown(
    names: Sequence[tuple[str, Sequence[str]]], leaves: Leaves, library: str
) -> dict[str, list[str]]:
    """Faults by title: names without a leaf; of those without a collection only how many."""
    present = {leaf.partition("/")[0] for leaf in leaves}
    lost = [{leaf.partition("/")[0] for leaf in places} for _, places in names]
    lacking = Counter(min(found) for found in lost if found and not found & present)
    return {
        "collections that variables lack": [
            f"{collection} (for {number} names of {library})"
            for collection, number in lacking.items()
        ],
        f"unknown names of {library}": [
            f"{name} (no {' or '.join(places)})"
            for (name, places), found in zip(names, lost, strict=True)
            if not found or found & present
        ],
    }


def _counts(leaf: str, pairs: Mapping[str, Pair]) -> bool:
    """Whether ``leaf`` counts the updates of statistics that are among ``pairs``."""
    layer, _, own = leaf.rpartition("/")
    return leaf.startswith("batch_stats/") and own == "count" and f"{layer}/mean" in pairs


class Doubt(NamedTuple):
    """An array that fits in two ways, or in none but the one that ``option`` must ask for."""

    option: str
    name: str
    faint: bool


def _doubts(name: str, place: Place, slot: Sequence[Place], leaves: Leaves) -> list[Doubt]:
    shape = leaves[place.leaf]
    return [
        Doubt(other.option, name, other.faint and place.layout.shape == shape)
        for other in slot
        if other.option and other.leaf == place.leaf and other.layout.shape == shape
        if other.layout.differs(place.layout)
    ]


def _questions(doubts: Sequence[Doubt]) -> dict[str, list[str]]:
    """Faults by title: of each option the doubtful names, if there is more than the shape."""
    faults = {}
    for option in dict.fromkeys(doubt.option for doubt in doubts if not doubt.faint):
        found = [doubt for doubt in doubts if doubt.option == option]
        names = [doubt.name for doubt in found if not doubt.faint]
        others = len(found) - len(names)
        names += [f"perhaps {others} more of equal sizes"] if others else []
        title = f"shapes that do not tell the layout, so that {option}= must (False for none)"
        faults[title] = names
    return faults


def _misfit(name: str, x: Any, place: Place, ours: Shape) -> list[tuple[str, str]]:
    """The name and how its shape does not fit, if it does not."""
    shape, layout = tuple(x.shape), place.layout
    if place.part is ... and math.prod(layout.split) != math.prod(shape):
        return [(name, f"{name} {shape} cannot be seen as {layout.split}")]
    if layout.shape == ours:
        return []
    here = f" is {layout.shape} here" if layout.shape != shape else ""
    return [(name, f"{name} {shape}{here}, but {place.leaf} is {ours}")]


def _report(faults: Mapping[str, Sequence[str]], library: str) -> str:
    lines = [f"  {title}: {', '.join(found)}." for title, found in faults.items() if found]
    return "\n".join(
        [
            f"names of {library} and leaves of variables do not fit:",
            *lines,
            "rename=[(regular expression, replacement), ...] turns the names of layers into paths; "
            "ignore=regular expression leaves out names and leaves on purpose.",
        ]
    )


def _advice(misshapen: Iterable[str]) -> str:
    """What to pass if the layers whose shapes differ are to be new ones."""
    layers = dict.fromkeys(re.split(r"[./][^./]*$", name)[0] for name in misshapen)
    if not 0 < len(layers) <= MOST_NEW:
        return ""
    pattern = "|".join(rf"^{re.escape(layer)}\b" for layer in layers)
    return (
        " A layer that is to be new, such as the head for other classes, is left out so, and stays "
        f"as variables have it: ignore=r'{pattern}'."
    )


def _check_collections(leaves: Leaves, flat: Flat, foreign: Mapping[str, Any]) -> None:
    if foreign and flat and not leaves:
        top = ", ".join(dict.fromkeys(str(path[0]) for path in flat))
        raise TypeError(
            "variables must be linen's by collection ({'params': ..., 'batch_stats': ...}) or an "
            f"nnx.State that holds nnx.Param, got {top} at the top."
        )


def _check_foreign(foreign: Mapping[str, Any], library: str) -> None:
    for name, x in foreign.items():
        if not (isinstance(name, str) and _is_array(x)):
            raise TypeError(
                f"weights of {library} must be arrays by name, got {type(x).__name__} under "
                f"{name!r}. Of a checkpoint with more in it pass the part that holds the weights, "
                "such as checkpoint['state_dict']."
            )


def _check_leaves(flat: Flat) -> None:
    for path, leaf in flat.items():
        if not _is_array(leaf):
            raise TypeError(
                "variables must hold arrays or jax.ShapeDtypeStruct, got "
                f"{type(leaf).__name__} at {_variables.name(path)}. Take values out of linen's "
                "boxes first: flax.linen.unbox(variables)."
            )


def _check_filled(flat: Flat) -> None:
    """Raise where nothing has filled a shape, in collections that are carried along, too."""
    others = {path[0]: None for path in flat if path[0] not in _variables.KINDS}
    leave = f" (variables may be without {', '.join(map(str, others))})" if others else ""
    _variables.refuse_shapes(flat, f", and nothing fills them{leave}")


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _blank(like: Any, part: Part) -> np.ndarray:
    """An array to write to: of the shape and dtype of ``like``, and of its values if they stay."""
    dtype = np.dtype(str(like.dtype).removeprefix("torch."))
    if part is ... or is_empty(like):
        return np.zeros(like.shape, dtype)
    return np.array(to_numpy(like), dtype)
