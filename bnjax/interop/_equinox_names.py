"""Where each array of an Equinox model lies in variables of Flax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bnjax.interop._equinox_parts import BATCH_NORM, Layer, Parts
from bnjax.interop._layout import Layout, Shape, reshaped, transposed
from bnjax.interop._mapping import Leaves, Place
from bnjax.interop._names import Choice, Rename, chosen, leaf_name, renamed
from bnjax.interop._places import heads, in_attention, norm_places

STATISTICS = ("mean", "var", "count")
# Projections of MultiheadAttention, as Flax's attention calls them.
PROJECTIONS = {
    "query_proj": "query",
    "key_proj": "key",
    "value_proj": "value",
    "output_proj": "out",
}
LINEAR, CONVOLUTIONS = "Linear", ("Conv", "ConvTranspose")
# What Flax calls the weight of a layer; that of no known kind keeps its name.
WEIGHTS = {LINEAR: "kernel", "Embedding": "embedding", **dict.fromkeys(CONVOLUTIONS, "kernel")}


@dataclasses.dataclass(frozen=True)
class Names:
    """The rules for one model."""

    layers: Mapping[str, Layer]
    rename: Rename
    channels_first: Mapping[str, bool]  # layer norms over several axes, as the option says

    def __call__(self, name: str, shape: Shape, leaves: Leaves) -> list[list[Place]]:
        path, _, leaf = name.rpartition(".")
        if leaf in STATISTICS and self._layer(path).kind == BATCH_NORM:
            ours = leaf_name("batch_stats", self._paths(path)[0], leaf)
            known = leaf != "count" or ours in leaves
            return [[Place(ours, reshaped(shape))]] if known else []
        paths = self._paths(path)
        return [[place for ours in paths for place in self._places(name, ours, shape, leaves)]]

    def _layer(self, path: str) -> Layer:
        return self.layers.get(path, Layer("", None))

    def _paths(self, path: str) -> list[str]:
        """What the layer may be called in Flax, best first."""
        parent, dot, own = path.rpartition(".")
        names = [path, *([parent + dot + PROJECTIONS[own]] if own in PROJECTIONS else [])]
        return [renamed(name, self.rename).replace(".", "/") for name in names]

    def _places(self, name: str, path: str, shape: Shape, leaves: Leaves) -> list[Place]:
        theirs, _, leaf = name.rpartition(".")
        layer = self._layer(theirs)
        ours = leaf_name("params", path, _own_name(layer, leaf))
        if leaf not in ("weight", "bias"):
            return [Place(ours, reshaped(shape))]
        if layer.kind in (LINEAR, *CONVOLUTIONS):
            layouts = _kernel(layer, shape) if leaf == "weight" else [_bias(layer, shape)]
            split = in_attention(path, leaves)
            return [Place(ours, heads(x, ours, leaves) if split else x) for x in layouts]
        if 1 < len(getattr(layer.module, "shape", ())) == len(shape):
            return norm_places(theirs, ours, shape, leaves, self.channels_first)
        return [Place(ours, reshaped(shape))]


def names_of(parts: Parts, rename: Rename, channels_first: Choice) -> Names:
    """The rules for the arrays of ``parts``."""
    several = [
        path for path, (_, layer) in parts.layers.items() if len(getattr(layer, "shape", ())) > 1
    ]
    first = chosen(several, channels_first, "channels_first")
    said = {} if channels_first is None else {path: path in first for path in several}
    return Names(parts.layers, rename, said)


def _own_name(layer: Layer, leaf: str) -> str:
    if leaf != "weight" or not layer.kind:
        return leaf
    return WEIGHTS.get(layer.kind, "scale")


def _kernel(layer: Layer, shape: Shape) -> list[Layout]:
    """(..., out, in, space) as (..., space, in, out); leading axes are those of a stack."""
    start = len(shape) - 2 - _space(layer)
    if start < 0:  # the weight is not of the layer's making
        return [reshaped(shape)]
    lead, (o, i), space = range(start), (start, start + 1), range(start + 2, len(shape))
    plain = transposed(shape, [*lead, *space, i, o])
    if layer.kind != "ConvTranspose":
        return [plain]
    # That of transpose_kernel=True, as far as the shape tells: (out, in), running backwards.
    backwards = tuple(range(start, start + len(space)))
    return [plain, transposed(shape, [*lead, *space, o, i], backwards)]


def _bias(layer: Layer, shape: Shape) -> Layout:
    return reshaped(shape, shape[: len(shape) - _space(layer)])


def _space(layer: Layer) -> int:
    return layer.module.num_spatial_dims if layer.kind in CONVOLUTIONS else 0
