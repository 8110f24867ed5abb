"""Foreign names paired with leaves of variables, and arrays copied along the pairs.

A library's rules say for each foreign name which leaf it may be and how its axes lie there. The
same pairs serve both directions, so what one direction reads the other writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import _variables
from bnjax._variables import Flat, Path

Shape = tuple[int, ...]
CONVOLUTION = range(3, 6)  # axes of a kernel over one to three axes of space
Rename = Sequence[tuple[str, str]]


class Layout(NamedTuple):
    """How a foreign array lies in ours: reshaped, transposed, flipped, reshaped."""

    split: Shape  # the foreign shape, with axes apart that we order differently
    order: Shape  # our axes by theirs, as for np.transpose
    shape: Shape  # ours
    flip: Shape = ()  # axes, of ours before the last reshape, that run backwards

    def read(self, x: np.ndarray) -> np.ndarray:
        return np.flip(x.reshape(self.split).transpose(self.order), self.flip).reshape(self.shape)

    def write(self, x: np.ndarray, shape: Shape) -> np.ndarray:
        x = np.flip(x.reshape([self.split[a] for a in self.order]), self.flip)
        return x.transpose(np.argsort(self.order)).reshape(shape)


class Place(NamedTuple):
    """A leaf that a foreign array may be."""

    leaf: str  # "params/block/kernel"
    layout: Layout


class Pair(NamedTuple):
    name: str
    path: Path
    layout: Layout


# Of a foreign name, its shape and all leaves: where it may lie, best first; None if it is known to
# have no counterpart.
Places = Callable[[str, Shape, Iterable[str]], Sequence[Place] | None]


def transposed(shape: Shape, order: Sequence[int], flip: Shape = ()) -> Layout:
    """Axes in another order."""
    return Layout(shape, tuple(order), tuple(shape[a] for a in order), flip)


def reshaped(shape: Shape) -> Layout:
    """Elements in the same order in ``shape``."""
    return Layout(shape, tuple(range(len(shape))), shape)


def leaf_name(collection: str, layer: str, leaf: str) -> str:
    """``"params/block/kernel"``; ``"params/kernel"`` when the layer is the model itself."""
    return "/".join(part for part in (collection, layer, leaf) if part)


def renamed(layer: str, rename: Rename) -> str:
    """``layer`` after each substitution of ``rename`` in turn."""
    for rule in rename:
        if isinstance(rule, str) or len(rule) != 2:
            raise ValueError(
                f"rename must be pairs (regular expression, replacement), got {rule!r} in it. "
                r"A single rule is rename=[(r'\.bn', '/BatchNorm_')]."
            )
        layer = re.sub(*rule, layer)
    return layer


def layers_with(foreign: Mapping[str, Any], leaf: str, separator: str, ranks: range) -> list[str]:
    """Names of the layers whose array called ``leaf`` has so many axes."""
    names = {name: name.rpartition(separator) for name in foreign if isinstance(name, str)}
    return [
        layer
        for name, (layer, _, last) in names.items()
        if last == leaf and len(getattr(foreign[name], "shape", ())) in ranks
    ]


def chosen(layers: Iterable[str], pattern: str | None, argument: str) -> set[str]:
    """The foreign layers in which ``pattern`` is found, none for None."""
    if pattern is None:
        return set()
    paths = [(layer,) for layer in layers]
    return {str(layer) for (layer,) in _variables.choose(paths, pattern, argument)}


def read(
    foreign: Mapping[str, Any], variables: Any, places: Places, library: str, ignore: str | None
) -> Any:
    """``variables`` with the values of ``foreign``, in their own dtypes."""
    flat, rebuild = _variables.flatten(variables)
    new, losses = dict(flat), []
    for name, path, layout in pair(foreign, flat, places, library, ignore):
        dtype = jax.dtypes.canonicalize_dtype(flat[path].dtype)
        x, loss = _cast(layout.read(_to_numpy(foreign[name])), dtype)
        new[path] = jnp.asarray(x)
        losses += [f"{name}: {loss}"] if loss else []
    _refuse_losses(losses)
    return rebuild(new)


def write(
    variables: Any, foreign: Mapping[str, Any], places: Places, library: str, ignore: str | None
) -> dict[str, np.ndarray]:
    """The values of ``variables`` by foreign name, in the shapes and dtypes of ``foreign``."""
    flat, _ = _variables.flatten(variables)
    new, losses = {}, []
    for name, path, layout in pair(foreign, flat, places, library, ignore):
        like = foreign[name]
        dtype = np.dtype(str(like.dtype).removeprefix("torch."))
        new[name], loss = _cast(layout.write(np.asarray(flat[path]), tuple(like.shape)), dtype)
        losses += [f"{_variables.name(path)}: {loss}"] if loss else []
    _refuse_losses(losses)
    return new


def pair(
    foreign: Mapping[str, Any], flat: Flat, places: Places, library: str, ignore: str | None
) -> list[Pair]:
    """Each foreign name with its leaf; one error lists all that do not fit."""
    _check_foreign(foreign, library)
    _check_leaves(flat)
    leaves = {_variables.name(path): path for path in flat if path[0] in _variables.KINDS}
    left_out = chosen([*foreign, *leaves], ignore, "ignore")
    pairs: dict[str, Pair] = {}
    unknown, twice, misshapen = [], [], []
    for name, x in foreign.items():
        candidates = places(name, tuple(x.shape), leaves.keys())
        if candidates is None:
            continue
        place = next((place for place in candidates if place.leaf in leaves), None)
        if name in left_out or (place and place.leaf in left_out):
            left_out |= {place.leaf} if place else set()
        elif place is None:
            unknown.append(f"{name} (no {' or '.join(place.leaf for place in candidates)})")
        elif place.leaf in pairs:
            twice.append(f"{pairs[place.leaf].name} and {name} (both {place.leaf})")
        else:
            pairs[place.leaf] = Pair(name, leaves[place.leaf], place.layout)
            misshapen += _misfit(name, x, place, flat[leaves[place.leaf]])
    missing = [leaf for leaf in leaves if leaf not in pairs and leaf not in left_out]
    faults = {
        f"unknown names of {library}": unknown,
        f"leaves of variables missing in {library}": missing,
        "two names for one leaf": twice,
        "shapes that differ": misshapen,
    }
    if any(faults.values()):
        raise ValueError(_report(faults, library))
    return list(pairs.values())


def _misfit(name: str, x: Any, place: Place, leaf: Any) -> list[str]:
    shape, layout = tuple(x.shape), place.layout
    if math.prod(layout.split) != math.prod(shape):
        return [f"{name} {shape} cannot be seen as {layout.split}"]
    if layout.shape == tuple(leaf.shape):
        return []
    here = f" is {layout.shape} here" if layout.shape != shape else ""
    return [f"{name} {shape}{here}, but {place.leaf} is {tuple(leaf.shape)}"]


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


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _to_numpy(x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    # NumPy has no bfloat16 that torch knows of; float32 holds all narrower values.
    return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()


def _cast(x: np.ndarray, dtype: Any) -> tuple[np.ndarray, str | None]:
    """``x`` as ``dtype``, and what is lost beyond rounding."""
    if np.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        return x, f"complex does not fit into {dtype}"
    with np.errstate(all="ignore"):
        y = x.astype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        lost = np.isfinite(x) & ~np.isfinite(y)
        return y, f"{lost.sum()} finite values are infinite in {dtype}" if lost.any() else None
    lost = x != y
    return y, f"{lost.sum()} values are not the same in {dtype}" if lost.any() else None


def _refuse_losses(losses: Sequence[str]) -> None:
    if losses:
        raise ValueError(
            f"values do not fit into the dtype they are to have: {'; '.join(losses)}. Give the "
            "target a wider dtype, or cast the values yourself before."
        )
