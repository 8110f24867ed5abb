"""One training step and one evaluation, as pure functions to import, or to read and copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnjax._variables import in_containers_of
from bnjax.training._begin_update import closed, opened

Metrics = dict[str, jax.Array]
# (params, collections, batch, train) -> (loss, (collections, metrics))
LossFn = Callable[
    [Any, dict[str, Any], Any, bool], tuple[jax.Array, tuple[dict[str, Any], Metrics]]
]


def train_step(
    state: Any,
    batch: Any,
    loss_fn: LossFn,
    *,
    micro_batches: int = 1,
    skip_nonfinite: bool = False,
    axis_name: Any = None,
) -> tuple[Any, Metrics]:
    r"""One step of the optimizer, with one update of the running statistics.

    With ``k`` = ``micro_batches`` the batch is cut into ``k`` equal parts, run one after the other,
    so that only one part's activations are in memory:

    .. math::
        L = \tfrac1k \sum_j L_j, \qquad
        M = M_1 \oplus \dots \oplus M_k \ (\text{:func:`bnjax.merge`})

    Each part is normalised by itself, like a virtual batch; the running statistics of bnjax's
    modules make *one* update, by the merged moments (other libraries' modules make ``k``).

    Pure and free of Python state: use it under ``jax.jit`` (the state may be donated),
    ``jax.lax.scan``, ``jax.vmap`` over seeds, or ``jax.shard_map``.

    Args:
      state: before the step: a :class:`TrainState`; or any other with ``params``, ``batch_stats``,
        ``apply_gradients(grads=..., batch_stats=...)`` and ``replace``, as a subclass of
        ``flax.training.train_state.TrainState`` with that field.
      batch: pytree of arrays with examples on axis 0. Micro-batches share scalars, and get random
        keys of their own, split from a key in the batch.
      loss_fn: ``loss_fn(params, collections, batch, train)`` returns
        ``(loss, (collections, metrics))``. ``collections`` is the dict of Flax collections to read
        and, in training, to update: pass all of it to ``apply`` and name all of it ``mutable``.
        It holds ``batch_stats``, in which bnjax's modules find the update that micro-batches share;
        pure functions find a :class:`bnjax.PendingUpdate` there in place of their ``BatchStats``.
      micro_batches: number of parts; it must divide the number of examples.
      skip_nonfinite: if loss, a gradient or a running statistic is infinite or NaN, change
        nothing but ``step`` and ``skipped`` (if the state has that). Off by default: then all
        turns NaN, visibly.
      axis_name: mesh axis or axes over which the batch is split, under ``jax.shard_map`` with
        its default ``check_vma=True``: loss, metrics and gradients are then means over all. Give
        the same name to the norm layers for statistics of the whole batch.

    Returns:
      ``(state, metrics)``: metrics are ``loss`` and those of ``loss_fn``, averaged over parts.

    Raises:
      ValueError: ``micro_batches`` is not positive or does not divide the batch.
      TypeError: ``state`` is none, or has no place for the statistics that ``loss_fn`` returns.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from bnjax.linen import BatchNorm
      >>> from bnjax.training import TrainState, train_step
      >>> model, x = BatchNorm(momentum=0.9), jnp.array([[1.0], [3.0], [11.0], [13.0]])
      >>> def loss_fn(params, collections, batch, train):
      ...     y, collections = model.apply(
      ...         {"params": params, **collections}, batch["x"], use_running_average=not train,
      ...         mutable=list(collections) if train else [])
      ...     return jnp.mean((y - batch["target"]) ** 2), (collections, {})
      >>> variables = model.init(jax.random.key(0), x, use_running_average=False)
      >>> state = TrainState.create(**variables, tx=optax.sgd(0.1))
      >>> step = jax.jit(train_step, static_argnums=2, static_argnames="micro_batches")
      >>> state, metrics = step(state, {"x": x, "target": x}, loss_fn, micro_batches=2)
      >>> print(state.step, state.batch_stats["mean"])
      1 [0.7]

    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 1-6. PyTorch and Flax leave the step to the
    user; accumulating gradients there updates the statistics ``k`` times.
    """

    def mean_loss(params, collections, batch):
        loss, (collections, metrics) = loss_fn(params, collections, batch, True)
        return _mean(loss, axis_name), (collections, _mean(metrics, axis_name))

    _check_state(state, "params", "apply_gradients", "replace")
    grad_fn = jax.value_and_grad(mean_loss, has_aux=True)
    if micro_batches == 1:
        collections = {"batch_stats": _stats(state)}
        (loss, (collections, metrics)), grads = grad_fn(state.params, collections, batch)
    else:
        loss, collections, metrics, grads = _accumulate(grad_fn, state, batch, micro_batches)
    batch_stats = collections.get("batch_stats", _stats(state))
    new = state.apply_gradients(grads=grads, **_field(state, batch_stats))
    if skip_nonfinite:
        new = _unless_nonfinite(state, new, (loss, grads, batch_stats))
    return new, {"loss": loss, **metrics}


def eval_step(state: Any, batch: Any, loss_fn: LossFn, *, axis_name: Any = None) -> Metrics:
    """Loss and metrics of ``batch`` by the running statistics; nothing is updated.

    Args:
      state: parameters and running statistics, as in :func:`train_step`.
      batch, loss_fn, axis_name: as in :func:`train_step`; called with ``train=False``.

    Returns:
      ``loss`` and the metrics of ``loss_fn``; means over ``axis_name``, so give each device as
      many examples, or return sums and counts as metrics.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from bnjax.training import TrainState, eval_step
      >>> state = TrainState.create(params=jnp.array(2.0), tx=optax.sgd(0.1))
      >>> def loss_fn(params, collections, batch, train):
      ...     return jnp.mean((batch - params) ** 2), (collections, {"bias": jnp.mean(batch)})
      >>> print(eval_step(state, jnp.array([1.0, 3.0]), loss_fn))
      {'loss': Array(1., dtype=float32), 'bias': Array(2., dtype=float32)}

    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 8-11.
    """
    _check_state(state, "params")
    loss, (_, metrics) = loss_fn(state.params, {"batch_stats": _stats(state)}, batch, False)
    return _mean({"loss": loss, **metrics}, axis_name)


def _check_state(state, *names):
    lacking = [name for name in names if not hasattr(state, name)]
    if lacking:
        raise TypeError(
            f"state must be a bnjax.training.TrainState, or one of Flax with a field batch_stats, "
            f"got {type(state).__name__}, which has no {', '.join(lacking)}."
        )


def _stats(state):
    """The running statistics in a state, which may have none, or no place for them."""
    stats = getattr(state, "batch_stats", None)
    return {} if stats is None else stats


def _field(state, batch_stats) -> dict[str, Any]:
    """The new running statistics as a field of the state."""
    if hasattr(state, "batch_stats"):
        nothing = state.batch_stats is None and not jax.tree.leaves(batch_stats)
        return {"batch_stats": None if nothing else in_containers_of(_stats(state), batch_stats)}
    if jax.tree.leaves(batch_stats):
        raise TypeError(
            f"loss_fn returns batch_stats, for which {type(state).__name__} has no field: they "
            "would be lost. Use bnjax.training.TrainState, or add the field batch_stats to yours."
        )
    return {}


def _accumulate(grad_fn, state, batch, micro_batches):
    """Loss, collections, metrics and gradients of all parts of ``batch``."""
    parts = jax.tree.map(lambda v: _split(v, micro_batches), batch)
    collections = {"batch_stats": opened(_stats(state))}

    def body(collections, part):
        (loss, (collections, metrics)), grads = grad_fn(state.params, collections, part)
        return collections, (loss, metrics, grads)

    def add(carry, part):
        collections, sums = carry
        collections, more = body(collections, part)
        return (collections, jax.tree.map(jnp.add, sums, more)), None

    # The first part outside of the scan says what is to be summed.
    first, rest = jax.tree.map(lambda v: v[0], parts), jax.tree.map(lambda v: v[1:], parts)
    (collections, sums), _ = lax.scan(add, body(collections, first), rest)
    loss, metrics, grads = jax.tree.map(lambda v: v / micro_batches, sums)
    return loss, closed(collections), metrics, grads


def _split(v, micro_batches):
    if micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches} must be positive and divide the batch.")
    if jnp.ndim(v) == 0:
        key = jnp.issubdtype(jnp.result_type(v), jax.dtypes.prng_key)
        return jax.random.split(v, micro_batches) if key else jnp.full(micro_batches, v)
    if v.shape[0] % micro_batches:
        raise ValueError(
            f"micro_batches={micro_batches} must be positive and divide the {v.shape[0]} examples "
            f"of the batch (an array of shape {v.shape}). Arrays are cut on axis 0; what all parts "
            "share must be a scalar, a random key one of jax.random.key."
        )
    return v.reshape(micro_batches, v.shape[0] // micro_batches, *v.shape[1:])


def _mean(tree, axis_name):
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def _unless_nonfinite(old, new, watched):
    """``new``, or where anything ``watched`` is not finite ``old`` with the step counted."""
    leaves = [v for v in jax.tree.leaves(watched) if jnp.issubdtype(v.dtype, jnp.inexact)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in leaves]))
    kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    counted = {"step": new.step} if hasattr(new, "step") else {}
    if hasattr(old, "skipped"):
        counted["skipped"] = old.skipped + (~finite).astype(jnp.int32)
    return kept.replace(**counted)
