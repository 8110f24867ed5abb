"""Where arrays may lie whose layout only the target's shape tells."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bnjax.interop._layout import Layout, Shape, channels_last, reshaped
from bnjax.interop._mapping import Leaves, Place

ATTENTION = ("query", "key", "value", "out")


def norm_places(
    layer: str, leaf: str, shape: Shape, leaves: Leaves, channels_first: Mapping[str, bool]
) -> list[Place]:
    """A norm over several axes, whose order the shapes tell unless all sizes are equal.

    Args:
      layer: its foreign name.
      leaf: its leaf, ``"params/path/scale"``.
      shape: of the foreign array.
      leaves: shapes of all leaves.
      channels_first: of the layers that the option speaks of, whether their channels come first.
    """
    same, moved = reshaped(shape), channels_last(shape)
    if layer in channels_first:
        return [Place(leaf, moved if channels_first[layer] else same)]
    if leaves.get(leaf) == shape == moved.shape:
        return [Place(leaf, same), Place(leaf, moved, option="channels_first")]
    return [Place(leaf, same), Place(leaf, moved)]


def in_attention(path: str, leaves: Leaves) -> bool:
    """Whether the layer at ``path`` is a projection of Flax's attention."""
    parent, _, own = path.rpartition("/")
    below = f"params/{parent}/" if parent else "params/"
    return own in ATTENTION and all(f"{below}{x}/kernel" in leaves for x in ATTENTION)


def heads(layout: Layout, leaf: str, leaves: Leaves) -> Layout:
    """``layout`` with features by head, if ``leaf`` has an axis of heads; theirs are in order."""
    ours = leaves.get(leaf, ())
    n = len(layout.shape)
    fits = len(ours) == n + 1 and math.prod(ours) == math.prod(layout.shape)
    # Only the features of one side are split: (in, heads, features) or (heads, features, out).
    if fits and (n == 1 or ours[0] == layout.shape[0] or ours[-1] == layout.shape[-1]):
        return layout._replace(shape=ours)
    return layout
