"""Names of layers: renamed, joined to leaves, and chosen by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from bnjax import _variables

Rule = tuple[str, str | Callable[[re.Match[str]], str]] | Callable[[str], str]
Rename = Sequence[Rule] | Callable[[str], str]
# None leaves it to the types and shapes of layers, False says that there is none.
Choice = str | Literal[False] | None
CONVOLUTION = range(3, 6)  # axes of a kernel over one to three axes of space


def leaf_name(collection: str, layer: str, leaf: str) -> str:
    """``"params/block/kernel"``; ``"params/kernel"`` when the layer is the model itself."""
    return "/".join(part for part in (collection, layer, leaf) if part)


def renamed(layer: str, rename: Rename) -> str:
    """``layer`` after each rule of ``rename`` in turn."""
    for rule in [rename] if callable(rename) else rename:
        layer = _by_function(layer, rule) if callable(rule) else _by_pair(layer, rule)
    return layer


def _by_function(layer: str, rule: Callable[[str], str]) -> str:
    new = rule(layer)
    if not isinstance(new, str):
        raise TypeError(
            "a function in rename must return the new name of a layer, got "
            f"{type(new).__name__} for {layer!r}."
        )
    return new


def _by_pair(layer: str, rule: Any) -> str:
    if isinstance(rule, str) or len(rule) != 2:
        raise ValueError(
            f"rename must be pairs (regular expression, replacement), or functions, got {rule!r} "
            r"in it. A single rule is rename=[(r'\.bn', '/BatchNorm_')]."
        )
    pattern, replacement = rule
    return re.sub(pattern, replacement, layer)


def layers_with(foreign: Mapping[str, Any], leaf: str, separator: str, ranks: range) -> list[str]:
    """Names of the layers whose array called ``leaf`` has so many axes."""
    names = {name: name.rpartition(separator) for name in foreign if isinstance(name, str)}
    return [
        layer
        for name, (layer, _, last) in names.items()
        if last == leaf and len(getattr(foreign[name], "shape", ())) in ranks
    ]


def chosen(layers: Iterable[str], pattern: Choice, argument: str) -> set[str]:
    """The foreign layers in which ``pattern`` is found, none for None and False."""
    if pattern is None or pattern is False:
        return set()
    if not isinstance(pattern, str | re.Pattern):
        raise TypeError(f"{argument} must be a regular expression, got {pattern!r}.")
    paths = [(layer,) for layer in layers]
    return {str(layer) for (layer,) in _variables.choose(paths, pattern, argument)}
