"""Parameters and state of Haiku as variables, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnjax.interop import _mapping
from bnjax.interop._convolutions import Kinds, kernel_places, kinds
from bnjax.interop._layout import Layout, Shape, reshaped, transposed
from bnjax.interop._mapping import Leaves, Place
from bnjax.interop._names import CONVOLUTION, Choice, Rename, layers_with, leaf_name, renamed

Tree = dict[str, dict[str, Any]]
# Haiku's names: name in Flax. All others are parameters of the same name.
LEAVES = {"w": "kernel", "b": "bias", "offset": "bias", "embeddings": "embedding"}
AVERAGES = {"mean_ema": "mean", "var_ema": "var"}
# So many updates that 1 - decay ** MANY is 1 and adding to it stays an int32.
MANY = 2**30


def from_haiku(
    params: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, Mapping[str, Any]] | None,
    variables: Any,
    rename: Rename = (),
    *,
    transposed: Choice = None,
    ignore: str | None = None,
) -> Any:
    r"""Variables with the parameters and running statistics of a Haiku model.

    ``w``, ``b``, ``scale``, ``offset`` and ``embeddings`` become ``kernel``, ``bias``, ``scale``,
    ``bias`` and ``embedding``; axes of size one of a norm are dropped. Of each moving average
    ``average`` becomes ``mean`` or ``var``, which is what Haiku evaluates with, and ``counter``
    becomes ``count``, 0 if there is none. Haiku debiases: the layer that trains on as
    ``hk.BatchNorm`` does is ``BatchNorm(momentum=decay_rate, epsilon=eps, debias=True)``, whose
    ``count`` is needed for it.

    Args:
      params, state: of ``hk.transform_with_state``; the state may be None.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. Other collections are carried along.
      rename: pairs (regular expression, replacement) and functions from a name to the new one,
        applied in turn to the name of each module, such as ``"net/~/batch_norm"``; or one such
        function.
      transposed: regular expression, found in the names of the transposed convolutions; needed
        for each of them, as nothing but names is known. Their target is Flax's ``ConvTranspose``
        with ``transpose_kernel=False``. False if there is none. None asks for it as
        :func:`bnjax.interop.from_torch` does.
      ignore: regular expression; names, such as ``"linear/w"``, and leaves in which it is found
        are left as they are.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to, mis-shaped and doubtful names; or all
        values that do not fit into the dtype of their leaf; or all leaves that nothing fills, and
        that are a ``jax.ShapeDtypeStruct`` without a value to be left at.

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import from_haiku
      >>> ema = {"average": np.ones((1, 2)), "hidden": np.ones((1, 2)), "counter": np.array(9)}
      >>> state = {"bn/~/mean_ema": ema, "bn/~/var_ema": ema}
      >>> stats = {"mean": np.zeros(2), "var": np.ones(2), "count": np.array(0)}
      >>> new = from_haiku({}, state, {"batch_stats": {"bn": stats}})
      >>> print(new["batch_stats"]["bn"]["mean"], new["batch_stats"]["bn"]["count"])
      [1. 1.] 9

    Source: ``hk.BatchNorm`` and ``hk.ExponentialMovingAverage``, whose ``hidden`` is
    ``average * (1 - decay ** counter)``.
    """
    foreign = _named(params, state)
    names = _names_of(foreign, rename, transposed)
    return _mapping.read(foreign, variables, names, "haiku", ignore)


def to_haiku(
    variables: Any,
    params: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, Mapping[str, Any]] | None,
    rename: Rename = (),
    *,
    decay: float | None = None,
    transposed: Choice = None,
    ignore: str | None = None,
) -> tuple[Tree, Tree]:
    r"""Parameters and state of Haiku with the values of variables.

    :func:`from_haiku` read backwards. Haiku evaluates with the running statistics and trains on
    from them as bnjax does: ``counter`` is ``count`` and ``hidden`` fits it. Layers without a
    ``count`` average plainly, as Haiku does after very many updates: their ``counter`` is 2³⁰. A
    ``count`` of 0 is that of a new model in Haiku, whose first batch replaces the averages.

    Args:
      variables: of linen or nnx.
      params, state: which names, shapes and dtypes are expected: arrays, or
        ``jax.eval_shape(net.init, key, x)``. They are left as they are.
      rename, transposed: those of :func:`from_haiku`, from Haiku's names to paths.
      decay: ``decay_rate`` of ``hk.BatchNorm``, the weight of the old value (``momentum`` in Flax);
        needed where layers have a ``count``.
      ignore: regular expression; names in which it is found, or whose leaves it is found in,
        keep their values.

    Returns:
      ``params, state`` for ``net.apply``.

    Raises:
      ValueError: as :func:`from_haiku`; ``decay`` is needed or lies outside [0, 1).

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import to_haiku
      >>> variables = {"batch_stats": {"bn": {"mean": np.ones(2), "var": np.ones(2)}}}
      >>> ema = {"average": np.zeros((1, 2)), "hidden": np.zeros((1, 2)), "counter": np.array(0)}
      >>> state = {"bn/~/mean_ema": ema, "bn/~/var_ema": ema}
      >>> print(to_haiku(variables, {}, state)[1]["bn/~/mean_ema"]["average"])
      [[1. 1.]]

    Source: as :func:`from_haiku`.
    """
    foreign = _named(params, state)
    names = _names_of(foreign, rename, transposed)
    new = _mapping.write(variables, foreign, names, "haiku", ignore)
    for layer in {average[0] for module in state or {} if (average := _average(module))}:
        new |= _averaging(layer, new, foreign, decay)
    return _nested(params, new), _nested(state or {}, new)


def _named(
    params: Mapping[str, Mapping[str, Any]], state: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any]:
    """Arrays by ``"module/leaf"``."""
    return {
        f"{module}/{leaf}": x
        for tree in (params, state or {})
        for module, leaves in tree.items()
        for leaf, x in leaves.items()
    }


def _nested(tree: Mapping[str, Mapping[str, Any]], new: Mapping[str, np.ndarray]) -> Tree:
    """``tree`` with the arrays of ``new`` by ``"module/leaf"``."""

    def leaf(name: str, old: Any) -> Any:
        return jnp.asarray(new[name]) if name in new else old

    return {
        module: {name: leaf(f"{module}/{name}", old) for name, old in leaves.items()}
        for module, leaves in tree.items()
    }


def _average(module: str) -> tuple[str, str] | None:
    """Layer, and ``"mean"`` or ``"var"``, of a module that averages a norm's statistics."""
    layer, _, ema = module.rpartition("/~/")
    return (layer, AVERAGES[ema]) if ema in AVERAGES else None


@dataclasses.dataclass(frozen=True)
class Names:
    """The rules for the modules of one model."""

    rename: Rename
    convolutions: Kinds

    def __call__(self, name: str, shape: Shape, leaves: Leaves) -> list[list[Place]]:
        module, _, leaf = name.rpartition("/")
        average = _average(module)
        if average:
            path = renamed(average[0], self.rename)
            return _statistic(leaf, shape, leaves, path, average[1])
        ours = LEAVES.get(leaf, leaf)
        here = leaf_name("params", renamed(module, self.rename), ours)
        if leaf == "w" and len(shape) in CONVOLUTION:
            *space, o, i = range(len(shape))  # (..., out, in), and not reversed
            flipped = transposed(shape, [*space, i, o])
            plain, sizes = reshaped(shape), shape[:-2]
            return [kernel_places(module, here, plain, flipped, sizes, self.convolutions)]
        norm = ours in ("scale", "bias")
        return [[Place(here, _features(shape, here, leaves) if norm else reshaped(shape))]]


def _names_of(foreign: Mapping[str, Any], rename: Rename, transposed: Choice) -> Names:
    """The rules for ``foreign``; no object of Haiku knows the types of its modules."""
    return Names(rename, kinds(layers_with(foreign, "w", "/", CONVOLUTION), {}, transposed))


def _statistic(
    leaf: str, shape: Shape, leaves: Leaves, path: str, statistic: str
) -> list[list[Place]]:
    """Mean and variance have a counter each, always equal: the one of the mean is the count."""
    place = leaf_name("batch_stats", path, statistic)
    count = leaf_name("batch_stats", path, "count")
    if leaf == "average":
        return [[Place(place, _features(shape, place, leaves))]]
    if leaf == "counter" and statistic == "mean" and count in leaves:
        return [[Place(count, reshaped(shape))]]
    return []  # follows from the others


def _features(shape: Shape, leaf: str, leaves: Leaves) -> Layout:
    """The axes that a norm keeps: Haiku keeps the others too, with size one."""
    kept = tuple(n for n in shape if n != 1)
    ours = leaves.get(leaf, ())
    same = tuple(n for n in ours if n != 1) == kept
    return reshaped(shape, ours if same else kept or (1,))


def _averaging(
    layer: str, new: Mapping[str, np.ndarray], foreign: Mapping[str, Any], decay: float | None
) -> dict[str, np.ndarray]:
    """What belongs to the new averages, so that the next update starts from them."""
    count = new.get(f"{layer}/~/mean_ema/counter")
    if count is not None and (decay is None or not 0 <= decay < 1):
        raise ValueError(
            f"decay must be the decay_rate of hk.BatchNorm, in [0, 1), as {layer} counts its "
            f"updates, got {decay!r}."
        )
    counter = MANY if count is None else int(count)
    weight = 1.0 if count is None else 1 - float(decay or 0) ** counter
    derived = {}
    averages = {ema: new.get(f"{layer}/~/{ema}/average") for ema in AVERAGES}
    for ema, average in averages.items():
        if average is None:
            continue
        values = {"hidden": average * weight, "counter": counter}
        for leaf, x in values.items():
            name = f"{layer}/~/{ema}/{leaf}"
            if name in foreign:
                like = foreign[name]
                derived[name] = np.asarray(np.broadcast_to(x, like.shape), like.dtype)
    return derived
