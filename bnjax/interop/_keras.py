"""Weights of a Keras model as variables, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bnjax.interop import _mapping
from bnjax.interop._mapping import Layout, Place, Places, Rename, Shape, leaf_name, reshaped
from bnjax.interop._optional import optional

# Keras's names: collection and name in Flax. All others are parameters of the same name.
LEAVES = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
    "embeddings": ("params", "embedding"),
}


def from_keras(
    source: Any,
    variables: Any,
    rename: Rename = (),
    *,
    transposed: str | None = None,
    depthwise: str | None = None,
    ignore: str | None = None,
) -> Any:
    r"""Variables with the weights and running statistics of a Keras model.

    ``gamma``, ``beta``, ``moving_mean``, ``moving_variance`` and ``embeddings`` become ``scale``,
    ``bias``, ``mean``, ``var`` and ``embedding``; kernels lie alike in both. Keras's momentum is
    the decay and its running variance that of the population, as in Flax; its epsilon is 1e-3 by
    default and no weight: see :func:`batch_norm_options`.

    Args:
      source: the model or layer, or its weights by path (``model.get_weights()`` under ``w.path``
        of ``model.weights``), for which Keras need not be installed. Paths of a model are taken
        without its own name.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. Other collections are carried along.
      rename: pairs (regular expression, replacement), applied in turn to the path of each layer,
        such as ``"block/batch_normalization"``.
      transposed: regular expression, found in the paths of the transposed convolutions whose
        target is Flax's ``ConvTranspose``. Leave out those with ``transpose_kernel=True``.
      depthwise: the same for depthwise convolutions, whose target is a ``Conv`` of as many groups
        as channels.
      ignore: regular expression; weights and leaves in which it is found are left as they are.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to and mis-shaped names; or all values
        that do not fit into the dtype of their leaf.

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import from_keras
      >>> weights = {"bn/moving_mean": np.ones(2), "bn/moving_variance": np.full(2, 3.0)}
      >>> variables = {"batch_stats": {"norm": {"mean": np.zeros(2), "var": np.ones(2)}}}
      >>> print(from_keras(weights, variables, [("bn", "norm")])["batch_stats"]["norm"]["var"])
      [3. 3.]

    Source: ``model.weights`` of Keras 3. Its own ``set_weights`` goes by the order of weights.
    """
    foreign = _weights(source)
    places = _places_of(foreign, rename, transposed, depthwise)
    return _mapping.read(foreign, variables, places, "keras", ignore)


def to_keras(
    variables: Any,
    like: Any,
    rename: Rename = (),
    *,
    transposed: str | None = None,
    depthwise: str | None = None,
    ignore: str | None = None,
) -> dict[str, np.ndarray]:
    r"""Weights of a Keras model with the values of variables: :func:`from_keras` read backwards.

    Args:
      variables: of linen or nnx.
      like: the model to be filled, built, or its weights by path. It is left as it is.
      rename, transposed, depthwise: those of :func:`from_keras`, from Keras's names to paths.
      ignore: regular expression; weights in which it is found, or whose leaves it is found in,
        keep the value of ``like``.

    Returns:
      Weights by path, in the order of ``like``:
      ``model.set_weights(list(to_keras(variables, model).values()))``.

    Raises:
      ValueError: as :func:`from_keras`.

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import to_keras
      >>> variables = {"params": {"norm": {"scale": np.full(2, 3.0)}}}
      >>> print(to_keras(variables, {"bn/gamma": np.ones(2)}, [("bn", "norm")]))
      {'bn/gamma': array([3., 3.])}

    Source: ``model.set_weights`` of Keras 3, which takes a list in the order of ``model.weights``.
    """
    foreign = _weights(like)
    places = _places_of(foreign, rename, transposed, depthwise)
    return {**foreign, **_mapping.write(variables, foreign, places, "keras", ignore)}


def _weights(source: Any) -> Mapping[str, Any]:
    """Arrays by path. A model built by layers in it puts its own name in front, others do not."""
    if isinstance(source, Mapping):
        return source
    if not hasattr(source, "weights"):
        raise TypeError(
            f"keras's weights must be a model or arrays by path, got {type(source).__name__}."
        )
    paths = [weight.path.removeprefix(f"{source.name}/") for weight in source.weights]
    if again := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(
            f"several weights of the keras model are called {', '.join(again)}. Give its layers "
            "names of their own."
        )
    to_numpy = optional("keras", "keras").ops.convert_to_numpy  # weight.numpy() warns in NumPy 2
    arrays = (to_numpy(weight.value) for weight in source.weights)
    return dict(zip(paths, arrays, strict=True))


def _places_of(
    foreign: Mapping[str, Any], rename: Rename, transposed: str | None, depthwise: str | None
) -> Places:
    """The rules for the layers of ``foreign``."""
    layers = _mapping.layers_with(foreign, "kernel", "/", _mapping.CONVOLUTION)
    return functools.partial(
        _places,
        rename=rename,
        transposed=_mapping.chosen(layers, transposed, "transposed"),
        depthwise=_mapping.chosen(layers, depthwise, "depthwise"),
    )


def _places(
    name: str,
    shape: Shape,
    leaves: Iterable[str],
    *,
    rename: Rename,
    transposed: set[str],
    depthwise: set[str],
) -> Sequence[Place]:
    layer, _, leaf = name.rpartition("/")
    collection, ours = LEAVES.get(leaf, ("params", leaf))
    layout = reshaped(shape)
    if leaf == "kernel" and layer in transposed:  # (..., out, in), running backwards
        *space, o, i = range(len(shape))
        layout = _mapping.transposed(shape, [*space, i, o], tuple(space))
    if leaf == "kernel" and layer in depthwise:  # (..., channels, multiplier)
        layout = Layout(shape, layout.order, (*shape[:-2], 1, shape[-2] * shape[-1]))
    return [Place(leaf_name(collection, _mapping.renamed(layer, rename), ours), layout)]
