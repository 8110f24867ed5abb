"""linen and nnx behind one interface, for tests of what both promise alike.

::

    layer = library.make("BatchNorm", x, momentum=0.9)
    y, variables = layer.apply(layer.variables, x, train=True, mask=None)

Variables are plain dicts of arrays, ``{"params": ..., "batch_stats": ...}``, and `apply` is pure,
whichever library it is. ``library.make("BatchNorm", x, True)`` is Flax's layer of the same name.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen
import flax.nnx
import jax

import bnjax.linen
import bnjax.nnx

nnx = flax.nnx


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module as pure functions; a layer without modes ignores `train`."""

    variables: dict
    apply: Callable  # (variables, x, train=True, mask=None) -> (y, variables)

    def y(self, x, train=True, mask=None, **params):
        """The output alone; `params` replace those the layer was made with."""
        variables = {**self.variables, "params": {**self.variables["params"], **params}}
        return self.apply(variables, x, train, mask)[0]

    def state(self, x, *args):
        """The running statistics after a training step with `x`."""
        return self.apply(self.variables, x, True, *args)[1]["batch_stats"]


@dataclasses.dataclass(frozen=True)
class Library:
    """One of the two: its modules, Flax's, and how a class becomes a `Layer`."""

    ours: ModuleType
    theirs: ModuleType
    build: Callable

    def make(self, norm: str, x, theirs: bool = False, /, **options) -> Layer:
        return self.build(getattr(self.theirs if theirs else self.ours, norm), x, **options)

    def __repr__(self) -> str:
        return self.theirs.__name__.removeprefix("flax.")


def signature(function) -> dict[str, tuple]:
    """Kinds and defaults by name. Flax makes a new, equal initialiser for each default."""
    given = inspect.signature(function).parameters.values()
    return {p.name: (p.kind, str(p.default).partition(" at ")[0]) for p in given}


def _mode(module, train: bool) -> dict[str, Any]:
    takes = inspect.signature(module.__call__).parameters
    return {"use_running_average": not train} if "use_running_average" in takes else {}


def _linen(cls, x, **options) -> Layer:
    module = cls(**options)

    def apply(variables, x, train=True, mask=None):
        given = {"mutable": ["batch_stats"], "mask": mask, **_mode(module, train)}
        y, changed = module.apply(variables, x, **given)
        return y, {**variables, **changed}

    # Flax's feature norms initialise under their axis alone, and not for it.
    alone = cls(**{**options, "axis_name": None}) if "axis_name" in options else module
    variables = alone.init(jax.random.key(0), x, **_mode(module, True))
    return Layer({"params": {}, "batch_stats": {}, **variables}, apply)


def _nnx(cls, x, **options) -> Layer:
    axes = options.get("axis", options.get("feature_axes", -1))
    features = math.prod(x.shape[a] for a in (axes if isinstance(axes, tuple) else (axes,)))
    module = cls(features, rngs=nnx.Rngs(0), **options)
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat)

    def apply(variables, x, train=True, mask=None):
        params, stats = jax.tree.map(lambda v: v, states)  # which are written to
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(stats, variables["batch_stats"])
        module = nnx.merge(graph, params, stats, copy=True)
        y = module(x, mask=mask, **_mode(module, train))
        changed = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        return y, {**variables, "batch_stats": changed}

    params, stats = (nnx.to_pure_dict(state) for state in states)
    return Layer({"params": params, "batch_stats": stats}, apply)


LIBRARIES = (
    Library(bnjax.linen, flax.linen, _linen),
    Library(bnjax.nnx, flax.nnx, _nnx),
)
