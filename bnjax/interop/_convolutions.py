"""Which convolutions are transposed: told by the object, by an option, or asked for.

A kernel of as many channels in as out has one shape in every layout. Where only names are known,
nearly all such kernels are of ordinary convolutions (every ResNet is full of them), and a few are
not. So the question is put only where something speaks for a transposed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bnjax.interop._layout import Layout, Shape
from bnjax.interop._mapping import Place
from bnjax.interop._names import Choice, chosen

# What people call layers that enlarge a map.
ENLARGES = re.compile(r"transpos|deconv|conv_?t(?![a-z])|(?<![a-z])(t_?conv|up(?!date|per))")
# What they call ordinary ones.
ORDINARY = re.compile(r"conv|down|^c\d*$")


class Kinds(NamedTuple):
    """Layers that are transposed (True) or not, by who says so."""

    said: Mapping[str, bool]  # by the option, of all layers or of none
    known: Mapping[str, bool]  # by their types


def kinds(layers: Iterable[str], known: Mapping[str, bool], transposed: Choice) -> Kinds:
    """What the option says of ``layers``, and what their types do.

    Layers known to be ordinary are not among those that the option chooses from.
    """
    layers = list(layers)
    if transposed is None:
        return Kinds({}, known)
    possible = [layer for layer in layers if known.get(layer, True)]
    found = chosen(possible, transposed, "transposed")
    return Kinds({layer: layer in found for layer in layers}, known)


def kernel_places(
    layer: str, leaf: str, plain: Layout, flipped: Layout, space: Shape, kinds: Kinds
) -> list[Place]:
    """Where the kernel of ``layer`` may lie.

    Args:
      layer: its foreign name.
      leaf: its leaf, ``"params/path/kernel"``.
      plain: of an ordinary one, and of a transposed one with Flax's ``transpose_kernel=True``.
      flipped: of a transposed one.
      space: sizes of the kernel but for channels.
      kinds: of all layers.
    """
    said, known = kinds.said.get(layer), kinds.known.get(layer)
    if said is not None:
        return [Place(leaf, flipped if said else plain)]
    if known is not None:  # the shape may tell that the target has transpose_kernel=True
        return [Place(leaf, flipped), Place(leaf, plain)] if known else [Place(leaf, plain)]
    asked = Place(leaf, flipped, option="transposed", faint=not _suspect(layer, leaf, space))
    return [Place(leaf, plain), asked]


def _suspect(layer: str, leaf: str, space: Shape) -> bool:
    """Whether something speaks for a transposed convolution, or nothing for an ordinary one.

    The layer's own name on either side may say either. Else the lack of a foreign name is one
    hint, and an even size another: it fits a stride of two, whereas ordinary kernels have a centre.
    """
    theirs, ours = _own_name(re.split(r"[./]", layer)), _own_name(leaf.split("/")[1:-1])
    if ENLARGES.search(theirs) or ENLARGES.search(ours):
        return True
    if ORDINARY.search(theirs) or ORDINARY.search(ours):
        return False
    return not theirs or all(n % 2 == 0 for n in space)


def _own_name(path: list[str]) -> str:
    """The last part that is no number, in lower case with words apart."""
    own = next((part for part in reversed(path) if re.search("[A-Za-z]", part)), "")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", own).lower()
