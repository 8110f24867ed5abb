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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.testing import _oracle

Variables = dict[str, Any]
_EPSILON = 1e-5
_DECAY = 0.9


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

    def __repr__(self) -> str:
        return self.name


def every_third_masked(x: Any) -> np.ndarray:
    """The mask of the masked layers: one value an example, False for examples 0, 3, 6, …"""
    counts = np.arange(x.shape[0]) % 3 != 0
    return counts.reshape((-1,) + (1,) * (x.ndim - 1))


def _functional(
    name: str, shape: tuple[int, ...], axis: int | tuple[int, ...] = -1, masked: bool = False, **kw
) -> Layer:
    def init(key, x):
        from bnjax import init_batch_stats

        features = _features(x, axis)
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        params = {"scale": jnp.ones(features, dtype), "bias": jnp.zeros(features, dtype)}
        stats = init_batch_stats(features, dtype)._asdict()
        return _draw(key, {"params": params, "batch_stats": stats})

    def apply(variables, x, train):
        from bnjax import BatchStats, batch_norm

        params, stats = variables["params"], BatchStats(**variables["batch_stats"])
        mask = every_third_masked(x) if masked else None
        options: dict[str, Any] = {"decay": _DECAY, "epsilon": _EPSILON, "axis": axis, **kw}
        scale, bias = params["scale"], params["bias"]
        y, stats = batch_norm(x, scale, bias, stats, train=train, mask=mask, **options)
        return y, {"params": params, "batch_stats": stats._asdict()}

    return Layer(name, init, apply, _reference(axis, masked), shape, axis)


def _linen(
    name: str, shape: tuple[int, ...], axis: int | tuple[int, ...] = -1, masked: bool = False
) -> Layer:
    def module():
        from bnjax.linen import BatchNorm

        return BatchNorm(axis=axis, momentum=_DECAY, epsilon=_EPSILON)

    def init(key, x):
        return _draw(key, dict(module().init(key, x, use_running_average=False)))

    def apply(variables, x, train):
        mask = every_third_masked(x) if masked else None
        options: dict[str, Any] = {"use_running_average": not train, "mask": mask}
        y, changed = module().apply(variables, x, mutable=["batch_stats"], **options)
        return y, {**variables, **changed}

    return Layer(name, init, apply, _reference(axis, masked), shape, axis, needs="flax")


def _nnx(
    name: str, shape: tuple[int, ...], axis: int | tuple[int, ...] = -1, masked: bool = False
) -> Layer:
    def split(x):
        from flax import nnx

        from bnjax.nnx import BatchNorm

        (features,) = _features(x, axis)
        options: dict[str, Any] = {"axis": axis, "momentum": _DECAY, "epsilon": _EPSILON}
        # A module belongs to the trace it was made in, so each call makes its own.
        module = BatchNorm(features, rngs=nnx.Rngs(0), **options)
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

    return Layer(name, init, apply, _reference(axis, masked), shape, axis, needs="flax")


def _reference(axis: int | tuple[int, ...], masked: bool) -> Callable:
    def reference(variables, x, train):
        params, stats = variables["params"], variables["batch_stats"]
        options: dict[str, Any] = {"axis": axis, "epsilon": _EPSILON}
        if train:
            mask = every_third_masked(x) if masked else None
            forward = _oracle.batch_norm_forward
            return forward(x, params["scale"], params["bias"], mask=mask, **options).y
        x_hat = _oracle.normalize(x, stats["mean"], stats["var"], **options)
        return _oracle.scale_shift(x_hat, params["scale"], params["bias"], axis=axis)

    return reference


def _features(x: Any, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(x.shape[a] for a in sorted(a % x.ndim for a in axes))


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
)
