"""Batch normalisation: moments, normalise, scale and shift, and the running statistics."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bnjax.core._axes import (
    Axes,
    canonical_axes,
    check_features,
    check_inexact,
    check_mask,
    compute_dtype,
    expand,
    other_axes,
    output_dtype,
    real_dtype,
    size_of,
    whole_number,
)
from bnjax.core._batch_stats import (
    MAKE_ONE,
    BatchStats,
    check_ddof,
    check_decay,
    move,
    never_updated,
)
from bnjax.core._checks import as_array, check_choice, check_switch, check_type
from bnjax.core._devices import Sync, canonical_axis_name, devices
from bnjax.core._moments import compact
from bnjax.core._normalize import (
    affine,
    as_params,
    check_complex,
    check_epsilon,
    expand_params,
    inverse_std,
)
from bnjax.core._pending_update import PendingUpdate, add_to_update
from bnjax.core._sharding import sharded_like
from bnjax.core._spread import standardize_by_spread
from bnjax.core._standardize import Correction, Rule, standardize_batches, virtual_batches
from bnjax.core._statistics import Statistics, known_count, statistics
from bnjax.core._warn import warn

SingleValue = Literal["error", "warn", "allow", "running"]
Unseen = Literal["warn", "nan", "allow"]
Spread = Literal["std", "l1", "linf"]


def batch_norm(
    x,
    scale,
    bias,
    batch_stats: BatchStats | PendingUpdate,
    *,
    train: bool,
    decay: float | jax.Array | None = 0.99,
    epsilon: float = 1e-5,
    axis: Axes = -1,
    mask=None,
    axis_name=None,
    ddof: int = 0,
    debias: bool = False,
    virtual_batch_size: int | None = None,
    update_stats: bool | None = None,
    skip_nonfinite: bool = False,
    single_value: SingleValue = "error",
    unseen: Unseen = "warn",
    dtype=None,
    axis_index_groups=None,
    spread: Spread = "std",
) -> tuple[jax.Array, BatchStats | PendingUpdate]:
    r"""Normalise each feature of ``x`` over the batch, or by running statistics.

    .. math::
        \mu = \tfrac1n \sum_i x_i, \qquad v = \tfrac1n \sum_i (x_i - \mu)^2, \qquad
        y_i = \gamma\, \frac{x_i - \mu}{\sqrt{v + \epsilon}} + \beta

    In training :math:`\mu, v` are those of the batch, by the corrected two-pass algorithm of
    :func:`bnjax.moments`; the mean is kept to twice the working precision until it has been
    subtracted, so ``y`` and its gradients are right to a few units in the last place at any
    offset. In evaluation they are ``batch_stats``.

    Which statistics normalise (``train``) and whether they are updated (``update_stats``) are
    two choices:

    ===========  ==================  =======================================================
    ``train``    ``update_stats``    use
    ===========  ==================  =======================================================
    True         None or True        training
    True         False               a second forward pass in the same step; test-time batches
    False        None or False       evaluation
    False        True                train with frozen normalisation while tracking the data
    ===========  ==================  =======================================================

    Derivatives: forward and reverse mode, to any order, in ``x``, ``scale`` and ``bias``. The
    backward pass keeps ``x`` in its own dtype and four vectors, and reads each activation twice.
    The *returned* ``batch_stats`` carry no gradient (they are stopped): state is not a path for
    learning. For differentiable running statistics compose :func:`bnjax.moments` and
    :func:`bnjax.update_batch_stats`.

    Magnitude: a variance is kept in float32 (float64 for such input), so ``y`` is right for
    deviations up to 1.8·10¹⁹ and its gradient up to 10¹⁶; beyond, ``y`` is ``bias`` or NaN. Below
    10⁻¹⁵ ``epsilon`` alone decides; it must be a normal number, 1.2·10⁻³⁸ at least, or 0.

    Args:
      x: floating or complex, for example ``(N, F)``, ``(N, L, C)``, ``(N, H, W, C)``.
      scale: γ, shape ``(*features)``, a scalar, or None for 1.
      bias: β, likewise, or None for 0.
      batch_stats: running statistics, from :func:`bnjax.init_batch_stats`; or a
        :class:`bnjax.PendingUpdate` of them, where several batches make one update.
      train: True to normalise by the batch, False by ``batch_stats``. A Python bool.
      decay: weight of the old running value; None averages all updates. For a schedule pass a
        scalar array, perhaps traced: each new Python number compiles a new program.
      epsilon: added to the variance, in units of ``x`` squared. With 0, a constant feature gives
        NaN in training, and one of running variance 0 in evaluation.
      axis: the feature axis or axes, which are *kept*: -1 for NHWC and (N, F), 1 for NCHW and
        (N, C, L), (1, 2) to normalise every (channel, row) by itself.
      mask: boolean, broadcastable to ``x``; True counts. Hidden entries take no part in the
        statistics or their gradients; they are normalised like the rest, and come out as
        ``bias`` where they are not finite. A feature with nothing to count comes out as ``bias``.
      axis_name: name or names of mapped axes (``jax.shard_map``, ``jax.vmap``) whose batches
        are merged: one all-gather forward, one all-reduce backward. Under ``jax.jit`` with
        sharded arrays leave it None. Under ``shard_map(check_vma=False)`` gradients of
        replicated ``scale`` and ``bias`` are local sums, as everywhere in JAX.
      ddof: 0 or 1, for the *running* variance only; the batch is normalised with 0.
      debias: correct the running statistics for their start, see
        :func:`bnjax.update_batch_stats`.
      virtual_batch_size: normalise slices of about this many examples of axis 0 separately (ghost
        batch norm), in training only. A batch of ``N`` is cut into ``max(1, N // size)`` virtual
        batches whose sizes differ by one at most. Running statistics get the merged moments.
      update_stats: see the table; None means the same as ``train``.
      skip_nonfinite: a batch with infinite or NaN moments leaves ``batch_stats`` untouched.
      single_value: what to do in training when each feature has one value only (by the shape of
        ``x``; a mask is not looked at), so that ``y`` would be ``bias`` whatever ``x`` is:
        "error"; "warn" and "allow" compute that; "running" normalises by ``batch_stats`` and
        leaves them untouched.
      unseen: what to do in evaluation when ``batch_stats`` are the initial ones, a count of 0
        beside a mean of 0 and a variance of 1: "warn" (where they are known, that is outside
        ``jit``), "nan" (fill ``y`` with NaN, under ``jit`` too) or "allow". Other values beside a
        count of 0 came without their counter and are used as they are, see
        :class:`bnjax.BatchStats`.
      dtype: dtype of ``y``; that of ``x`` unless given.
      axis_index_groups: groups of indices of ``axis_name`` to merge separately, where JAX
        supports them (``jax.pmap``, unchecked ``shard_map``); elsewhere name a mesh axis.
      spread: what the deviations are divided by: "std"; "l1", their mean absolute value; or
        "linf", the largest. The running ``var`` is then its square. Neither is merged over
        devices or virtual batches.

    Returns:
      ``(y, batch_stats)``: ``y`` of the shape of ``x``; statistics that are the argument itself
      when nothing was updated. A batch without examples, or without features, is no update: it
      leaves statistics and count as they were, in every mode.

    Raises:
      TypeError: ``x`` is integer or boolean, or ``mask`` is not boolean.
      ValueError: shapes do not fit, an option has an illegal value, or each feature has one
        value in training; each message names the argument and a remedy. All at trace time.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> stats = bnjax.init_batch_stats(2)
      >>> y, stats = bnjax.batch_norm(x, jnp.ones(2), jnp.zeros(2), stats, train=True, decay=0.9)
      >>> print(y.round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(stats.mean, stats.count)
      [0.2 2. ] 1
      >>> y, _ = bnjax.batch_norm(x, jnp.ones(2), jnp.zeros(2), stats, train=False)

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2; Chan, Golub & LeVeque (1983) for the
    statistics; Hoffer et al. (2017) for virtual batches; Santurkar et al. (2018),
    §3.3, for other spreads. PyTorch's ``momentum`` is ``1 - decay``
    and its running variance has ddof=1. Flax computes ``E[x²] - E[x]²`` by default, averages
    means over devices and has no count.
    """
    return run(
        x,
        scale,
        bias,
        batch_stats,
        None,
        train=train,
        decay=decay,
        epsilon=epsilon,
        axis=axis,
        mask=mask,
        axis_name=axis_name,
        ddof=ddof,
        debias=debias,
        virtual_batch_size=virtual_batch_size,
        update_stats=update_stats,
        skip_nonfinite=skip_nonfinite,
        single_value=single_value,
        unseen=unseen,
        dtype=dtype,
        axis_index_groups=axis_index_groups,
        spread=spread,
    )


def run(
    x,
    scale,
    bias,
    batch_stats,
    limits,
    *,
    train,
    decay,
    epsilon,
    axis,
    mask,
    axis_name,
    ddof,
    debias,
    virtual_batch_size,
    update_stats,
    skip_nonfinite,
    single_value,
    unseen,
    dtype,
    axis_index_groups,
    spread: Spread = "std",
    average_std: bool = False,
) -> tuple[jax.Array, Any]:
    """Check the arguments of batch norm, or with ``limits`` of batch renorm, and choose a program.

    ``limits`` are ``(r_max, d_max)``; ``average_std`` is what the running variance averages.
    """
    x = as_array(x, "x")
    check_inexact(x)
    mask = check_mask(mask, x)
    check_decay(decay)
    check_ddof(ddof)
    check_choice("single_value", single_value, get_args(SingleValue))
    check_choice("unseen", unseen, get_args(Unseen))
    check_choice("spread", spread, get_args(Spread))
    if spread != "std" and not (axis_name is None and virtual_batch_size is None):
        raise ValueError(
            f"spread={spread!r} is of one batch on one device; got axis_name={axis_name!r}, "
            f"virtual_batch_size={virtual_batch_size!r}. Leave both None, or use spread='std'."
        )
    static_decay = float(decay) if isinstance(decay, numbers.Real) else None
    traced_decay = decay if static_decay is None else None
    plan = _Plan(
        kept=canonical_axes(axis, x.ndim, "axis"),
        epsilon=check_epsilon(epsilon),
        decay=static_decay,
        ddof=int(ddof),
        debias=check_switch("debias", debias),
        virtual_batch_size=(
            None
            if virtual_batch_size is None
            else whole_number(virtual_batch_size, "virtual_batch_size", 1)
        ),
        skip_nonfinite=check_switch("skip_nonfinite", skip_nonfinite),
        sync=canonical_axis_name(x, axis_name, axis_index_groups),
        dtype=output_dtype(dtype, x),
        average_std=average_std,
        spread=spread,
    )
    scale, bias = as_params(scale, bias)
    before = batch_stats.before if isinstance(batch_stats, PendingUpdate) else batch_stats
    _check_fit(x, before, plan)
    train = check_switch("train", train)
    update_stats = train if update_stats is None else check_switch("update_stats", update_stats)

    if train and _values_a_feature(x.shape, plan) == 1:
        _report_single_value(single_value, x.shape, axis)
        if single_value == "running":
            train = update_stats = False
    if train:
        y, updated = _train(x, scale, bias, mask, batch_stats, traced_decay, limits, plan)
        return y, updated if update_stats else batch_stats
    if unseen == "warn":
        _warn_if_unseen(before)
    y = _evaluate(x, scale, bias, mask, before, plan, unseen == "nan")
    return y, _track(x, mask, batch_stats, traced_decay, plan) if update_stats else batch_stats


class _Plan(NamedTuple):
    """The static choices of one call, hashable for ``jax.jit``."""

    kept: tuple[int, ...]
    epsilon: float
    decay: float | None  # Python numbers stay static: 1 - 0.99 is exact, 1 - float32(0.99) not
    ddof: int
    debias: bool
    virtual_batch_size: int | None
    skip_nonfinite: bool
    sync: Sync
    dtype: jnp.dtype
    average_std: bool
    spread: Spread


@functools.partial(jax.jit, static_argnames="plan")
def _train(x, scale, bias, mask, batch_stats, traced_decay, limits, plan: _Plan):
    """Normalise by the batch; the output and the updated running statistics."""
    scale, bias = _ready_params(x, scale, bias, plan)
    correction = None
    if limits is not None:
        correction = _correction(x, batch_stats, limits, plan)
        scale = jnp.ones_like(correction.mean) if scale is None else scale
        bias = jnp.zeros_like(correction.mean) if bias is None else bias
    rule = Rule(other_axes(plan.kept, x.ndim), plan.epsilon, plan.dtype, plan.sync)
    if plan.spread != "std":
        y, stats = standardize_by_spread(x, mask, scale, bias, rule, plan.spread)
    else:
        size = plan.virtual_batch_size
        y, stats = standardize_batches(x, mask, scale, bias, correction, rule, size)
    return y, _update(x, mask, batch_stats, stats, traced_decay, plan)


def _correction(x, batch_stats, limits, plan: _Plan) -> Correction:
    """The running statistics and limits of batch renorm, ready to broadcast against ``x``."""
    stats = batch_stats.before if isinstance(batch_stats, PendingUpdate) else batch_stats
    dtype = compute_dtype(x.dtype, plan.dtype)

    def ready(v, name):
        return expand(jnp.asarray(v), x.shape, plan.kept, name)

    real = real_dtype(dtype)
    r_max, d_max = (
        ready(v, n).astype(real) for v, n in zip(limits, ("r_max", "d_max"), strict=True)
    )
    mean = ready(stats.mean, "batch_stats.mean").astype(dtype)
    var = ready(stats.var, "batch_stats.var")
    inv_std = inverse_std(var, plan.epsilon, dtype=real).astype(real)
    return Correction(mean, inv_std, r_max, d_max)


@functools.partial(jax.jit, static_argnames=("plan", "poison"))
def _evaluate(x, scale, bias, mask, batch_stats, plan: _Plan, poison):
    """Normalise by the running statistics; NaN if ``poison`` and there are none."""
    dtype = compute_dtype(x.dtype, plan.dtype)
    scale, bias = _ready_params(x, scale, bias, plan)
    mean = expand(batch_stats.mean, x.shape, plan.kept, "batch_stats.mean").astype(dtype)
    var = batch_stats.var
    if poison:
        var = jnp.where(never_updated(batch_stats), jnp.nan, var)
    var = expand(var, x.shape, plan.kept, "batch_stats.var")
    inv_std = inverse_std(var, plan.epsilon, dtype=real_dtype(dtype))
    return affine(x, mask, mean, inv_std, scale, bias, plan.dtype)


@functools.partial(jax.jit, static_argnames="plan")
def _track(x, mask, batch_stats, traced_decay, plan: _Plan):
    """Update the running statistics without normalising by the batch."""
    rule = Rule(other_axes(plan.kept, x.ndim), plan.epsilon, plan.dtype, plan.sync)
    if plan.spread != "std":
        _, stats = standardize_by_spread(x, mask, None, None, rule, plan.spread)
    else:
        stats = statistics(x, mask, rule.axes, rule.sync)
    return _update(x, mask, batch_stats, stats, traced_decay, plan)


def _ready_params(x, scale, bias, plan):
    return expand_params(scale, bias, x.shape, plan.kept, compute_dtype(x.dtype, plan.dtype))


def _update(x, mask, batch_stats, stats: Statistics, traced_decay, plan: _Plan):
    """Move ``batch_stats`` towards the statistics of ``x``; no gradient."""
    axes = other_axes(plan.kept, x.ndim)
    update = _update_of(batch_stats, plan)
    moments = compact(stats, axes, known_count(x.shape, mask, axes, plan.sync))
    updated = update(
        jax.tree.map(lambda v: sharded_like(v, moments.mean), batch_stats),
        moments.moments() if isinstance(batch_stats, PendingUpdate) else moments,
        decay=plan.decay if traced_decay is None else traced_decay,
        ddof=plan.ddof,
        debias=plan.debias,
        skip_nonfinite=plan.skip_nonfinite,
    )
    # A state keeps its type, as a carry of lax.scan must.
    updated = jax.tree.map(sharded_like, updated, batch_stats)
    return jax.lax.stop_gradient(updated)


def _update_of(batch_stats, plan: _Plan) -> Callable[..., Any]:
    """The function that updates ``batch_stats``."""
    update = functools.partial(move, epsilon=plan.epsilon if plan.average_std else None)
    pending = isinstance(batch_stats, PendingUpdate)
    return functools.partial(add_to_update, update) if pending else update


def _check_fit(x, batch_stats, plan: _Plan):
    check_type("batch_stats", batch_stats, BatchStats, MAKE_ONE)
    if jnp.iscomplexobj(batch_stats.mean):
        check_complex(compute_dtype(x.dtype, plan.dtype), "batch_stats.mean")
    check_features(jnp.shape(batch_stats.mean), x.shape, plan.kept, "batch_stats.mean")
    check_features(jnp.shape(batch_stats.var), x.shape, plan.kept, "batch_stats.var")
    if jnp.ndim(batch_stats.count):
        check_features(jnp.shape(batch_stats.count), x.shape, plan.kept, "batch_stats.count")
    if plan.virtual_batch_size is not None and 0 in plan.kept:
        raise ValueError(
            "virtual_batch_size cuts axis 0 into virtual batches, but axis keeps axis 0 as a "
            "feature axis. Move the batch to axis 0, or leave virtual_batch_size=None."
        )


def _values_a_feature(shape, plan: _Plan) -> int:
    """How many values each feature has in the smallest batch that is normalised by itself."""
    reduced = other_axes(plan.kept, len(shape))
    if plan.virtual_batch_size is not None:
        smallest = min(size for *_, size in virtual_batches(shape[0], plan.virtual_batch_size))
        return smallest * size_of(shape, reduced[1:])
    return size_of(shape, reduced) * devices(plan.sync)


def _report_single_value(single_value, shape, axis):
    message = (
        f"x of shape {shape} with axis={axis!r} has one value a feature in training: its variance "
        "is 0 and the output is bias, whatever x is. Use a larger batch (or virtual batch), merge "
        "devices with axis_name, evaluate with train=False, or choose single_value='running' to "
        "normalise by the running statistics, 'allow' or 'warn' to compute it all the same."
    )
    if single_value == "error":
        raise ValueError(message)
    if single_value == "warn":
        warn(message)


def _warn_if_unseen(batch_stats: BatchStats):
    # NumPy: under a trace, jax.numpy would make a tracer even of a count that is known.
    if any(isinstance(v, Tracer) for v in batch_stats):
        return
    known: Any = map(np.asarray, batch_stats)
    if np.any(never_updated(BatchStats(*known))):
        warn(
            "batch_stats.count is 0: these running statistics have never been updated, so x is "
            "normalised by mean 0 and variance 1. Keep the batch_stats that training returns; "
            "unseen='nan' makes the same mistake visible under jit, 'allow' silences this."
        )
