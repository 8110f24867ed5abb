"""Find the batch norms of a model that a dense layer or convolution next to them can absorb."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from bnjax import _variables
from bnjax._variables import Path, name
from bnjax.surgery._models import Model
from bnjax.surgery._neighbours import LeftAlone, Neighbours

Side = Literal["previous", "next"]


class Pair(NamedTuple):
    """A norm and the layer that can absorb it.

    Attributes:
      norm: path of the norm.
      layer: path of the dense layer or convolution.
      side: whether that layer comes before the norm ("previous") or after it ("next").
      options: keyword arguments of :func:`fold_into_previous` or :func:`fold_into_next`.
      cast: dtype of the norm's output where that is not the dtype of its input.

    Example:
      >>> from bnjax.surgery import Pair
      >>> print(Pair(("block", "norm"), ("block", "conv"), "previous", {"epsilon": 1e-5}, None))
      block/norm: into block/conv before it

    Source: bnjax.
    """

    norm: Path
    layer: Path
    side: Side
    options: Mapping[str, Any]
    cast: Any

    def __str__(self) -> str:
        return f"{name(self.norm)}: {self.where()}"

    def where(self) -> str:
        """The layer in words."""
        side = "before" if self.side == "previous" else "after"
        return f"into {name(self.layer)} {side} it"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What :func:`find_pairs` found; ``str`` of it says so in words.

    Attributes:
      pairs: norms that can be folded, with the layer that absorbs each.
      left_alone: why each other norm stays, by its path.
      eps: machine epsilon of the coarsest floating dtype in the model.

    Example:
      >>> from bnjax.surgery import Pairs
      >>> print(Pairs((), {("block", "norm"): "is called 2 times"}, 1.2e-7))
      pairs: 0
      left alone: 1
        block/norm: is called 2 times

    Source: bnjax; PyTorch's fusion passes name no reasons.
    """

    pairs: tuple[Pair, ...]
    left_alone: Mapping[Path, str]
    eps: float

    def __str__(self) -> str:
        found = {pair.norm: pair.where() for pair in self.pairs}
        return account("pairs", found) + account("left alone", self.left_alone, always=False)


def find_pairs(model: Model, variables: Any, *args: Any, layers: str = "", **kwargs: Any) -> Pairs:
    """Batch norms that can be folded into a neighbour, and why the others cannot.

    The model is traced, without computing anything. A norm and a dense layer or convolution are a
    pair if the output of the one is the input of the other and is used nowhere else, each is called
    once, and the norm is a fixed scale and shift. Transpositions may stand between them.

    Args:
      model: a linen module, or an ``nnx.GraphDef`` as from ``nnx.split(model)``.
      variables: linen's variables, or the ``nnx.State``.
      args, kwargs: of one call in which the running statistics normalise: what linen's ``apply``
        takes after the variables (``train=False``), or what the nnx model takes, split after
        ``model.eval()``. Arrays, or ``jax.ShapeDtypeStruct``.
      layers: regular expression to be found in the path of a norm; by default every one.

    Returns:
      :class:`Pairs`.

    Raises:
      ValueError: ``layers`` is found in the path of no norm.
      TypeError: ``model`` or ``variables`` is neither.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from bnjax.surgery import find_pairs
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> model = nn.Sequential([nn.Conv(3, (3, 3)), norm, nn.relu])
      >>> x = jnp.ones((1, 4, 4, 2))
      >>> print(find_pairs(model, model.init(jax.random.key(0), x), x))
      pairs: 1
        layers_1: into layers_0 before it

    Source: as ``torch.fx.experimental.optimization.fuse`` matches modules in its graph; but that
    needs convolution and norm to follow each other in this order, and names no reasons.
    """
    neighbours = Neighbours(model, variables, args, kwargs)
    pairs, left_alone = [], {}
    for norm in chosen(_variables.norms(neighbours.flat), layers):
        try:
            pairs.append(_pair(neighbours, norm))
        except LeftAlone as why:
            left_alone[norm] = str(why)
    return Pairs(tuple(pairs), left_alone, neighbours.wiring.eps)


def chosen(paths: list[Path], layers: str) -> list[Path]:
    """The paths in which ``layers`` is found; of no paths all."""
    return _variables.choose(paths, layers) if paths or layers else []


def account(what: str, lines: Mapping[Path, str], always: bool = True) -> str:
    """How many, and what was done or not to each path; on a new line if ``always`` is False."""
    if not lines and not always:
        return ""
    head = f"{what}: {len(lines)}"
    rest = [f"  {name(path) or '(the model itself)'}: {text}" for path, text in lines.items()]
    return ("" if always else "\n") + "\n".join([head, *rest])


def _pair(neighbours: Neighbours, norm: Path) -> Pair:
    layer = neighbours.fixed_norm(norm)
    reasons = []
    sides: tuple[tuple[Side, Any], ...] = (
        ("previous", neighbours.previous),
        ("next", neighbours.next),
    )
    for side, find in sides:
        try:
            path = find(norm)
        except LeftAlone as why:
            reasons.append(str(why))
            continue
        given = neighbours.wiring.layers[path].options
        in_axis, out_axis = (-1, -2) if given["transpose_kernel"] else (-2, -1)
        options = {
            "epsilon": layer.options["epsilon"],
            "in_axis": in_axis,
            "out_axis": out_axis,
            "feature_group_count": given["feature_group_count"] or 1,
        }
        return Pair(norm, path, side, options, layer.cast)
    raise LeftAlone("; ".join(reasons))
