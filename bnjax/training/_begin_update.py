"""Open one update of all running statistics of a Flax model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bnjax import core
from bnjax.core import BatchStats, PendingUpdate


def begin_update(batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """A collection that makes several calls of a linen model one update of ``batch_stats``.

    Give it to ``apply`` as the collection ``batch_moments``, name it ``mutable`` beside
    ``batch_stats``, and pass both on from call to call: each :class:`bnjax.linen.BatchNorm` then
    moves its statistics as one batch of all the examples would. That is for micro-batches, and for
    several forward passes in one step. (Layers under ``nn.scan`` or ``nn.vmap`` need it among the
    ``variable_axes``, with the axis of ``batch_stats``; :func:`train_step` and :func:`recalibrate`
    do without. With nnx use :func:`bnjax.nnx.one_update`.)

    Args:
      batch_stats: Flax's collection, before the step.

    Returns:
      The collection ``batch_moments``: a :class:`bnjax.PendingUpdate` for each layer.

    Raises:
      TypeError: ``batch_stats`` is not made of mappings with ``mean`` and ``var``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import BatchNorm
      >>> from bnjax.training import begin_update
      >>> norm, x = BatchNorm(use_running_average=False, momentum=0.9), jnp.arange(4.0)[:, None]
      >>> state = norm.init(jax.random.key(0), x)
      >>> state["batch_moments"] = begin_update(state["batch_stats"])
      >>> for micro in (x[:2], x[2:]):
      ...     y, new = norm.apply(state, micro, mutable=["batch_stats", "batch_moments"])
      ...     state |= new
      >>> print(state["batch_stats"]["mean"])
      [0.15]

    Source: see :class:`bnjax.PendingUpdate`. Flax and PyTorch update once a call.
    """
    if not isinstance(batch_stats, Mapping):
        _refuse(batch_stats)
    if not _is_layer(batch_stats):
        # What else lies in the collection, of other layers, updates as ever.
        inner = {k: v for k, v in batch_stats.items() if isinstance(v, Mapping)}
        return {name: begin_update(stats) for name, stats in inner.items()}
    return {"pending": _pending(batch_stats)}


def opened(batch_stats: Any) -> Any:
    """Running statistics whose next updates are one: what a step gives its loss function.

    Of linen's layers the update lies among the statistics, for any lifted transformation to take
    along; a :class:`bnjax.BatchStats` becomes a :class:`bnjax.PendingUpdate`.
    """
    if isinstance(batch_stats, nnx.State):
        _refuse(batch_stats)

    def each(node):
        if isinstance(node, BatchStats):
            return core.begin_update(node)
        if not _is_layer(node):
            return node
        pending = _pending(node)
        # In the dtypes that an update leaves, so that a scan can carry them.
        wide = {"mean": pending.before.mean, "var": pending.before.var}
        return flax.core.copy(node, {**wide, "pending": pending})

    return jax.tree.map(
        each, batch_stats, is_leaf=lambda v: isinstance(v, BatchStats) or _is_layer(v)
    )


def closed(batch_stats: Any) -> Any:
    """What :func:`opened` made, after the calls: the statistics to go on with."""

    def each(node):
        if isinstance(node, PendingUpdate):
            return node.after
        return flax.core.pop(node, "pending")[0] if _is_open(node) else node

    return jax.tree.map(
        each, batch_stats, is_leaf=lambda v: isinstance(v, PendingUpdate) or _is_open(v)
    )


def _is_layer(node: Any) -> bool:
    return isinstance(node, Mapping) and {"mean", "var"} <= node.keys()


def _is_open(node: Any) -> bool:
    return _is_layer(node) and "pending" in node


def _pending(layer: Mapping[str, Any]) -> PendingUpdate:
    mean, var = layer["mean"], layer["var"]
    if not isinstance(mean, jax.Array | np.ndarray):
        _refuse(mean)
    # One count a feature, so that a scan over layers can cut it like the rest.
    count = layer.get("count", np.zeros(mean.shape, np.int32))
    return core.begin_update(BatchStats(jnp.asarray(mean), jnp.asarray(var), count))


def _refuse(found):
    raise TypeError(
        "batch_stats must be a Flax linen collection: mappings that end in arrays mean and var, "
        f"got {type(found).__name__}. With nnx use bnjax.nnx.one_update(model); with pure "
        "functions pass bnjax.begin_update(stats) to bnjax.batch_norm."
    )
