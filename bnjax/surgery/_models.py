"""Linen modules and nnx graphs under one roof: run them, watch their layers, alter their layers."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from flax import linen as nn
from flax import nnx

from bnjax import _variables
from bnjax import linen as bn_linen
from bnjax import nnx as bn_nnx
from bnjax._variables import Path

NORMS = (
    *(nn.BatchNorm, bn_linen.BatchNorm, bn_linen.BatchRenorm),
    *(nnx.BatchNorm, bn_nnx.BatchNorm, bn_nnx.BatchRenorm),
)
DENSE = (nn.Dense, nnx.Linear)
CONVS = (nn.Conv, nnx.Conv)
TRANSPOSED = (nn.ConvTranspose, nnx.ConvTranspose)
WEIGHTS = DENSE + CONVS + TRANSPOSED
# Layers within these do not use their own kernel as it is.
REPARAMETRISED = (
    *(nn.WeightNorm, nn.SpectralNorm, bn_linen.WeightNorm, bn_linen.SpectralNorm),
    *(nnx.WeightNorm, nnx.SpectralNorm, bn_nnx.WeightNorm, bn_nnx.SpectralNorm),
)

WATCHED = NORMS + WEIGHTS + REPARAMETRISED

# (path, class of the layer, layer, its own call, args, kwargs) -> y
Watch = Callable[[Path, type, Any, Callable[..., Any], tuple, dict], Any]


class Change(Protocol):
    """What a layer does instead."""

    def linen(self, layer: nn.Module, call: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """In place of ``call(*args, **kwargs)``."""

    def nnx(self, layer: nnx.Module, params: Mapping[str, Any]) -> nnx.Module:
        """The module in place of ``layer``; ``params`` are its parameters after the surgery."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class AlteredModule:
    """A linen module in which some layers do something else.

    Attributes:
      module: the module as its author wrote it.
      changes: what is done instead, by the path of the layer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from bnjax.surgery import fold
      >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)])
      >>> x = jnp.ones((2, 4))
      >>> folded = fold(model, model.init(jax.random.key(0), x), x)
      >>> jax.jit(folded.model.apply)(folded.variables, x).shape
      (2, 3)

    Source: ``flax.linen.intercept_methods``, which it is made of.
    """

    module: nn.Module
    changes: Mapping[Path, Change]

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """``module.apply``, with the changes.

        Args:
          variables: those that the surgery returned, or trained from them.
          *args, **kwargs: as of ``module.apply``, ``mutable``, ``rngs`` and ``method`` among them.

        Returns:
          What ``module.apply`` returns.
        """

        def watch(path, _, layer, call, args, kwargs):
            change = self.changes.get(path)
            if change is None:
                return call(*args, **kwargs)
            return change.linen(layer, call, args, kwargs)

        with nn.intercept_methods(_interceptor(watch)):
            return self.module.apply(variables, *args, **kwargs)


Model = nn.Module | AlteredModule | nnx.GraphDef


def run(model: Model, variables: Any, args: tuple, kwargs: dict, watch: Watch | None = None) -> Any:
    """The output of ``model``; ``watch`` is called in place of each of its layers."""
    if isinstance(model, nnx.GraphDef):
        module = nnx.merge(model, variables, copy=True)
        if watch is not None:
            _watch_modules(module, watch)
        return module(*args, **kwargs)
    if not isinstance(model, nn.Module | AlteredModule):
        raise TypeError(
            "model must be a linen module or an nnx.GraphDef, as from nnx.split(model), got "
            f"{type(model).__name__}."
        )
    if watch is None:
        y = model.apply(variables, *args, **kwargs)
    else:
        with nn.intercept_methods(_interceptor(watch)):
            y = model.apply(variables, *args, **kwargs)
    return y[0] if kwargs.get("mutable", False) is not False else y


def bind(model: Model, args: tuple, kwargs: dict) -> tuple[Callable[..., Any], list[Any]]:
    """``run(model, ...)`` as a function of variables and arrays, and the arrays of the call.

    All else in ``args`` and ``kwargs`` (``train=False``) is fixed.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    slots = [
        i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    ]

    def call(variables, *arrays, watch=None):
        filled = list(leaves)
        for slot, array in zip(slots, arrays, strict=True):
            filled[slot] = array
        args, kwargs = jax.tree.unflatten(tree, filled)
        return run(model, variables, args, kwargs, watch)

    return call, [leaves[slot] for slot in slots]


def alter(
    model: Model, variables: Any, flat: _variables.Flat, changes: Mapping[Path, Change]
) -> tuple[Model, Any]:
    """``model`` with ``changes``, and its variables with the leaves ``flat``."""
    if not isinstance(model, nnx.GraphDef):
        old = model if isinstance(model, AlteredModule) else AlteredModule(model, {})
        rebuild = _variables.flatten(variables)[1]
        return AlteredModule(old.module, {**old.changes, **changes}), rebuild(flat)

    def replace(path, node):
        if path not in changes:
            return node
        start = ("params", *path)
        params = {p[-1]: v for p, v in flat.items() if p[:-1] == start}
        return changes[path].nnx(node, params)

    new, state = nnx.split(nnx.recursive_map(replace, nnx.merge(model, variables, copy=True)))
    leaves, rebuild = _variables.flatten(state)
    return new, rebuild({path: flat.get(path, value) for path, value in leaves.items()})


def shared_variables(model: Model, variables: Any) -> set[Path]:
    """Paths of layers that hold a variable which another layer holds too; linen has none."""
    if not isinstance(model, nnx.GraphDef):
        return set()
    held = [
        (path, id(value))
        for path, module in nnx.iter_modules(nnx.merge(model, variables, copy=True))
        for value in vars(module).values()
        if isinstance(value, nnx.Variable)
    ]
    holders = Counter(variable for _, variable in held)
    return {path for path, variable in held if holders[variable] > 1}


def _interceptor(watch: Watch):
    def intercept(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__" or module.scope is None:
            return call(*args, **kwargs)
        return watch(module.path, type(module), module, call, args, kwargs)

    return intercept


def _watch_modules(model: nnx.Module, watch: Watch) -> None:
    """Let ``watch`` stand before the call of each module of ``model``, a throw-away copy."""
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, WATCHED):
            # A class of its own for each: a call looks up nothing but the class.
            cls = type(module)
            watched = type(cls.__name__, (cls,), {"__call__": _watched(path, cls, watch)})
            object.__setattr__(module, "__class__", watched)


def _watched(path, cls, watch):
    def call(self, *args, **kwargs):
        return watch(path, cls, self, functools.partial(cls.__call__, self), args, kwargs)

    return call
