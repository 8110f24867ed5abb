"""Parameters and state of Haiku as variables, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnjax.interop import _mapping
from bnjax.interop._mapping import Place, Places, Rename, Shape, leaf_name, reshaped

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
    transposed: str | None = None,
    ignore: str | None = None,
) -> Any:
    r"""Variables with the parameters and running statistics of a Haiku model.

    ``w``, ``b``, ``scale``, ``offset`` and ``embeddings`` become ``kernel``, ``bias``, ``scale``,
    ``bias`` and ``embedding``; axes of size one of a norm are dropped. Of each moving average
    ``average`` becomes ``mean`` or ``var``, which is what Haiku evaluates with, and ``counter``
    becomes ``count``. Haiku debiases: the layer that trains on as ``hk.BatchNorm`` does is
    ``BatchNorm(momentum=decay_rate, epsilon=eps, debias=True)``, whose ``count`` is needed for it.

    Args:
      params, state: of ``hk.transform_with_state``; the state may be None.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. Other collections are carried along.
      rename: pairs (regular expression, replacement), applied in turn to the name of each module,
        such as ``"net/~/batch_norm"``.
      transposed: regular expression, found in the names of the transposed convolutions; needed
        for each of them. Their target is Flax's ``ConvTranspose`` with ``transpose_kernel=False``.
      ignore: regular expression; names, such as ``"linear/w"``, and leaves in which it is found
        are left as they are.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to and mis-shaped names; or all values
        that do not fit into the dtype of their leaf.

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
    places = _places_of(foreign, rename, transposed)
    return _mapping.read(foreign, variables, places, "haiku", ignore)


def to_haiku(
    variables: Any,
    params: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, Mapping[str, Any]] | None,
    rename: Rename = (),
    *,
    decay: float | None = None,
    transposed: str | None = None,
    ignore: str | None = None,
) -> tuple[Tree, Tree]:
    r"""Parameters and state of Haiku with the values of variables.

    :func:`from_haiku` read backwards. Haiku evaluates with the running statistics and trains on
    from them as bnjax does: ``counter`` is ``count`` and ``hidden`` fits it. Layers without a
    ``count`` average plainly, as Haiku does after very many updates: their ``counter`` is 2³⁰.

    Args:
      variables: of linen or nnx.
      params, state: which names, shapes and dtypes are expected: arrays, or
        ``jax.eval_shape(net.init, key, x)``. They are left as they are.
      rename, transposed: those of :func:`from_haiku`, from Haiku's names to paths.
      decay: ``decay_rate`` of ``hk.BatchNorm``; needed where layers have a ``count``.
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
    places = _places_of(foreign, rename, transposed)
    new = _mapping.write(variables, foreign, places, "haiku", ignore)
    derived = {}
    for module in state or {}:
        if _average(module) and f"{module}/average" in new:
            derived |= _hidden_and_counter(module, new, foreign, decay)
    new |= derived
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


def _places_of(foreign: Mapping[str, Any], rename: Rename, transposed: str | None) -> Places:
    """The rules for the modules of ``foreign``."""
    convolutions = _mapping.layers_with(foreign, "w", "/", _mapping.CONVOLUTION)
    chosen = _mapping.chosen(convolutions, transposed, "transposed")
    return functools.partial(_places, rename=rename, transposed=chosen)


def _places(
    name: str, shape: Shape, leaves: Iterable[str], *, rename: Rename, transposed: set[str]
) -> Sequence[Place] | None:
    module, _, leaf = name.rpartition("/")
    average = _average(module)
    if average:
        return _statistic(leaf, shape, leaves, _mapping.renamed(average[0], rename), average[1])
    ours = LEAVES.get(leaf, leaf)
    layout = reshaped(shape)
    if leaf == "w" and module in transposed:  # (..., out, in), and not reversed
        *space, o, i = range(len(shape))
        layout = _mapping.transposed(shape, [*space, i, o])
    if ours in ("scale", "bias"):
        layout = reshaped(_features(shape))
    return [Place(leaf_name("params", _mapping.renamed(module, rename), ours), layout)]


def _statistic(
    leaf: str, shape: Shape, leaves: Iterable[str], path: str, statistic: str
) -> Sequence[Place] | None:
    """Mean and variance have a counter each, always equal: the one of the mean is the count."""
    place = leaf_name("batch_stats", path, statistic)
    count = leaf_name("batch_stats", path, "count")
    if leaf == "average":
        return [Place(place, reshaped(_features(shape)))]
    if leaf == "counter" and statistic == "mean" and count in leaves:
        return [Place(count, reshaped(shape))]
    return None  # follows from the others


def _features(shape: Shape) -> Shape:
    """The axes that a norm keeps: Haiku keeps the others too, with size one."""
    return tuple(n for n in shape if n != 1) or (1,)


def _hidden_and_counter(
    module: str, new: Mapping[str, Any], foreign: Mapping[str, Any], decay: float | None
) -> dict[str, np.ndarray]:
    """What belongs to the new average, so that the next update starts from it."""
    average = new[f"{module}/average"]
    layer, _, _ = module.rpartition("/")
    counter = new.get(f"{layer}/mean_ema/counter")
    if counter is not None and (decay is None or not 0 <= decay < 1):
        raise ValueError(
            f"decay must be the decay_rate of hk.BatchNorm, in [0, 1), as {layer[:-2]} counts its "
            f"updates, got {decay!r}."
        )
    weight = 1.0 if counter is None else 1 - float(decay or 0) ** float(counter)
    counter = np.full(foreign[f"{module}/counter"].shape, MANY) if counter is None else counter
    return {
        f"{module}/hidden": (average * weight).astype(average.dtype),
        f"{module}/counter": np.asarray(counter, foreign[f"{module}/counter"].dtype),
    }
