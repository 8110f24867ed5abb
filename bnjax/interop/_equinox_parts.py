"""An Equinox model taken apart: its layers, its arrays by path, and its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from bnjax.interop._optional import optional
from bnjax.interop._trees import is_numeric

# Layers whose arrays have a name or a layout of their own in Flax.
KINDS = ("Linear", "Conv", "ConvTranspose", "Embedding", "LayerNorm", "RMSNorm", "GroupNorm")
BATCH_NORM = "BatchNorm"
# What tells that a layer was made without the array.
SWITCHES = {
    "weight": ("use_weight", "channelwise_affine"),
    "bias": ("use_bias", "channelwise_affine"),
}


class Layer(NamedTuple):
    kind: str
    module: Any


class Parts(NamedTuple):
    layers: Mapping[str, Layer]  # those of a kind that is known, by path
    norms: Mapping[str, Any]  # those of them that have running statistics
    arrays: dict[str, Any]  # by path
    state: Any
    leaves: list[Any]  # of the state
    places: Any  # the state with the number of each leaf in its place
    others: Mapping[str, int]  # what layers of other kinds keep there: numbers by path


def parts_of(model: Any, state: Any) -> Parts:
    """``model`` and ``state`` taken apart, if they are of Equinox and of each other."""
    equinox = optional("equinox", "equinox")
    _check_kinds(model, state, equinox)
    layers = layers_of(model)
    _check_whole(layers)
    index = equinox.nn.StateIndex
    nodes = dict(_leaves(model, (index,)))
    indices = {path: node for path, node in nodes.items() if isinstance(node, index)}
    state = _initial(model, equinox.nn) if state is None else state
    leaves, structure = jax.tree.flatten(state)
    places = jax.tree.unflatten(structure, range(len(leaves)))
    _check_belongs(indices, places)
    norms = batch_norms(layers)
    others = {
        below(path, name): place
        for path, index in indices.items()
        if path.rpartition(".")[0] not in norms
        for name, place in _leaves(places.get(index), ())
    }
    arrays = {path: node for path, node in nodes.items() if _is_numeric(node)}
    return Parts(layers, norms, arrays, state, leaves, places, others)


def layers_of(model: Any) -> dict[str, Layer]:
    """The layers of a kind that is known, by path."""
    nn = optional("equinox", "equinox").nn
    kinds = {kind: getattr(nn, kind) for kind in (*KINDS, BATCH_NORM) if hasattr(nn, kind)}
    types = tuple(kinds.values())
    return {
        path: Layer(next(kind for kind, cls in kinds.items() if isinstance(node, cls)), node)
        for path, node in _leaves(model, types)
        if isinstance(node, types)
    }


def batch_norms(layers: Mapping[str, Layer]) -> dict[str, Any]:
    return {path: module for path, (kind, module) in layers.items() if kind == BATCH_NORM}


def text(path: Any) -> str:
    """``"blocks.0.norm"``."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def below(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)


def _leaves(tree: Any, types: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Nodes of ``types`` and all other leaves, by path."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, types))
    return ((text(path), node) for path, node in found)


def _is_numeric(x: Any) -> bool:
    """Whether ``x`` holds numbers: no key of a random stream, no number that is an option."""
    return hasattr(x, "shape") and hasattr(x, "dtype") and is_numeric(x.dtype)


def _initial(model: Any, nn: Any) -> Any:
    """The state that a model still holds which was not made by ``make_with_state``."""
    try:
        return nn.State(model)
    except (TypeError, ValueError) as error:  # it may hold shapes alone
        raise ValueError(
            "state must be the eqx.nn.State of the model, as layers of it have one, got None: "
            "model, state = eqx.nn.make_with_state(Model)(...)."
        ) from error


def _check_kinds(model: Any, state: Any, equinox: Any) -> None:
    if not (state is None or isinstance(state, equinox.nn.State)):
        raise TypeError(
            f"state must be an eqx.nn.State or None, got {type(state).__name__}: model, state = "
            "eqx.nn.make_with_state(Model)(...)."
        )
    types = (equinox.Module, equinox.nn.State)
    found = [type(node) for _, node in _leaves(model, types) if isinstance(node, types)]
    if not found or equinox.nn.State in found:
        got = "a State in it" if found else type(model).__name__
        raise TypeError(
            f"model must be an equinox.Module or a tree of them, without its state, got {got}."
        )


def _check_whole(layers: Mapping[str, Layer]) -> None:
    """Raise where arrays are None that the layers were made with."""
    lost = [
        below(path, name)
        for path, (_, module) in layers.items()
        for name, switches in SWITCHES.items()
        if getattr(module, name, ()) is None
        and all(getattr(module, switch, True) for switch in switches)
    ]
    if lost:
        raise ValueError(
            f"model has None at {', '.join(lost)}: one half of eqx.partition has not all weights. "
            "Join both before: eqx.combine(one, other)."
        )


def _check_belongs(indices: Mapping[str, Any], places: Any) -> None:
    """Raise where the state lacks what a layer keeps there."""
    lacking = [path for path, index in indices.items() if not _held(places, index)]
    if lacking:
        raise ValueError(
            f"state has nothing of {', '.join(lacking)}: it is of another model. Pass the two that "
            "eqx.nn.make_with_state returned, or training did."
        )


def _held(state: Any, index: Any) -> bool:
    try:
        state.get(index)
    except KeyError:
        return False
    return True
