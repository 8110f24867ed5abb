"""Put one norm in the place of another across a model."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from bnjax import _variables
from bnjax import linen as bn_linen
from bnjax import nnx as bn_nnx
from bnjax._variables import Flat, Path, name
from bnjax.surgery._freeze import freeze
from bnjax.surgery._models import AlteredModule, Model, alter
from bnjax.surgery._outcome import Outcome

# A running-statistics norm takes over all settings of the old one; other norms mean another thing
# by most of them.
ALWAYS_CARRIED = {"epsilon", "dtype"}
NEVER_CARRIED = {"self", "parent", "name", "rngs", "num_features"}


def swap(
    model: Model,
    variables: Any,
    replacement: type | Literal["frozen"],
    *,
    layers: str = "",
    **options: Any,
) -> Outcome:
    """Replace the batch norms of a model by another norm, which takes over scale and bias.

    The new model trains like any other: gradients reach the scale and bias of the new norms, and
    their variables are where those of the old ones were. Running statistics are dropped, unless the
    replacement has some, as ``bnjax``'s batch norm has for Flax's: then they are carried over.

    ``"frozen"`` is a fixed scale and shift: :func:`freeze`, of Flax's batch norms too. It computes
    what the old model does in evaluation; all other replacements compute something else, and are
    to be trained.

    Args:
      model, variables: as of :func:`find_pairs`.
      replacement: class of a norm, of linen or nnx as ``model`` is: :class:`bnjax.linen.GroupNorm`,
        for example; or ``"frozen"``.
      layers: regular expression to be found in the path of a norm; by default every one.
      **options: arguments of ``replacement``. Its ``epsilon`` and ``dtype`` are otherwise those of
        the old norm, and features are normalised on the axis of the old norm.

    Returns:
      :class:`Outcome`, without a difference.

    Raises:
      ValueError: no norm has such a path; or ``replacement`` does not fit layers, all of which are
        listed (``num_groups`` does not divide their channels, or it has no bias and they do).
      TypeError: ``model``, ``variables`` or ``replacement`` is nothing of the kind.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from bnjax.linen import GroupNorm
      >>> from bnjax.surgery import swap
      >>> model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
      >>> x = jnp.ones((2, 3))
      >>> swapped = swap(model, model.init(jax.random.key(0), x), GroupNorm, num_groups=2)
      >>> print(swapped.changed, list(swapped.variables))
      {('layers_1',): 'is now GroupNorm'} ['params']

    Source: Wu & He (2018), §4, train anew with the other norm; mmdetection and timm have converters
    for PyTorch's modules (``convert_norm``, ``convert_sync_batchnorm``).
    """
    graph = isinstance(model, nnx.GraphDef)
    frozen = replacement == "frozen"
    cls = (bn_nnx if graph else bn_linen).BatchNorm if frozen else replacement
    _check_class(cls, nnx.Module if graph else nn.Module)
    flat, _ = _variables.flatten(variables)
    norms = _variables.choose_norms(_variables.norms(flat), layers)
    fitted = _fit_all(cls, options, flat, norms)
    kept = {path: v for path, v in flat.items() if path[1:-1] not in fitted}
    for path, (_, leaves) in fitted.items():
        kept |= {(leaf[0], *path, *leaf[1:]): value for leaf, value in leaves.items()}
    before = model.changes if isinstance(model, AlteredModule) else {}
    changes = {p: replace.after(before.get(p)) for p, (replace, _) in fitted.items()}
    new, variables = alter(model, variables, kept, changes)
    if frozen:
        new, variables = _frozen(new, variables, layers)
    text = f"is now {'frozen ' if frozen else ''}{cls.__name__}"
    return Outcome(new, variables, dict.fromkeys(norms, text), {}, None)


@dataclasses.dataclass(frozen=True)
class Replace:
    """A norm of another class, made with the settings of the old one."""

    cls: type
    options: Mapping[str, Any]

    def linen(self, layer, call, args, kwargs):
        """See ``Change``."""
        # In the old one's place: variables, paths and updates are those of any layer there.
        norm = self.cls(**self._settings(layer), parent=layer.scope.rewound())
        if _has_statistics(self.cls):
            return norm(*args, **kwargs)
        return _features_last(norm, layer.axis, *args, **kwargs)

    def nnx(self, layer, params):
        """See ``Change``."""
        cls = (
            self.cls if _has_statistics(self.cls) else _in_place_of_batch_norm(self.cls, layer.axis)
        )
        return cls(layer.num_features, **self._settings(layer), rngs=nnx.Rngs(0))

    def after(self, old: Any) -> Replace:
        """This replacement of what ``old``, a replacement too, has put there."""
        if not isinstance(old, Replace):
            return self
        settings = {n: v for n, v in old.options.items() if n in self._carried()}
        return dataclasses.replace(self, options={**settings, **self.options})

    def _settings(self, layer) -> dict[str, Any]:
        given = {n: getattr(layer, n) for n in self._carried() if hasattr(layer, n)}
        return given | dict(self.options)

    def _carried(self) -> set[str]:
        carried = _arguments(self.cls) - NEVER_CARRIED
        return carried if _has_statistics(self.cls) else carried & ALWAYS_CARRIED


def _check_class(cls: Any, base: type) -> None:
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(
            f"replacement must be 'frozen' or a class of {base.__module__.split('.')[1]} modules, "
            f"as the model is made of (bnjax.linen.GroupNorm, bnjax.nnx.GroupNorm), got {cls!r}."
        )


def _fit_all(cls, options, flat: Flat, norms) -> dict[Path, tuple[Replace, Flat]]:
    """For each norm its replacement and that one's leaves; one error for all that do not fit."""
    fitted, unfit = {}, []
    for path in norms:
        try:
            fitted[path] = _fit(cls, options, flat, path)
        except ValueError as why:
            unfit.append(f"{name(path) or '(the model itself)'}: {why}")
    if unfit:
        raise ValueError(f"{cls.__name__} does not fit {len(unfit)} layers. " + " ".join(unfit))
    return fitted


def _fit(cls, options, flat: Flat, path: Path) -> tuple[Replace, Flat]:
    old = {p[:1] + p[-1:]: v for p, v in flat.items() if p[1:-1] == path}
    mean = old["batch_stats", "mean"]
    if mean.ndim != 1:
        raise ValueError(f"its statistics have shape {mean.shape}, not (features,).")
    has = {leaf: ("params", leaf) in old for leaf in ("scale", "bias")}
    if has["bias"] and "use_bias" not in _arguments(cls):
        raise ValueError(f"{cls.__name__} has no bias to take over.")
    uses = {f"use_{leaf}": given for leaf, given in has.items()}
    settings = {n: v for n, v in uses.items() if n in _arguments(cls)} | options
    leaves = _fresh(cls, settings, mean.shape[0])
    for leaf, value in old.items():
        # All that running statistics consist of, a count among them.
        if leaf in leaves or (leaf[0] == "batch_stats" and _has_statistics(cls)):
            leaves[leaf] = value
    return Replace(cls, settings), leaves


def _fresh(cls: Any, settings, features: int) -> Flat:
    """The leaves of a new layer, by collection and name."""
    if nnx.Module in cls.__mro__:
        module = cls(features, **settings, rngs=nnx.Rngs(0))
        return dict(_variables.flatten(nnx.state(module))[0])
    mode = {"use_running_average": True} if _has_statistics(cls) else {}
    x = jnp.zeros((1, 2, features))
    variables = cls(**settings).init(jax.random.key(0), x, **mode)
    return dict(_variables.flatten(variables)[0])


def _frozen(model, variables, layers):
    if isinstance(model, nnx.GraphDef):
        return nnx.split(freeze(nnx.merge(model, variables), layers))
    return model, freeze(variables, layers)


@functools.cache
def _arguments(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


def _has_statistics(cls: type) -> bool:
    return "momentum" in _arguments(cls)


@functools.cache
def _in_place_of_batch_norm(cls: type, axis: Any) -> type:
    """``cls`` with the call and the feature axis of the batch norm that it replaces."""

    def call(self, x, use_running_average=None, *, mask=None):
        return _features_last(functools.partial(cls.__call__, self), axis, x, mask=mask)

    return type(cls.__name__, (cls,), {"__call__": call, "__doc__": cls.__doc__})


def _features_last(norm, axis, x, use_running_average=None, *, mask=None):
    """``norm`` of ``x`` with ``axis`` last; its other arguments are those of batch norm."""
    if not isinstance(axis, int):
        (axis,) = axis
    options = (
        {} if mask is None else {"mask": jnp.moveaxis(jnp.broadcast_to(mask, x.shape), axis, -1)}
    )
    return jnp.moveaxis(norm(jnp.moveaxis(x, axis, -1), **options), -1, axis)
