"""Which norm and which layer with weights stand side by side, and what forbids to join them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnjax import _variables
from bnjax._variables import Flat, Path, name
from bnjax.core import BatchStats
from bnjax.surgery._fold import scale_and_shift
from bnjax.surgery._models import NORMS, TRANSPOSED, WEIGHTS, Model, shared_variables
from bnjax.surgery._wiring import Layer, Link, trace


class LeftAlone(Exception):
    """Why a layer is left as it is."""


class Neighbours:
    """The layers of a model in one call; each method raises :class:`LeftAlone` to refuse."""

    def __init__(self, model: Model, variables: Any, args: tuple, kwargs: dict):
        self.flat, _ = _variables.flatten(variables)
        self.wiring = trace(model, variables, args, kwargs)
        self._shared = shared_variables(model, variables)

    def norm(self, path: Path) -> Layer:
        """The norm at ``path``."""
        return self._layer(path, NORMS, ("batch_stats", "mean"), 1)

    def fixed_norm(self, path: Path) -> Layer:
        """The norm at ``path``, which is no more than a scale and a shift."""
        norm = self.norm(path)
        if norm.trains:
            raise LeftAlone("normalises by batch statistics (pass train=False, or model.eval())")
        if norm.masked:
            raise LeftAlone("is called with a mask")
        return norm

    def weights(self, path: Path) -> Layer:
        """The dense layer or convolution at ``path``."""
        found = self.wiring.layers.get(path)
        sizes = found.options["kernel_size"] if found else None
        ndim = 2 if sizes is None else np.size(sizes) + 2
        layer = self._layer(path, WEIGHTS, ("params", "kernel"), ndim)
        if layer.reparametrised:
            raise LeftAlone(f"has a kernel made by {layer.reparametrised}")
        return layer

    def previous(self, norm: Path) -> Path:
        """The layer with weights that feeds ``norm``, and nothing else."""
        link = _link(self.wiring.before[norm])
        _of(link.path, "before it", self.weights, link.path)
        self._check_axes(norm, link, lambda axis: link.axes[axis])
        return link.path

    def norm_after(self, path: Path) -> Path:
        """The norm that the layer with weights at ``path`` feeds, and feeds alone."""
        self.weights(path)
        norm = _link(self.wiring.after[path]).path
        _of(norm, "after it", self.norm, norm)
        _of(norm, "after it", self.previous, norm)
        return norm

    def next(self, norm: Path) -> Path:
        """The layer with weights that ``norm`` feeds, and feeds alone."""
        link = _link(self.wiring.after[norm])
        layer = _of(link.path, "after it", self.weights, link.path)
        self._check_axes(norm, link, lambda axis: link.axes.index(axis))
        if layer.options["mask"] is not None:
            raise LeftAlone(f"{name(link.path)} after it has a masked kernel")
        if _sees_zeros(layer) and self._shifts(norm):
            raise LeftAlone(f"{name(link.path)} after it pads with zeros, which it would shift")
        return link.path

    def _layer(self, path, classes, leaf, ndim) -> Layer:
        layer = self.wiring.layers.get(path)
        if layer is None:
            raise LeftAlone("is not called, or not a layer of Flax or bnjax")
        if layer.cls not in classes:
            raise LeftAlone(f"is a {layer.cls.__name__}")
        if self.wiring.calls[path] != 1:
            raise LeftAlone(f"is called {self.wiring.calls[path]} times")
        key = (leaf[0], *path, leaf[1])
        if path in self._shared or key not in self.flat:
            raise LeftAlone(f"has no {leaf[1]} of its own")
        if np.ndim(self.flat[key]) != ndim:
            shape = np.shape(self.flat[key])
            raise LeftAlone(f"has a {leaf[1]} of shape {shape}: mapped, or with two feature axes")
        return layer

    def _check_axes(self, norm, link, counterpart) -> None:
        """The feature axis of the norm must be the last one, the features of its neighbour."""
        layer = self.wiring.layers[norm]
        given = layer.options["axis"]
        axis = int(np.ravel(given)[0]) % layer.ndim
        if counterpart(axis) != layer.ndim - 1:
            raise LeftAlone(f"normalises along axis {given}, not the features of {name(link.path)}")

    def _shifts(self, norm) -> bool:
        """Whether the norm makes something of a zero."""
        epsilon = self.wiring.layers[norm].options["epsilon"]
        return bool(np.any(scale_and_shift(*norm_arrays(self.flat, norm), epsilon)[1]))


def norm_arrays(flat: Flat, norm: Path) -> tuple[Any, Any, BatchStats]:
    """Scale, bias and running statistics of a norm."""
    scale, bias = (flat.get(("params", *norm, leaf)) for leaf in ("scale", "bias"))
    mean, var = (flat["batch_stats", *norm, leaf] for leaf in ("mean", "var"))
    return scale, bias, BatchStats(mean, var, np.zeros((), np.int32))


def _link(found: Link | str) -> Link:
    if isinstance(found, Link):
        return found
    raise LeftAlone(found)


def _of(path, where, check, *args):
    """``check``, with what it refuses told of ``path``."""
    try:
        return check(*args)
    except LeftAlone as why:
        raise LeftAlone(f"{name(path)} {where} {why}") from None


def _sees_zeros(layer: Layer) -> bool:
    """Whether a convolution reads zeros that are not entries of its input."""
    options = layer.options
    sizes = options["kernel_size"]
    if sizes is None:  # a dense layer
        return False
    spread = options["strides"] if layer.cls in TRANSPOSED else options["input_dilation"]
    if np.any(np.asarray(1 if spread is None else spread) != 1):
        return True
    padding = options["padding"]
    if math.prod(np.ravel(sizes).tolist()) == 1 and isinstance(padding, str):
        return False
    if layer.cls in TRANSPOSED:  # whose windows reach beyond the input, whatever the padding
        return True
    if isinstance(padding, str):
        return padding.upper() not in ("VALID", "CIRCULAR", "REFLECT")
    return bool(np.any(np.asarray(padding) != 0))
