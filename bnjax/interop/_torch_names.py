"""Where each name of a PyTorch ``state_dict`` lies in variables of Flax."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bnjax.interop._convolutions import Kinds, kernel_places, kinds
from bnjax.interop._layout import Layout, Shape, reshaped, transposed
from bnjax.interop._mapping import Leaves, Place
from bnjax.interop._names import (
    CONVOLUTION,
    Choice,
    Rename,
    chosen,
    layers_with,
    leaf_name,
    renamed,
)
from bnjax.interop._places import heads, in_attention, norm_places

# torch's names of what a norm or a layer holds, but for weights: collection and name in Flax.
LEAVES = {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
    "num_batches_tracked": ("batch_stats", "count"),
}
# What norms of other hands call theirs.
NORM = {"gamma": "scale", "beta": "bias"}
# Of torch.nn.MultiheadAttention: which projections a parameter holds, one below the other.
PROJECTIONS = {
    "in_proj_weight": ("query", "key", "value"),
    "in_proj_bias": ("query", "key", "value"),
    "q_proj_weight": ("query",),
    "k_proj_weight": ("key",),
    "v_proj_weight": ("value",),
}
# Buffers that are no constants: weights that do not learn, and what training keeps.
STATE = re.compile(
    r"running|moving|tracked|average|avg|(?<![a-z])ema|count|cluster|codebook|_[uv]$"
)


@dataclasses.dataclass(frozen=True)
class Names:
    """The rules for one ``state_dict``."""

    shapes: Mapping[str, Shape]
    rename: Rename
    convolutions: Kinds
    flattened: Mapping[str, tuple[int, int, int]]
    channels_first: Mapping[str, bool]  # layer norms over several axes, as the option says
    constants: frozenset[str]

    def __call__(self, name: str, shape: Shape, leaves: Leaves) -> list[list[Place]]:
        """The places of each part of an array."""
        slots = list(self._slots(name, shape, leaves))
        known = any(place.leaf in leaves for slot in slots for place in slot)
        return slots if known or name not in self.constants else []

    def _slots(self, name: str, shape: Shape, leaves: Leaves) -> Iterator[list[Place]]:
        layer, _, leaf = name.rpartition(".")
        paths = self._paths(layer)
        joined = len(PROJECTIONS.get(leaf, ()))
        as_it_is = leaf_name("params", paths[0], leaf) in leaves
        if joined and shape and shape[0] % joined == 0 and not as_it_is:
            yield from self._projections(layer, leaf, shape, leaves)
        elif leaf == "num_batches_tracked" and _uncounted(paths[0], leaves):
            return  # only an average of all updates needs to know how many there were
        else:
            yield [place for path in paths for place in self._places(name, path, shape, leaves)]

    def _paths(self, layer: str) -> list[str]:
        """What the layer may be called in Flax, best first."""
        parent, _, own = layer.rpartition(".")
        names = [layer]
        joined = (_below(parent, leaf) for leaf in ("in_proj_weight", "q_proj_weight"))
        if own == "out_proj" and any(leaf in self.shapes for leaf in joined):
            names.append(_below(parent, "out"))
        return [renamed(name, self.rename).replace(".", "/") for name in names]

    def _places(self, name: str, path: str, shape: Shape, leaves: Leaves) -> list[Place]:
        layer, _, leaf = name.rpartition(".")
        scale = leaf_name("params", path, "scale")
        if leaf in ("weight", "bias") and len(shape) > 1 and scale in leaves:
            ours = scale if leaf == "weight" else leaf_name("params", path, "bias")
            return norm_places(layer, ours, shape, leaves, self.channels_first)
        if leaf == "weight" and len(shape) > 1:
            kernel, table = (leaf_name("params", path, own) for own in ("kernel", "embedding"))
            return [*self._kernel(layer, kernel, shape, leaves), Place(table, reshaped(shape))]
        collection, ours = LEAVES.get(leaf, ("params", "scale" if leaf == "weight" else leaf))
        ours = leaf_name(collection, path, ours)
        if leaf in NORM:
            other = leaf_name(collection, path, NORM[leaf])
            return [Place(ours, reshaped(shape)), Place(other, reshaped(shape))]
        of_heads = leaf == "bias" and in_attention(path, leaves)
        return [Place(ours, heads(reshaped(shape), ours, leaves) if of_heads else reshaped(shape))]

    def _kernel(self, layer: str, leaf: str, shape: Shape, leaves: Leaves) -> list[Place]:
        if layer in self.flattened:
            channels, height, width = self.flattened[layer]
            split = (shape[0], channels, height, width)
            ours = (height * width * channels, shape[0])
            return [Place(leaf, Layout(split, (2, 3, 1, 0), ours))]
        space = range(2, len(shape))
        plain = transposed(shape, [*space, 1, 0])
        if len(shape) not in CONVOLUTION:
            path = leaf.removeprefix("params/").rpartition("/")[0]
            return [
                Place(leaf, heads(plain, leaf, leaves) if in_attention(path, leaves) else plain)
            ]
        # torch's is the gradient of a convolution: (in, out, ...), running backwards.
        flipped = transposed(shape, [*space, 0, 1], tuple(range(len(space))))
        return kernel_places(layer, leaf, plain, flipped, shape[2:], self.convolutions)

    def _projections(
        self, layer: str, leaf: str, shape: Shape, leaves: Leaves
    ) -> Iterator[list[Place]]:
        """Rows of a parameter of torch.nn.MultiheadAttention, a layer for each in Flax."""
        projections = PROJECTIONS[leaf]
        rows = shape[0] // len(projections)
        part = (rows, *shape[1:])
        layout = transposed(part, [1, 0]) if len(shape) == 2 else reshaped(part)
        for i, projection in enumerate(projections):
            path = renamed(_below(layer, projection), self.rename).replace(".", "/")
            ours = leaf_name("params", path, "kernel" if len(shape) == 2 else "bias")
            where = slice(i * rows, (i + 1) * rows) if len(projections) > 1 else ...
            yield [Place(ours, heads(layout, ours, leaves), where)]


def names_of(
    foreign: Mapping[str, Any],
    module: Any,
    rename: Rename,
    transposed: Choice,
    flattened: Mapping[str, tuple[int, int, int]] | None,
    channels_first: Choice,
) -> Names:
    """The rules for ``foreign``; ``module`` is the object that knows its types, if there is one."""
    convolutions = layers_with(foreign, "weight", ".", CONVOLUTION)
    linear = layers_with(foreign, "weight", ".", range(2, 3))
    several = layers_with(foreign, "weight", ".", range(2, 99))
    maps = {
        layer: shape
        for pattern, shape in (flattened or {}).items()
        for layer in chosen(linear, pattern, "flattened")
    }
    first = chosen(several, channels_first, "channels_first")
    return Names(
        shapes={name: tuple(getattr(x, "shape", ())) for name, x in foreign.items()},
        rename=rename,
        convolutions=kinds(convolutions, _known(module), transposed),
        flattened=maps,
        channels_first={} if channels_first is None else {x: x in first for x in several},
        constants=frozenset(_constants(module)),
    )


def _known(module: Any) -> dict[str, bool]:
    """Whether a convolution is transposed, by its name; every convolution of torch says so."""
    known = {name: getattr(layer, "transposed", None) for name, layer in modules(module)}
    return {name: kind for name, kind in known.items() if isinstance(kind, bool)}


def _constants(module: Any) -> Iterator[str]:
    """Names of the buffers that are constants, such as masks and tables of positions."""
    for path, layer in modules(module):
        buffers = dict(layer.named_buffers(recurse=False))
        if {"running_mean", "running_var"} & buffers.keys():
            continue
        for name, x in buffers.items():
            # "bias" is a mask in the attention of GPT-2, which has no weight of its own.
            learned = name in ("weight", "bias") and (x.ndim < 2 or hasattr(layer, "weight"))
            if not (learned or STATE.search(name.lower())):
                yield _below(path, name)


def modules(module: Any) -> Iterator[tuple[str, Any]]:
    """Every layer of a torch.nn.Module by each of its names; none of other objects."""
    if hasattr(module, "named_modules"):
        yield from module.named_modules(remove_duplicate=False)


def _below(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _uncounted(path: str, leaves: Leaves) -> bool:
    """Whether a layer has running statistics and does not count their updates."""
    mean, count = (leaf_name("batch_stats", path, leaf) for leaf in ("mean", "count"))
    return mean in leaves and count not in leaves
