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
    build_around: Callable

    def make(self, norm: str, x, theirs: bool = False, /, **options) -> Layer:
        return self.build(getattr(self.theirs if theirs else self.ours, norm), x, **options)

    def wrap(self, norm: str, x, /, dense=None, **options) -> Layer:
        """`norm` around a dense layer of 4 features: kernel and bias, and scale or u and sigma."""
        return _by_last_name(self.build_around(getattr(self.ours, norm), x, dense or {}, **options))

    def __repr__(self) -> str:
        return self.theirs.__name__.removeprefix("flax.")


def signature(function) -> dict[str, tuple]:
    """Kinds and defaults by name. Flax makes a new, equal initialiser for each default."""
    given = inspect.signature(function).parameters.values()
    return {p.name: (p.kind, str(p.default).partition(" at ")[0]) for p in given}


def _given(module, train: bool, mask) -> dict[str, Any]:
    """What the call of a module takes of a mode and a mask."""
    options = {"use_running_average": not train, "update_stats": train, "mask": mask}
    takes = inspect.signature(module.__call__).parameters
    return {name: option for name, option in options.items() if name in takes}


def _linen(make, x, **options) -> Layer:
    module = make(**options)

    def apply(variables, x, train=True, mask=None):
        y, changed = module.apply(
            variables, x, mutable=["batch_stats"], **_given(module, train, mask)
        )
        return y, {**variables, **changed}

    # Flax's feature norms initialise under their axis alone, and not for it.
    alone = make(**{**options, "axis_name": None}) if "axis_name" in options else module
    variables = alone.init(jax.random.key(0), x, **_given(module, True, None))
    return Layer({"params": {}, "batch_stats": {}, **variables}, apply)


def _nnx(make, x, **options) -> Layer:
    axes = options.get("axis", options.get("feature_axes", -1))
    features = math.prod(x.shape[a] for a in (axes if isinstance(axes, tuple) else (axes,)))
    graph, *states = nnx.split(
        make(features, rngs=nnx.Rngs(0), **options), nnx.Param, nnx.BatchStat
    )

    def apply(variables, x, train=True, mask=None):
        params, stats = jax.tree.map(lambda v: v, states)  # which are written to
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(stats, variables["batch_stats"])
        module = nnx.merge(graph, params, stats, copy=True)
        y = module(x, **_given(module, train, mask))
        changed = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        return y, {**variables, "batch_stats": changed}

    params, stats = (nnx.to_pure_dict(state) for state in states)
    return Layer({"params": params, "batch_stats": stats}, apply)


def _linen_around(cls, x, dense, **options) -> Layer:
    return _linen(lambda: cls(flax.linen.Dense(4, **dense), **options), x)


def _nnx_around(cls, x, dense, **options) -> Layer:
    def make(features, rngs):
        return cls(nnx.Linear(features, 4, rngs=rngs, **dense), rngs=rngs, **options)

    return _nnx(make, x)


def _by_last_name(layer: Layer) -> Layer:
    """The same layer; its variables go by the last part of their names, which the two share."""

    def name(path):
        first, last = path[0].key, path[-1].key
        if first == "scales":
            return "scale"
        return last[-1] if isinstance(last, tuple) else last.rpartition("/")[2]

    def renamed(variables):
        flat = {k: jax.tree_util.tree_flatten_with_path(v)[0] for k, v in variables.items()}
        return {k: {name(path): leaf for path, leaf in pairs} for k, pairs in flat.items()}

    def as_was(variables):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: variables[path[0].key][name(path[1:])], layer.variables
        )

    def apply(variables, *args, **kw):
        y, after = layer.apply(as_was(variables), *args, **kw)
        return y, renamed(after)

    return Layer(renamed(layer.variables), apply)


LIBRARIES = (
    Library(bnjax.linen, flax.linen, _linen, _linen_around),
    Library(bnjax.nnx, flax.nnx, _nnx, _nnx_around),
)
