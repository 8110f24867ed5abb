"""Several forward passes of an nnx model that update its running statistics once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from flax import nnx

from bnjax._flax import batch_stats_of
from bnjax.core import begin_update
from bnjax.nnx._batch_norm import BatchNorm


class BatchMoments(nnx.BatchStat):
    """A :class:`bnjax.PendingUpdate`, while one is open; mapped and carried as statistics are."""


@contextlib.contextmanager
def one_update(model: nnx.Module) -> Iterator[None]:
    """Let all calls of ``model`` inside the block make one update of its running statistics.

    Micro-batches, or several forward passes of a step, then move the statistics once, by the
    merged moments of all of them. Works on every :class:`bnjax.nnx.BatchNorm` and
    :class:`bnjax.nnx.BatchRenorm` in ``model``; inside ``nnx.jit`` open the block within the jitted
    function. A block within a block is the outer one's.

    Args:
      model: a module that holds the layers, or one of them.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import BatchNorm, one_update
      >>> norm, x = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0)), jnp.arange(4.0)[:, None]
      >>> with one_update(norm):
      ...     y = norm(x[:2]), norm(x[2:])
      >>> print(norm.mean[...])
      [0.15]

    Source: see :class:`bnjax.PendingUpdate`. Flax and PyTorch update once a call.
    """
    layers = [node for _, node in nnx.iter_graph(model) if isinstance(node, BatchNorm)]
    layers = [layer for layer in layers if not hasattr(layer, "pending")]
    for layer in layers:
        open_update(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.pending


def open_update(layer: BatchNorm) -> None:
    """Let the next calls of ``layer`` make one update, until its ``pending`` is deleted."""
    variables = layer._statistics()
    stats = batch_stats_of(**{name: v[...] for name, v in variables.items()})
    for name, variable in variables.items():
        # In the dtype that an update leaves, so that a scan can carry them.
        variable.set_value(getattr(stats, name))
    if "count" not in variables:
        # One count a feature, so that a scan over layers can cut it like the rest.
        stats = stats._replace(count=np.zeros(stats.mean.shape, np.int32))
    layer.pending = BatchMoments(begin_update(stats))
