"""Open one update of all running statistics of a Flax model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import core
from bnjax.core import BatchStats


def begin_update(batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """A collection that makes several calls of a linen model one update of ``batch_stats``.

    Give it to ``apply`` as the collection ``batch_moments``, name it ``mutable`` beside
    ``batch_stats``, and pass both on from call to call: each :class:`bnjax.linen.BatchNorm` then
    moves its statistics as one batch of all the examples would. That is for micro-batches, and for
    several forward passes in one step. (Layers under ``nn.scan`` or ``nn.vmap`` need it among the
    ``variable_axes``. With nnx use :func:`bnjax.nnx.one_update`.)

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
    if not {"mean", "var"} <= batch_stats.keys():
        # What else lies in the collection, of other layers, updates as ever.
        inner = {k: v for k, v in batch_stats.items() if isinstance(v, Mapping)}
        return {name: begin_update(stats) for name, stats in inner.items()}
    mean, var = batch_stats["mean"], batch_stats["var"]
    if not isinstance(mean, jax.Array | np.ndarray):
        _refuse(mean)
    # One count a feature, so that a scan over layers can cut it like the rest.
    mean = jnp.asarray(mean)
    count = batch_stats.get("count", np.zeros(mean.shape, np.int32))
    return {"pending": core.begin_update(BatchStats(mean, var, count))}


def _refuse(found):
    raise TypeError(
        "batch_stats must be a Flax linen collection: mappings that end in arrays mean and var, "
        f"got {type(found).__name__}. With nnx use bnjax.nnx.one_update(model); with pure "
        "functions pass bnjax.begin_update(stats) to bnjax.batch_norm."
    )
