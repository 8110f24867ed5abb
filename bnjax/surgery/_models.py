"""Linen modules and nnx graphs under one roof: run them, watch their layers, alter their layers."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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


_RUNNING: contextvars.ContextVar[frozenset] = contextvars.ContextVar("changes", default=frozenset())


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

    Used as the module itself: ``apply``, ``init``, ``bind``, ``clone`` and its own methods are the
    module's, with the changes.

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``module(...)`` with the changes, where the module is bound; see ``bind`` and ``clone``.

        Args:
          args, kwargs: as of the module's call.
        """
        with self.in_force():
            return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What else the module has: its methods, with the changes, ``apply`` and ``init`` too."""
        if name.startswith("_") or name == "module":
            raise AttributeError(name)
        found = getattr(self.module, name)
        if not callable(found) or isinstance(found, nn.Module):
            return found

        @functools.wraps(found)
        def altered(*args, **kwargs):
            with self.in_force():
                return found(*args, **kwargs)

        return altered

    def bind(self, variables: Any, *args: Any, **kwargs: Any) -> AlteredModule:
        """``module.bind``, with the changes.

        Args:
          variables, args, kwargs: as of ``module.bind``.
        """
        return dataclasses.replace(self, module=self.module.bind(variables, *args, **kwargs))

    def clone(self, **options: Any) -> AlteredModule:
        """``module.clone``, with the changes.

        Args:
          **options: as of ``module.clone``.
        """
        return dataclasses.replace(self, module=self.module.clone(**options))

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Within it, ``module`` does what the changes say, and other interceptors see that."""

        def watch(path, _, layer, call, args, kwargs):
            change, running = self.changes.get(path), _RUNNING.get()
            key = id(self.changes), path
            if change is None or key in running:  # a change may call a layer in the layer's place
                return call(*args, **kwargs)
            token = _RUNNING.set(running | {key})
            try:
                return change.linen(layer, call, args, kwargs)
            finally:
                _RUNNING.reset(token)

        with nn.intercept_methods(_interceptor(watch)):
            yield


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
    altered = isinstance(model, AlteredModule)
    with contextlib.ExitStack() as stack:
        if altered:
            stack.enter_context(model.in_force())
        if watch is not None:
            stack.enter_context(nn.intercept_methods(_interceptor(watch)))
        y = (model.module if altered else model).apply(variables, *args, **kwargs)
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
    """For ``nn.intercept_methods``: ``watch`` in place of each layer of the model that is called.

    A model that is applied within it, to variables of its own, is passed over: its paths say
    nothing about the outer model's variables.
    """
    variables: Any = None  # of the outermost apply
    calls: list[tuple[bool, nn.Module]] = []  # that are running: whether of that apply, of what

    def belongs(module: nn.Module, root: Any) -> bool:
        if not root.debug_path:
            return root._variables is variables
        # Within a lifted transformation variables are copies. One of the very top is of a model of
        # its own, unless the module that is running there has called itself.
        own = [running for inside, running in calls if inside]
        if root.path or module.path or not own:
            return calls[-1][0] if calls else True
        return calls[-1][0] and any(type(r) is type(module) and not r.path for r in own)

    def intercept(call, args, kwargs, context):
        nonlocal variables
        module = context.module
        if module.scope is None:
            return call(*args, **kwargs)
        root = module.scope.root
        variables = root._variables if variables is None else variables
        inside = belongs(module, root)
        calls.append((inside, module))
        try:
            if context.method_name != "__call__" or not inside:
                return call(*args, **kwargs)
            return watch(module.path, type(module), module, call, args, kwargs)
        finally:
            calls.pop()

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
