"""What a batch norm is told and no file of weights holds: momentum, epsilon and convention."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen
import jax
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax._variables import name
from bnjax.interop._equinox_averages import counts
from bnjax.interop._equinox_parts import batch_norms, layers_of
from bnjax.interop._keras import path_of
from bnjax.interop._names import Rename, renamed
from bnjax.interop._torch_names import modules

Options = dict[str, dict[str, Any]]
LINEN = (flax.linen.BatchNorm, bnjax.linen.BatchNorm)
NNX = (nnx.BatchNorm, bnjax.nnx.BatchNorm)
# What Flax's own layers, which lack these fields, do.
FLAX = {"ddof": 0, "debias": False}
EPSILON = ("eps", "epsilon", "variance_epsilon")
FOLDED = "is folded into its neighbour and has none: compare before bnjax.surgery.fold"
UNTOLD: Any = object()  # None is a momentum


def batch_norm_options(
    model: Any, rename: Rename = (), *, defaults: Mapping[str, float | None] | None = None
) -> Options:
    r"""The arguments with which a Flax batch norm trains and evaluates as each one of a model.

    For torch ``momentum`` is 1 − torch's (None, the average of all updates, stays None), ``ddof``
    is 1; for Keras and Equinox ``momentum`` is theirs, ``ddof`` is 0, and Equinox's
    ``mode="batch"`` debiases. The path is the one that :func:`from_torch`, :func:`from_keras` and
    :func:`from_equinox` make with the same ``rename``.

    A batch norm is what holds ``running_mean`` and ``running_var`` (in Keras ``moving_mean`` and
    ``moving_variance``), of whatever class: ``FrozenBatchNorm2d`` of torchvision, detectron2 and
    timm, in-place ABN, ``SyncBatchNorm``, one of your own, an instance norm that tracks. One that
    learns nothing and has no momentum is frozen: its running statistics stay as they are, which
    is ``momentum`` 1; call it with ``use_running_average=True``. What a class does besides is
    no option of a batch norm: an activation; and ``InPlaceABN`` scales by the absolute value of
    its weight plus epsilon, so give it such weights before they are converted.

    Haiku keeps these nowhere: they are ``BatchNorm(momentum=decay_rate, epsilon=eps,
    debias=True)``.

    Args:
      model: a ``torch.nn.Module``, a Keras model or layer, or an ``equinox.Module``.
      rename: as for :func:`from_torch`, :func:`from_keras` or :func:`from_equinox`.
      defaults: ``epsilon``, and ``momentum`` as Flax means it, of classes that have them in their
        code and not in an attribute.

    Returns:
      By path, such as ``"layer1/0/bn1"``: ``momentum``, ``epsilon``, ``ddof``, ``use_scale`` and
      ``use_bias``, of Equinox ``debias`` too, for :class:`bnjax.linen.BatchNorm` and
      :class:`bnjax.nnx.BatchNorm`.

    Raises:
      ValueError: a layer of torch has ``track_running_stats=False``; or a class does not tell its
        epsilon or momentum; or a Keras layer is not built. All such layers are named.
      TypeError: ``model`` is of another library.

    Example:
      >>> import torch
      >>> from bnjax.interop import batch_norm_options
      >>> for path, options in batch_norm_options(torch.nn.BatchNorm2d(4)).items():
      ...     print(repr(path), options["momentum"], options["epsilon"], options["ddof"])
      '' 0.9 1e-05 1

    Source: ``torch.nn.BatchNorm2d`` and ``keras.layers.BatchNormalization``. That momentum means
    one thing here and another there went wrong in scvi-tools (PR#2309) and transformers
    (PR#19454).
    """
    keras = sys.modules.get("keras")  # who holds a model of Keras has imported it
    if keras is not None and isinstance(model, keras.Layer):
        norms = _keras_norms(keras, model)
        return _options(norms, _keras_options, rename, defaults or {})
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(model, equinox.Module):
        norms = batch_norms(layers_of(model))
        return _options(norms, _equinox_options, rename, defaults or {})
    if hasattr(model, "named_modules"):
        norms = _torch_norms(model)
        return _options(norms, _torch_options, rename, defaults or {})
    raise TypeError(
        "model must be a torch.nn.Module, a keras.Model or an equinox.Module, got "
        f"{type(model).__name__}. Options of a Flax model are its own: give expected ones to "
        "check_batch_norms."
    )


def check_batch_norms(
    model: Any, options: Mapping[str, Mapping[str, Any]], *args: Any, **kwargs: Any
) -> None:
    r"""Raise unless each batch norm of a Flax model has the options it is to have.

    Only what ``options`` name is compared: of a model that is not to be trained, the epsilons
    alone are ``{path: {"epsilon": o["epsilon"]} for path, o in options.items()}``.

    Args:
      model: an ``nnx.Module``, or a ``flax.linen.Module``, which is traced to see its layers.
      options: by path of layer, from :func:`batch_norm_options` or written by hand.
      args, kwargs: for linen: what ``model.init`` takes after the key. Arrays (or
        ``jax.ShapeDtypeStruct``) by position, all else by name.

    Raises:
      ValueError: lists all options that differ, layers without options and options without layer,
        which folded layers are.
      TypeError: ``model`` is not of Flax, or of linen and the arguments are not those of its call.

    Example:
      >>> from flax import nnx
      >>> from bnjax.interop import check_batch_norms
      >>> from bnjax.nnx import BatchNorm
      >>> norm = BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
      >>> try:
      ...     check_batch_norms(norm, {"": {"momentum": 0.9, "epsilon": 1e-3}})
      ... except ValueError as error:
      ...     print(str(error).splitlines()[1])
        (the model itself): epsilon is 1e-05, must be 0.001

    Source: no file of weights holds them, and neither PyTorch's ``load_state_dict`` nor Flax's
    ``from_state_dict`` compares them.
    """
    layers = _layers(model, args, kwargs)
    folded = _folded(model)
    lost = [path for path in options if path not in layers]
    faults = {path: [FOLDED if path in folded else "there is no such layer"] for path in lost}
    for path, layer in layers.items():
        faults[path] = _differences(layer, options.get(path))
    lines = [
        f"  {path or '(the model itself)'}: {fault}"
        for path, found in faults.items()
        for fault in found
    ]
    advice = ["The layer at path takes them as BatchNorm(..., **options[path])."] if layers else []
    if lines:
        head = "batch norms of the model are not as options say:"
        raise ValueError("\n".join([head, *lines, *advice]))


def _differences(layer: Any, options: Mapping[str, Any] | None) -> list[str]:
    if options is None:
        return ["has no options"]
    found = {option: getattr(layer, option, FLAX.get(option, "unknown")) for option in options}
    return [
        f"{option} is {found[option]}, must be {value}"
        for option, value in options.items()
        if not _same(found[option], value)
    ]


def _options(
    norms: Mapping[str, Any],
    options: Callable[[Any], dict[str, Any]],
    rename: Rename,
    defaults: Mapping[str, float | None],
) -> Options:
    """Options by path in Flax; an error names all norms that do not tell theirs."""
    if illegal := sorted({*defaults} - {"momentum", "epsilon"}):
        raise ValueError(f"defaults may be of epsilon and momentum, got {', '.join(illegal)}.")
    found, untold, differ = {}, [], []
    for path, layer in norms.items():
        told = {key: x for key, x in options(layer).items() if x is not UNTOLD}
        new = {**defaults, **told}
        where = f"{path or 'the model'} ({type(layer).__name__})"
        untold += [f"{key} of {where}" for key in ("momentum", "epsilon") if key not in new]
        there = renamed(path, rename).replace(".", "/")
        differ += [f"{where} at {there}"] if found.get(there, new) != new else []
        found[there] = new
    if untold:
        raise ValueError(
            f"{', '.join(untold)} must be an attribute (momentum; {', '.join(EPSILON)}) or given "
            "as the code of the class has it: defaults={'epsilon': ...}."
        )
    if differ:
        raise ValueError(
            f"{', '.join(differ)} must have the options of the norm that rename leads there before."
        )
    return found


def _torch_norms(model: Any) -> dict[str, Any]:
    """What holds running statistics, by path, whatever its class."""
    holds = {path: m for path, m in modules(model) if hasattr(m, "running_mean")}
    untracked = [
        path
        for path, m in holds.items()
        if m.running_mean is None and "InstanceNorm" not in _class(m)
    ]
    if untracked:
        raise ValueError(
            f"{', '.join(untracked) or 'the model'}: has track_running_stats=False, and so "
            "evaluates with the statistics of the batch. Flax's layers always have running "
            "statistics: call theirs with use_running_average=False."
        )
    statistics = ("running_mean", "running_var")
    return {
        path: m
        for path, m in holds.items()
        if all(getattr(m, name, None) is not None for name in statistics)
    }


def _class(module: Any) -> str:
    """The class of a torch module, and of what it was before it was scripted."""
    return getattr(module, "original_name", type(module).__name__)


def _torch_options(module: Any) -> dict[str, Any]:
    learns = any(p.requires_grad for p in module.parameters(recurse=False))
    momentum = getattr(module, "momentum", UNTOLD if learns else 0.0)
    if momentum is not None and momentum is not UNTOLD:
        momentum = 1 - float(momentum)
    return {
        "momentum": momentum,
        "epsilon": _epsilon(module),
        "ddof": 1,
        "use_scale": _has(module, "weight", "gamma"),
        "use_bias": _has(module, "bias", "beta"),
    }


def _epsilon(layer: Any) -> Any:
    values = [getattr(layer, name) for name in EPSILON if _has(layer, name)]
    return float(values[0]) if values else UNTOLD


def _has(layer: Any, *names: str) -> bool:
    return any(getattr(layer, name, None) is not None for name in names)


def _keras_norms(keras: Any, model: Any) -> dict[str, Any]:
    """What holds moving averages, by path, whatever its class."""
    # Only this method finds layers inside layers of every kind; model.layers are the outermost.
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        or (_has(layer, "moving_mean") and _has(layer, "moving_variance"))
    ]
    if layers == [model]:
        return {"": model}
    if unbuilt := [layer.name for layer in layers if not _has(layer, "moving_mean")]:
        raise ValueError(
            f"{', '.join(unbuilt)}: must be built to have a path. Call the model on a batch, or "
            "model.build(shape)."
        )
    return {path_of(layer.moving_mean, model): layer for layer in layers}


def _keras_options(layer: Any) -> dict[str, Any]:
    return {
        "momentum": getattr(layer, "momentum", UNTOLD),
        "epsilon": _epsilon(layer),
        "ddof": 0,
        "use_scale": _uses(layer, "scale", "gamma"),
        "use_bias": _uses(layer, "center", "beta"),
    }


def _equinox_options(layer: Any) -> dict[str, Any]:
    return {
        "momentum": layer.momentum,
        "epsilon": layer.eps,
        "ddof": 0,
        "debias": counts(layer),
        "use_scale": layer.channelwise_affine,
        "use_bias": layer.channelwise_affine,
    }


def _uses(layer: Any, flag: str, weight: str) -> bool:
    """What Keras's layer is told; what one of other hands holds."""
    told = getattr(layer, flag, None)
    return told if isinstance(told, bool) else _has(layer, weight)


def _layers(model: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Batch norms of a Flax model by path."""
    if isinstance(model, nnx.Module):
        return {name(path): m for path, m in nnx.iter_modules(model) if isinstance(m, NNX)}
    # What surgery makes of a linen module says how to see its layers as they are now.
    in_force = getattr(model, "in_force", contextlib.nullcontext)
    if not (isinstance(model, flax.linen.Module) or hasattr(model, "in_force")):
        merged = " Merge it: nnx.merge(graphdef, state)." if isinstance(model, nnx.GraphDef) else ""
        raise TypeError(
            f"model must be an nnx or a linen Module, got {type(model).__name__}.{merged}"
        )
    found = {}

    def record(call: Callable, args, kwargs, context):
        if isinstance(context.module, LINEN):
            found[name(context.module.path)] = context.module
        return call(*args, **kwargs)

    with in_force(), flax.linen.intercept_methods(record):
        try:
            jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *args)
        except TypeError as error:
            if args or kwargs:
                raise
            raise TypeError(
                "a linen module is traced to see its layers, and needs what model.init takes after "
                f"the key, as in check_batch_norms(model, options, x); without it: {error}."
            ) from error
    return found


def _folded(model: Any) -> set[str]:
    """Paths of norms that bnjax.surgery.fold has put into their neighbours, by what it left."""
    if isinstance(model, nnx.Module):
        left = nnx.iter_modules(model)
    else:
        left = getattr(model, "changes", {}).items()
    return {name(path) for path, node in left if getattr(node, "stands_for_folded_norm", False)}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)  # 1 - 0.9 is 0.09999999999999998
    return a == b
