"""Which layer feeds which: read off the jaxpr of one call of the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from bnjax._switches import AS_CALLED
from bnjax._variables import Path, name
from bnjax.surgery._models import NORMS, REPARAMETRISED, WATCHED, Model, bind

# What of a layer decides whether it can be folded.
OPTIONS = (
    *("axis", "epsilon", "kernel_size", "strides", "padding", "input_dilation"),
    *("feature_group_count", "transpose_kernel", "mask"),
)
MARK = "bnjax.surgery"


class Layer(NamedTuple):
    """A layer as it was called."""

    cls: type
    options: dict[str, Any]
    trains: bool  # a norm that normalises by its batch
    masked: bool
    reparametrised: str | None  # the class of a wrapper around its weights
    ndim: int  # of its input
    cast: Any  # dtype of its output where that is not the dtype of its input


class Link(NamedTuple):
    """A layer's output is the other's input, and nothing else; but for transpositions.

    ``axes[i]`` is the axis of the output that is axis ``i`` of the input.
    """

    path: Path
    axes: tuple[int, ...]


class Wiring(NamedTuple):
    """What one call of a model shows.

    Attributes:
      layers: norms and layers with weights.
      calls: how often each was called.
      before, after: for each layer the one that feeds it alone, and the one that it alone feeds;
        or what is there instead, as words to follow "its".
      eps: machine epsilon of the coarsest floating dtype on the way.
    """

    layers: dict[Path, Layer]
    calls: Counter[Path]
    before: dict[Path, Link | str]
    after: dict[Path, Link | str]
    eps: float


def trace(model: Model, variables: Any, args: tuple, kwargs: dict) -> Wiring:
    """Call ``model`` without computing anything, and see how its layers are wired."""
    call, arrays = bind(model, args, kwargs)
    watch = _Watch()
    marked = jax.make_jaxpr(lambda v, *a: call(v, *a, watch=watch))(variables, *arrays)
    graph = _Graph(marked.jaxpr, watch.paths)
    after = {path: graph.after(eqn) for path, eqn in graph.outputs.items()}
    before = {path: graph.before(path, eqn, after) for path, eqn in graph.inputs.items()}
    return Wiring(watch.layers, graph.calls, before, after, graph.eps)


class _Watch:
    """Marks the input and the output of layers by operations that do nothing but have a name."""

    def __init__(self):
        self.layers: dict[Path, Layer] = {}
        self.paths: list[Path] = []
        self._within: list[str] = []

    def __call__(self, path, cls, layer, call, args, kwargs):
        if isinstance(layer, REPARAMETRISED):
            self._within.append(cls.__name__)
            try:
                return call(*args, **kwargs)
            finally:
                self._within.pop()
        if not isinstance(layer, WATCHED):
            return call(*args, **kwargs)
        number = len(self.paths)
        self.paths.append(path)
        args, kwargs, x = _first(args, kwargs, lambda x: checkpoint_name(x, f"{MARK}:in:{number}"))
        y = call(*args, **kwargs)
        self.layers[path] = Layer(
            cls,
            {name: getattr(layer, name, None) for name in OPTIONS},
            isinstance(layer, NORMS) and _trains(layer, args[1:], kwargs),
            kwargs.get("mask") is not None,
            self._within[-1] if self._within else None,
            jnp.ndim(x),
            None if y.dtype == x.dtype else y.dtype,
        )
        return checkpoint_name(y, f"{MARK}:out:{number}")


def _first(args, kwargs, mark):
    """The arguments with the first marked, and that one."""
    if args:
        x = mark(jnp.asarray(args[0]))
        return (x, *args[1:]), kwargs, x
    key = "x" if "x" in kwargs else "inputs"
    x = mark(jnp.asarray(kwargs[key]))
    return args, {**kwargs, key: x}, x


def _trains(norm, args, kwargs) -> bool:
    """Whether a call of a norm normalises by the batch."""
    given = args[0] if args else kwargs.get("use_running_average")
    switches = getattr(norm, "switches", None)
    if switches is None and hasattr(norm, "get_variable"):
        switches = norm.get_variable("batch_stats", "switches")
    held = (switches or AS_CALLED).train
    if held is not None:
        return held
    return not (norm.use_running_average if given is None else given)


class _Graph:
    """Producers and users of every value of a jaxpr, inner ones included."""

    def __init__(self, jaxpr: Jaxpr, paths: list[Path]):
        self.makers, self.users = {}, defaultdict(list)
        self.inputs, self.outputs, self.calls = {}, {}, Counter()
        self.paths, self.eps = paths, 0.0
        for eqn in _equations(jaxpr, self.users):
            self.makers.update(dict.fromkeys(eqn.outvars, eqn))
            for v in eqn.invars:
                if not isinstance(v, Literal):
                    self.users[v].append(eqn)
            self.eps = max(self.eps, *(_eps(v.aval) for v in eqn.outvars), 0.0)
            side, path = self._mark(eqn)
            if side == "in":
                self.inputs[path] = eqn
            elif side == "out":
                self.outputs[path] = eqn
                self.calls[path] += 1

    def after(self, eqn) -> Link | str:
        """The layer fed by the output ``eqn``, and by nothing else; or what is there."""
        axes = tuple(range(eqn.outvars[0].aval.ndim))
        while True:
            users = self.users[eqn.outvars[0]]
            if len(users) != 1:
                words = " and ".join(sorted({self._words(user) for user in users}))
                return f"output goes to {words or 'nothing'}"
            (eqn,) = users
            side, path = self._mark(eqn)
            if side == "in":
                return Link(path, axes)
            if eqn is None or eqn.primitive.name != "transpose":
                return f"output goes to {self._words(eqn)}"
            axes = tuple(axes[i] for i in eqn.params["permutation"])

    def before(self, path, eqn, after) -> Link | str:
        """The layer that feeds the input ``eqn`` of ``path`` and nothing else; or what does."""
        while True:
            eqn = self.makers.get(eqn.invars[0])
            if eqn is None:
                return "input is the input"
            side, source = self._mark(eqn)
            if side == "out":
                link = after[source]
                if isinstance(link, Link) and link.path == path:
                    return Link(source, link.axes)
                also = "called again" if isinstance(link, Link) else f"whose {link}"
                return f"input comes from {name(source)}, {also}"
            if eqn.primitive.name != "transpose":
                return f"input comes from {self._words(eqn)}"

    def _mark(self, eqn) -> tuple[str | None, Path]:
        if eqn is not None and eqn.primitive.name == "name":
            mark, *rest = str(eqn.params["name"]).split(":")
            if mark == MARK:
                return rest[0], self.paths[int(rest[1])]
        return None, ()

    def _words(self, eqn) -> str:
        if eqn is None:
            return "the output"
        side, path = self._mark(eqn)
        return name(path) if side else _title(eqn)


def _title(eqn) -> str:
    """What an operation is called: that of its one inner operation if it has no name itself."""
    if "name" in eqn.params:
        return str(eqn.params["name"])
    inner = [equation for jaxpr in _inner(eqn) for equation in jaxpr.eqns]
    return _title(inner[0]) if len(inner) == 1 else eqn.primitive.name


def _equations(jaxpr: Jaxpr, users: dict) -> Iterator[Any]:
    """All equations; what a jaxpr returns is told to ``users`` as a use by None."""
    for v in jaxpr.outvars:
        if not isinstance(v, Literal):
            users[v].append(None)
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _inner(eqn):
            yield from _equations(inner, users)


def _inner(eqn) -> list[Jaxpr]:
    """The jaxprs within an equation."""
    kinds = Jaxpr | ClosedJaxpr
    leaves = jax.tree.leaves(eqn.params, is_leaf=lambda leaf: isinstance(leaf, kinds))
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if isinstance(leaf, kinds)]


def _eps(aval) -> float:
    dtype = getattr(aval, "dtype", None)
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
    return float(jnp.finfo(dtype).eps) if floating else 0.0
