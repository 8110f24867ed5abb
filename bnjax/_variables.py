"""Linen's variables and nnx's states, seen as the same thing: arrays by collection and path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core.meta import AxisMetadata

from bnjax._switches import AS_CALLED, SWITCHES, SwitchedStats, Switches

# ("params", "block", "BatchNorm_0", "scale"): linen's order, collection first.
Path = tuple[Any, ...]
Flat = dict[Path, Any]
MOST_NAMED = 8  # leaves in an error
# The kind of nnx variable that a leaf of linen's collection is.
KINDS: dict[str, type[nnx.Variable]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def flatten(variables: Any, argument: str = "variables") -> tuple[Flat, Callable[[Flat], Any]]:
    """The leaves of ``variables`` by collection and path, and what puts a tree together again.

    Args:
      variables: linen's ``{"params": ..., "batch_stats": ...}``, or an ``nnx.State``, whose
        collections are the kinds of its variables (``nnx.Param`` is in ``params``).
      argument: its name in errors.

    Returns:
      The leaves; and a function from leaves to a tree of the kind of ``variables``, with leaves
      replaced, added or left out as it is told. What stands around leaves stays: boxes such as
      ``nn.Partitioned`` are put on again, and frozen layers are frozen.
    """
    if isinstance(variables, nnx.State):
        old = {(_collection(v), *path): v for path, v in nnx.to_flat_state(variables)}
        return {p: _value(v) for p, v in old.items()}, lambda new: _to_state(new, old)
    if isinstance(variables, Mapping) and all(isinstance(v, Mapping) for v in variables.values()):
        old = _entries(variables)
        held = switches(variables)
        return {p: _unboxed(v) for p, v in old.items()}, lambda new: _to_variables(new, old, held)
    found = type(variables).__name__
    if isinstance(variables, Mapping):
        found += f" with {', '.join(map(str, variables))} at the top"
    raise TypeError(
        f"{argument} must be linen's variables by collection ({{'params': ..., 'batch_stats': "
        f"...}}) or an nnx.State, as from nnx.state(model) or nnx.split(model), got {found}."
    )


def switches(variables: Mapping[str, Any]) -> dict[Path, Switches]:
    """The switches of frozen layers in linen's variables, by path without collection."""
    flat = traverse_util.flatten_dict(dict(variables))
    return {p[1:-1]: v for p, v in flat.items() if isinstance(v, Switches) and p[-1] == SWITCHES}


def with_switches(
    variables: Mapping[str, Any], switches: Mapping[Path, Switches]
) -> dict[str, Any]:
    """Linen's variables with layers switched so, by path without collection, and no others."""
    flat = _entries(variables)
    return _to_variables(flat, flat, switches)


def in_containers_of(old: Any, new: Any) -> Any:
    """``new`` in the containers of ``old``, if both have leaves at the same paths.

    Linen returns dicts where it was given a ``FrozenDict``; frozen layers are containers too.
    """
    found = jax.tree_util.tree_leaves_with_path(new)
    if [path for path, _ in found] != [p for p, _ in jax.tree_util.tree_leaves_with_path(old)]:
        return new
    return jax.tree.unflatten(jax.tree.structure(old), [leaf for _, leaf in found])


def name(path: Iterable[Any]) -> str:
    """``("block", 0, "scale")`` as ``"block/0/scale"``."""
    return "/".join(map(str, path))


def norms(flat: Flat) -> list[Path]:
    """Paths, without collection, of all layers with running statistics, in the tree's order."""
    stats = (path[1:] for path in flat if path[0] == "batch_stats")
    return [
        path[:-1]
        for path in stats
        if path[-1:] == ("mean",) and ("batch_stats", *path[:-1], "var") in flat
    ]


def choose_norms(paths: Iterable[Path], pattern: str) -> list[Path]:
    """As :func:`choose`, of batch norms; another error if there are none at all."""
    paths = list(paths)
    if not paths:
        raise ValueError(
            "there is no batch norm in the model: no layer with mean and var in batch_stats. If "
            "bnjax.surgery.fold took them away, do this before it, with the model and variables "
            "that it was given."
        )
    return choose(paths, pattern)


def refuse_shapes(flat: Flat, why: str = "", argument: str = "variables") -> None:
    """Raise where a leaf is a shape without values."""
    empty = [name(path) for path, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if empty:
        more = f" and {len(empty) - MOST_NAMED} more" if len(empty) > MOST_NAMED else ""
        raise ValueError(
            f"{argument} have no values at {', '.join(empty[:MOST_NAMED])}{more}, only shapes{why}."
            " jax.eval_shape gives shapes alone: pass what model.init(key, x) draws, or the "
            "nnx.state of a model."
        )


def choose(paths: Iterable[Path], pattern: str, argument: str = "layers") -> list[Path]:
    """The paths in which the regular expression ``pattern`` is found; an error if there is none."""
    paths, expression = list(paths), regular(pattern, argument)
    chosen = [path for path in paths if expression.search(name(path))]
    if not chosen:
        known = ", ".join(name(path) or "(the model itself)" for path in paths) or "none"
        raise ValueError(
            f"{argument}={pattern!r} is found in no layer. It is a regular expression to be found "
            f"anywhere in a path; the layers are {known}."
        )
    return chosen


def regular(pattern: str, argument: str) -> re.Pattern[str]:
    """The regular expression ``pattern``; ValueError or TypeError if it is none."""
    if not isinstance(pattern, str):
        raise TypeError(
            f"{argument} must be a regular expression, a str, got {type(pattern).__name__}."
        )
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{argument}={pattern!r} is no regular expression: {error}.") from None


def _entries(variables: Mapping[str, Any]) -> Flat:
    """Leaves of linen's variables, boxed where they are, without switches."""
    flat = traverse_util.flatten_dict(dict(variables))
    return {path: v for path, v in flat.items() if not isinstance(v, Switches)}


def _unboxed(leaf: Any) -> Any:
    return leaf.unbox() if isinstance(leaf, AxisMetadata) else leaf


def _to_variables(
    flat: Flat, old: Mapping[Path, Any], held: Mapping[Path, Switches]
) -> dict[str, Any]:
    def leaf(path, value):
        box = old.get(path)
        boxed = isinstance(box, AxisMetadata) and not isinstance(value, AxisMetadata)
        return box.replace_boxed(value) if boxed else value  # pyright: ignore[reportOptionalMemberAccess]

    tree = traverse_util.unflatten_dict({path: leaf(path, v) for path, v in flat.items()})
    for path, switches in held.items():
        if switches != AS_CALLED and ("batch_stats", *path, "mean") in flat:
            _switch(tree, ("batch_stats", *path), switches)
    return tree


def _switch(tree: dict[str, Any], path: Path, switches: Switches) -> None:
    """Make the layer at ``path`` a frozen one."""
    *above, last = path
    for key in above:
        tree = tree[key]
    tree[last] = SwitchedStats({**tree[last], SWITCHES: switches})


def _collection(leaf: Any) -> str:
    for collection, kind in KINDS.items():
        if isinstance(leaf, kind):
            return collection
    # Random streams, plain arrays and the like: carried along.
    return type(leaf).__name__ if isinstance(leaf, nnx.Variable) else "arrays"


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _to_state(flat: Flat, old: Mapping[Path, Any]) -> nnx.State:
    def leaf(path, value):
        if path in old:
            return old[path].replace(value) if isinstance(old[path], nnx.Variable) else value
        return KINDS[str(path[0])](jnp.asarray(value))

    return nnx.from_flat_state({path[1:]: leaf(path, v) for path, v in flat.items()})
