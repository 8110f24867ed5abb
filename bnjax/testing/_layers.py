"""The table of layers that conformance tests and benchmarks share.

Every entry has the same pure interface, whatever kind of layer it is::

    variables = layer.init(key, x)                  # {"params": {...}, "batch_stats": {...}}
    y, variables = layer.apply(variables, x, train)

so it can be put through jit, grad, vmap, jvp, remat, scan and eval_shape by tests that know
nothing about it. ``params`` holds what is trained; ``batch_stats`` holds the running state and is
empty for a layer without any. `init` draws all of them at random and counts one update as seen:
scale 1 and mean 0 would hide many mistakes. ``layer.reference`` is the same function computed by
the oracle.

A new layer is one more line in ``LAYERS``. Flax is imported by the entries that need it, when
they are called.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.testing import _oracle

Variables = dict[str, Any]
Axes = int | tuple[int, ...]
_EPSILON = 1e-5
_DECAY = 0.9
# So tight that every feature meets them: the corrections of batch renorm are then constants, and
# finite differences have the gradient that batch renorm defines.
_LIMITS: dict[str, Any] = {"r_max": 1.2, "d_max": 0.1}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table."""

    name: str
    init: Callable[[jax.Array, jax.Array], Variables]
    apply: Callable[[Variables, jax.Array, bool], tuple[jax.Array, Variables]]
    reference: Callable[[Variables, Any, bool], np.ndarray]
    input_shape: tuple[int, ...]  # small; examples first
    axis: int | tuple[int, ...] = -1  # the kept feature axes
    needs: str | None = None  # the package that `init` and `apply` import
    modes: bool = True  # whether `train` makes a difference

    def __repr__(self) -> str:
        return self.name


def every_third_masked(x: Any) -> np.ndarray:
    """The mask of the masked layers: one value an example, False for examples 0, 3, 6, …"""
    counts = np.arange(x.shape[0]) % 3 != 0
    return counts.reshape((-1,) + (1,) * (x.ndim - 1))


def _functional(
    name: str,
    shape: tuple[int, ...],
    axis: int | tuple[int, ...] = -1,
    masked: bool = False,
    renorm: bool = False,
    **kw,
) -> Layer:
    def init(key, x):
        from bnjax import init_batch_stats

        features = _features(x, axis)
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        params = {"scale": jnp.ones(features, dtype), "bias": jnp.zeros(features, dtype)}
        stats = init_batch_stats(features, dtype)._asdict()
        return _draw(key, {"params": params, "batch_stats": stats})

    def apply(variables, x, train):
        from bnjax import BatchStats, batch_norm, batch_renorm

        norm = functools.partial(batch_renorm, **_LIMITS) if renorm else batch_norm
        params, stats = variables["params"], BatchStats(**variables["batch_stats"])
        mask = every_third_masked(x) if masked else None
        options: dict[str, Any] = {"decay": _DECAY, "epsilon": _EPSILON, "axis": axis, **kw}
        scale, bias = params["scale"], params["bias"]
        y, stats = norm(x, scale, bias, stats, train=train, mask=mask, **options)
        return y, {"params": params, "batch_stats": stats._asdict()}

    return Layer(name, init, apply, _reference(axis, masked, renorm), shape, axis)


def _linen(
    name: str,
    shape: tuple[int, ...],
    axis: int | tuple[int, ...] = -1,
    masked: bool = False,
    renorm: bool = False,
) -> Layer:
    def module():
        from bnjax.linen import BatchNorm, BatchRenorm

        norm = functools.partial(BatchRenorm, **_LIMITS) if renorm else BatchNorm
        return norm(axis=axis, momentum=_DECAY, epsilon=_EPSILON)

    def init(key, x):
        return _draw(key, dict(module().init(key, x, use_running_average=False)))

    def apply(variables, x, train):
        mask = every_third_masked(x) if masked else None
        options: dict[str, Any] = {"use_running_average": not train, "mask": mask}
        y, changed = module().apply(variables, x, mutable=["batch_stats"], **options)
        return y, {**variables, **changed}

    return Layer(name, init, apply, _reference(axis, masked, renorm), shape, axis, needs="flax")


def _nnx(
    name: str,
    shape: tuple[int, ...],
    axis: int | tuple[int, ...] = -1,
    masked: bool = False,
    renorm: bool = False,
) -> Layer:
    def split(x):
        from flax import nnx

        from bnjax.nnx import BatchNorm, BatchRenorm

        norm = functools.partial(BatchRenorm, **_LIMITS) if renorm else BatchNorm
        (features,) = _features(x, axis)
        options: dict[str, Any] = {"axis": axis, "momentum": _DECAY, "epsilon": _EPSILON}
        # A module belongs to the trace it was made in, so each call makes its own.
        module = norm(features, rngs=nnx.Rngs(0), **options)
        return nnx.split(module, nnx.Param, nnx.BatchStat)

    def init(key, x):
        from flax import nnx

        _, params, stats = split(x)
        pure = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}
        return _draw(key, pure)

    def apply(variables, x, train):
        from flax import nnx

        graph, params, stats = split(x)
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(stats, variables["batch_stats"])
        module = nnx.merge(graph, params, stats)
        mask = every_third_masked(x) if masked else None
        y = module(x, use_running_average=not train, mask=mask)
        changed = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        return y, {**variables, "batch_stats": changed}

    return Layer(name, init, apply, _reference(axis, masked, renorm), shape, axis, needs="flax")


def _reference(axis: int | tuple[int, ...], masked: bool, renorm: bool) -> Callable:
    def corrected(x, stats, options):
        """The normalised batch, scaled and shifted towards the running statistics."""
        std = np.sqrt(np.asarray(stats["var"], np.float64) + _EPSILON)
        batch, (r_max, d_max) = (
            _oracle.batch_norm_forward(x, None, None, **options),
            _LIMITS.values(),
        )
        r = np.clip(np.sqrt(batch.var + _EPSILON) / std, 1 / r_max, r_max)
        d = np.clip((batch.mean - np.asarray(stats["mean"])) / std, -d_max, d_max)
        return _oracle.scale_shift(batch.y, r, d, axis=axis)

    def reference(variables, x, train):
        params, stats = variables["params"], variables["batch_stats"]
        options: dict[str, Any] = {"axis": axis, "epsilon": _EPSILON}
        if train and renorm:
            x_hat = corrected(x, stats, options)
            return _oracle.scale_shift(x_hat, params["scale"], params["bias"], axis=axis)
        if train:
            mask = every_third_masked(x) if masked else None
            forward = _oracle.batch_norm_forward
            return forward(x, params["scale"], params["bias"], mask=mask, **options).y
        x_hat = _oracle.normalize(x, stats["mean"], stats["var"], **options)
        return _oracle.scale_shift(x_hat, params["scale"], params["bias"], axis=axis)

    return reference


def _feature_norm(name: str, norm: str, shape, reduced: Axes, kept: Axes = -1, **options) -> Layer:
    """A function of the package: statistics over `reduced` axes, parameters along `kept`."""

    def init(key, x):
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        params = {"scale": jnp.ones(_features(x, kept), dtype)}
        if norm != "rms_norm":
            params["bias"] = jnp.zeros(_features(x, kept), dtype)
        return _draw(key, {"params": params, "batch_stats": {}})

    def apply(variables, x, train):
        import bnjax

        params, function = variables["params"], getattr(bnjax, norm)
        y = function(x, params["scale"], params.get("bias"), epsilon=_EPSILON, **options)
        return y, variables

    reference = _feature_reference(reduced, kept, options.get("num_groups"), norm == "rms_norm")
    return Layer(name, init, apply, reference, shape, kept, modes=False)


def _linen_feature_norm(
    name: str, norm: str, shape, reduced: Axes, kept: Axes = -1, **fields
) -> Layer:
    def module():
        from bnjax import linen

        return getattr(linen, norm)(epsilon=_EPSILON, **fields)

    def init(key, x):
        return _draw(key, {**module().init(key, x), "batch_stats": {}})

    def apply(variables, x, train):
        return module().apply({"params": variables["params"]}, x), variables

    reference = _feature_reference(reduced, kept, fields.get("num_groups"), norm == "RMSNorm")
    return Layer(name, init, apply, reference, shape, kept, needs="flax", modes=False)


def _nnx_feature_norm(
    name: str, norm: str, shape, reduced: Axes, kept: Axes = -1, **fields
) -> Layer:
    def split(x):
        from flax import nnx

        import bnjax.nnx

        make, features = getattr(bnjax.nnx, norm), math.prod(_features(x, kept))
        return nnx.split(make(features, epsilon=_EPSILON, rngs=nnx.Rngs(0), **fields))

    def init(key, x):
        from flax import nnx

        return _draw(key, {"params": nnx.to_pure_dict(split(x)[1]), "batch_stats": {}})

    def apply(variables, x, train):
        from flax import nnx

        graph, params = split(x)
        nnx.replace_by_pure_dict(params, variables["params"])
        return nnx.merge(graph, params)(x), variables

    reference = _feature_reference(reduced, kept, fields.get("num_groups"), norm == "RMSNorm")
    return Layer(name, init, apply, reference, shape, kept, needs="flax", modes=False)


def _feature_reference(
    reduced: Axes, kept: Axes, num_groups: int | None, about_zero: bool
) -> Callable:
    """The oracle of batch norm, told that every axis but the `reduced` is one of features.

    With groups, the channels are two axes: groups and their members.
    """

    def x_hat(x):
        others = tuple(set(range(x.ndim)) - _positive(reduced, x.ndim))
        return _oracle.batch_norm_forward(x, None, None, axis=others, epsilon=_EPSILON).y

    def reference(variables, x, train):
        params, shape = variables["params"], x.shape
        x = np.asarray(x) if num_groups is None else np.reshape(x, (*shape[:-1], num_groups, -1))
        if about_zero:
            # The mean of x and -x is zero, and their variance the mean square of x.
            along = max(_positive(reduced, x.ndim))
            y = np.split(x_hat(np.concatenate([x, -x], along)), 2, along)[0]
        else:
            y = x_hat(x).reshape(shape)
        unfolded = {k: np.reshape(v, _features(y, kept)) for k, v in params.items()}
        return _oracle.scale_shift(y, unfolded["scale"], unfolded.get("bias"), axis=kept)

    return reference


def _positive(axes: Axes, ndim: int) -> set[int]:
    return {a % ndim for a in ((axes,) if isinstance(axes, int) else axes)}


def _features(x: Any, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x.shape[a] for a in sorted(_positive(axis, x.ndim)))


def _draw(key: jax.Array, variables: Variables) -> Variables:
    """The same tree with values drawn by the name of each leaf."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    keys = jax.random.split(key, len(leaves))
    drawn = [_draw_leaf(path[-1].key, k, v) for (path, v), k in zip(leaves, keys, strict=True)]
    return jax.tree_util.tree_unflatten(tree, drawn)


def _draw_leaf(name: str, key: jax.Array, leaf: jax.Array) -> jax.Array:
    if name in {"scale", "var"}:
        return jax.random.uniform(key, leaf.shape, leaf.dtype, 0.5, 1.5)
    if name in {"bias", "mean"}:
        return jax.random.normal(key, leaf.shape, leaf.dtype)
    return jnp.ones_like(leaf)  # count: one update seen


_IMAGE: dict[str, Any] = dict.fromkeys(
    ("reduced", "kept", "reduction_axes", "feature_axes"), (1, 2, 3)
)

LAYERS: tuple[Layer, ...] = (
    _functional("batch_norm", (8, 5)),
    _functional("batch_norm_nhwc", (8, 4, 3, 5)),
    _functional("batch_norm_nchw", (8, 5, 4, 3), axis=1),
    _functional("batch_norm_two_axes", (8, 4, 3), axis=(1, 2)),
    _functional("batch_norm_masked", (8, 4, 5), masked=True),
    _functional("batch_norm_debiased", (8, 5), debias=True),
    _linen("linen_batch_norm", (8, 4, 3, 5)),
    _linen("linen_batch_norm_nchw", (8, 5, 4, 3), axis=1),
    _linen("linen_batch_norm_masked", (8, 4, 5), masked=True),
    _nnx("nnx_batch_norm", (8, 4, 3, 5)),
    _nnx("nnx_batch_norm_nchw", (8, 5, 4, 3), axis=1),
    _nnx("nnx_batch_norm_masked", (8, 4, 5), masked=True),
    _functional("batch_renorm", (8, 5), renorm=True),
    _linen("linen_batch_renorm_nchw", (8, 5, 4, 3), axis=1, renorm=True),
    _nnx("nnx_batch_renorm", (8, 4, 3, 5), renorm=True),
    _feature_norm("layer_norm", "layer_norm", (8, 4, 5), -1),
    _feature_norm("rms_norm", "rms_norm", (8, 4, 5), -1),
    _feature_norm("instance_norm_nchw", "instance_norm", (8, 5, 4, 3), (2, 3), 1, axis=1),
    _feature_norm("group_norm", "group_norm", (8, 4, 3, 6), (1, 2, -1), num_groups=2),
    _linen_feature_norm("linen_layer_norm", "LayerNorm", (8, 4, 5), -1),
    _linen_feature_norm("linen_rms_norm", "RMSNorm", (8, 4, 5), -1),
    _linen_feature_norm("linen_instance_norm", "InstanceNorm", (8, 4, 3, 5), (1, 2)),
    _linen_feature_norm("linen_group_norm", "GroupNorm", (8, 6), -1, num_groups=2),
    _nnx_feature_norm("nnx_layer_norm_of_images", "LayerNorm", (8, 4, 3, 2), **_IMAGE),
    _nnx_feature_norm("nnx_rms_norm", "RMSNorm", (8, 4, 5), -1),
    _nnx_feature_norm("nnx_instance_norm", "InstanceNorm", (8, 4, 3, 5), (1, 2)),
    _nnx_feature_norm("nnx_group_norm", "GroupNorm", (8, 4, 3, 6), (1, 2, -1), num_groups=2),
)
