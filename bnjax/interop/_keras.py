"""Weights of a Keras model as variables, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bnjax.interop import _mapping
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
from bnjax.interop._optional import optional

# Keras's names: collection and name in Flax. All others are parameters of the same name.
LEAVES = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
    "embeddings": ("params", "embedding"),
}
# Kernels of a separable convolution: layer and name of what each is in Flax.
SEPARABLE = {
    "depthwise_kernel": ("depthwise", "kernel"),
    "pointwise_kernel": ("pointwise", "kernel"),
}


def from_keras(
    source: Any,
    variables: Any,
    rename: Rename = (),
    *,
    transposed: Choice = None,
    depthwise: Choice = None,
    ignore: str | None = None,
) -> Any:
    r"""Variables with the weights and running statistics of a Keras model.

    ``gamma``, ``beta``, ``moving_mean``, ``moving_variance`` and ``embeddings`` become ``scale``,
    ``bias``, ``mean``, ``var`` and ``embedding``; kernels lie alike in both. Keras's momentum is
    the decay and its running variance that of the population, as in Flax; its epsilon is 1e-3 by
    default and no weight: see :func:`batch_norm_options`. Keras counts no updates: a ``count``
    is left at 0, which beside statistics means an unknown number of them.

    The layers of a model are transposed or depthwise convolutions by their type. A
    ``SeparableConv2D`` becomes two layers, ``depthwise`` and ``pointwise`` below its path, of
    which the second has the bias; ``rename`` sees ``"path/depthwise"`` and ``"path/pointwise"``.
    Given weights by path alone, transposed convolutions are asked for as in :func:`from_torch`.

    Args:
      source: the model or layer, or its weights by path (``model.get_weights()`` under ``w.path``
        of ``model.weights``), for which Keras need not be installed. Paths of a model are taken
        without its own name.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. Other collections are carried along.
      rename: pairs (regular expression, replacement) and functions from a path to the new one,
        applied in turn to the path of each layer, such as ``"block/batch_normalization"``; or one
        such function.
      transposed: regular expression, found in the paths of the transposed convolutions whose
        target is Flax's ``ConvTranspose``; all others are then ordinary ones, or have a target
        with ``transpose_kernel=True``. False if there is none. None goes by types and shapes,
        and takes a target that fits both ways for one with ``transpose_kernel=False``.
      depthwise: the same for depthwise convolutions, whose target is a ``Conv`` of as many groups
        as channels. None goes by types.
      ignore: regular expression; weights and leaves in which it is found are left as they are.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to, mis-shaped and doubtful names; or all
        values that do not fit into the dtype of their leaf; or all leaves that nothing fills, and
        that are a ``jax.ShapeDtypeStruct`` without a value to be left at.

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
    names = _names_of(foreign, source, rename, transposed, depthwise)
    return _mapping.read(foreign, variables, names, "keras", ignore)


def to_keras(
    variables: Any,
    like: Any,
    rename: Rename = (),
    *,
    transposed: Choice = None,
    depthwise: Choice = None,
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
    names = _names_of(foreign, like, rename, transposed, depthwise)
    return {**foreign, **_mapping.write(variables, foreign, names, "keras", ignore)}


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


class Types(NamedTuple):
    """What the layers of a model are, by path."""

    transposed: dict[str, bool]
    depthwise: dict[str, bool]


def _types(source: Any) -> Types:
    """Types of the convolutions of a model or a layer; nothing of arrays by path."""
    types = Types({}, {})
    if isinstance(source, Mapping):
        return types
    layers = optional("keras", "keras").layers
    transposed = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
    depthwise = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
    ordinary = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
    for layer in flat_layers(source):
        if isinstance(layer, (*transposed, *depthwise, *ordinary)):
            path = path_of(layer.kernel, source)
            types.transposed[path] = isinstance(layer, transposed)
            types.depthwise[path] = isinstance(layer, depthwise)
    return types


def flat_layers(model: Any) -> Iterator[Any]:
    """The built layers of a model, those inside others and itself included."""
    # Only this method finds layers inside layers of every kind; model.layers are the outermost.
    return (layer for layer in model._flatten_layers() if getattr(layer, "weights", None))


def path_of(weight: Any, model: Any) -> str:
    """The path of the layer that holds ``weight``, without the name of the model."""
    return weight.path.removeprefix(f"{model.name}/").rpartition("/")[0]


@dataclasses.dataclass(frozen=True)
class Names:
    """The rules for the weights of one model."""

    paths: frozenset[str]
    rename: Rename
    convolutions: Kinds
    depthwise: frozenset[str]

    def __call__(self, name: str, shape: Shape, leaves: Leaves) -> list[list[Place]]:
        layer, _, leaf = name.rpartition("/")
        collection, ours = LEAVES.get(leaf, ("params", leaf))
        path = renamed(layer, self.rename)
        here = leaf_name(collection, path, ours)
        if leaf == "kernel" and layer in self.depthwise:
            return [[Place(here, _depthwise(shape))]]
        if leaf == "kernel" and len(shape) in CONVOLUTION:
            *space, o, i = range(len(shape))  # (..., out, in), running backwards
            flipped = transposed(shape, [*space, i, o], tuple(space))
            places = kernel_places(
                layer, here, reshaped(shape), flipped, shape[:-2], self.convolutions
            )
            return [places]
        return [[Place(here, reshaped(shape)), *self._separable(layer, leaf, shape)]]

    def _separable(self, layer: str, leaf: str, shape: Shape) -> list[Place]:
        """A separable convolution is a depthwise one and one of size 1, which has the bias."""
        if not {leaf_name("", layer, kernel) for kernel in SEPARABLE} <= self.paths:
            return []
        name, ours = SEPARABLE.get(leaf, ("pointwise", leaf))
        path = renamed(leaf_name("", layer, name), self.rename)
        layout = _depthwise(shape) if name == "depthwise" else reshaped(shape)
        return [Place(leaf_name("params", path, ours), layout)]


def _depthwise(shape: Shape) -> Layout:
    """(..., channels, multiplier) as the kernel of as many groups as channels."""
    return reshaped(shape, (*shape[:-2], 1, shape[-2] * shape[-1]))


def _names_of(
    foreign: Mapping[str, Any], source: Any, rename: Rename, transposed: Choice, depthwise: Choice
) -> Names:
    """The rules for ``foreign``, weights of ``source``."""
    layers, types = layers_with(foreign, "kernel", "/", CONVOLUTION), _types(source)
    groups = chosen(layers, depthwise, "depthwise")
    if depthwise is None:
        groups = {layer for layer, found in types.depthwise.items() if found}
    rest = [layer for layer in layers if layer not in groups]
    return Names(
        paths=frozenset(foreign),
        rename=rename,
        convolutions=kinds(rest, types.transposed, transposed),
        depthwise=frozenset(groups),
    )
