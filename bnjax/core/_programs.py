"""The three programs of a norm with running statistics: train, evaluate, track; and the choice."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from bnjax.core._affine import Affine, affine, inverse_std
from bnjax.core._axes import real_dtype
from bnjax.core._batch_stats import MAKE_ONE, BatchStats, Update, never_updated
from bnjax.core._checks import check_choice, check_complex, check_features, check_switch, check_type
from bnjax.core._pending_update import PendingUpdate
from bnjax.core._rule import Inputs, Rule
from bnjax.core._sharding import sharded_like
from bnjax.core._standardize import Correction, standardize
from bnjax.core._statistics import Statistics, known_count, statistics
from bnjax.core._virtual_batches import fewest_values, standardize_virtual_batches
from bnjax.core._warn import warn

# Goes in and comes out: an update of the one or the other kind.
State = TypeVar("State", BatchStats, PendingUpdate)
MISSING: Any = None  # the default of an argument that is needed, and follows two that are not
SingleValue = Literal["error", "warn", "allow", "running"]
Unseen = Literal["warn", "nan", "allow"]


class Mode(NamedTuple):
    """Which statistics normalise, whether they are updated, and what to do in two odd cases."""

    train: bool
    update_stats: bool
    single_value: SingleValue
    unseen: Unseen


class Limits(NamedTuple):
    """How far batch renorm corrects; one number, or one a feature."""

    r_max: jax.Array
    d_max: jax.Array


def mode_for(
    train: bool, update_stats: bool | None, single_value: SingleValue, unseen: Unseen
) -> Mode:
    """The mode of a call, or an error that names the option that is illegal."""
    check_choice("single_value", single_value, get_args(SingleValue))
    check_choice("unseen", unseen, get_args(Unseen))
    train = check_switch("train", train)
    update_stats = train if update_stats is None else check_switch("update_stats", update_stats)
    return Mode(train, update_stats, single_value, unseen)


def run(
    inputs: Inputs, state: State, limits: Limits | None, rule: Rule, update: Update, mode: Mode
) -> tuple[jax.Array, State]:
    """The output, and the state after it; ``limits`` make it batch renorm."""
    _check_fit(state.before, inputs.x, rule)
    if mode.train and fewest_values(inputs.x.shape, rule) == 1:
        mode = _of_single_values(mode, inputs.x.shape, rule)
    if mode.train:
        y, after = _train(inputs, state, limits, update, rule)
        return y, after if mode.update_stats else state
    if mode.unseen == "warn":
        _warn_if_unseen(state.before)
    y = _evaluate(inputs, state.before, rule, mode.unseen == "nan")
    return y, _track(inputs, state, update, rule) if mode.update_stats else state


@functools.partial(jax.jit, static_argnames="rule")
def _train(inputs: Inputs, state, limits: Limits | None, update: Update, rule: Rule):
    """Normalise by the batch; the output and the updated running statistics."""
    scale, bias = inputs.params(rule)
    correction = None
    if limits is not None:
        correction = _correction(inputs.x, state.before, limits, rule)
        scale = jnp.ones_like(correction.mean) if scale is None else scale
        bias = jnp.zeros_like(correction.mean) if bias is None else bias
    x, mask = inputs.x, inputs.mask
    if rule.virtual_batch_size is None:
        y, stats = standardize(x, mask, scale, bias, correction, _guess(x, state, rule), rule)
    else:
        y, stats = standardize_virtual_batches(x, mask, scale, bias, correction, rule)
    return y, _moved(state, stats, inputs, rule, update)


@functools.partial(jax.jit, static_argnames=("rule", "poison"))
def _evaluate(inputs: Inputs, stats: BatchStats, rule: Rule, poison: bool):
    """Normalise by the running statistics; NaN if ``poison`` and there are none."""
    var = jnp.where(never_updated(stats), jnp.nan, stats.var) if poison else stats.var
    mean, inv_std = _vectors(inputs.x, stats._replace(var=var), rule)
    by = Affine(mean, None, inv_std, *inputs.params(rule))
    return affine(inputs.x, inputs.mask, by, rule)


@functools.partial(jax.jit, static_argnames="rule")
def _track(inputs: Inputs, state, update: Update, rule: Rule):
    """Update the running statistics without normalising by the batch."""
    stats = statistics(inputs.x, inputs.mask, _guess(inputs.x, state, rule), rule)
    return _moved(state, stats, inputs, rule, update)


def _moved(state, stats: Statistics, inputs: Inputs, rule: Rule, update: Update):
    """``state`` after the batch; no gradient."""
    known = known_count(inputs.x.shape, inputs.mask, rule)
    after = state.take(stats.compact(rule.axes, known), update)
    # A state keeps its type, as a carry of lax.scan must.
    return lax.stop_gradient(jax.tree.map(sharded_like, after, state))


def _guess(x, state, rule: Rule) -> jax.Array:
    """The running mean, which that of the batch is near after the first steps."""
    return rule.expand(jnp.asarray(state.before.mean), x.shape).astype(rule.wide)


def _correction(x, stats: BatchStats, limits: Limits, rule: Rule) -> Correction:
    """The running statistics and limits of batch renorm, ready to broadcast against ``x``."""
    mean, inv_std = _vectors(x, stats, rule)
    real = real_dtype(rule.wide)
    r_max, d_max = (rule.expand(jnp.asarray(v), x.shape).astype(real) for v in limits)
    return Correction(mean, inv_std.astype(real), r_max, d_max)


def _vectors(x, stats: BatchStats, rule: Rule) -> tuple[jax.Array, jax.Array]:
    """Mean and inverse deviation of the running statistics, ready to broadcast against ``x``."""
    mean, var = (rule.expand(jnp.asarray(v), x.shape) for v in (stats.mean, stats.var))
    inv_std = inverse_std(var, rule.epsilon, dtype=real_dtype(rule.wide))
    return mean.astype(rule.wide), inv_std


def check_state(state: Any) -> None:
    """Raise ``TypeError`` unless ``state`` is one."""
    if state is MISSING:
        raise TypeError(f"batch_stats is missing: give them by that name. {MAKE_ONE}")
    check_type("batch_stats", state, (BatchStats, PendingUpdate), MAKE_ONE)


def _check_fit(stats: BatchStats, x: jax.Array, rule: Rule) -> None:
    check_complex(stats.mean, "batch_stats.mean", rule.wide)
    for name in ("mean", "var", "count"):
        shape = jnp.shape(getattr(stats, name))
        if shape or name != "count":
            check_features(shape, f"batch_stats.{name}", x.shape, rule.features)


def _of_single_values(mode: Mode, shape: tuple[int, ...], rule: Rule) -> Mode:
    """The mode where the variance of the batch says nothing."""
    message = (
        f"x of shape {shape} with features on the axes {rule.features} has one value a feature in "
        "training: its variance is 0 and the output is bias, whatever x is. Use a larger batch (or "
        "virtual batch), merge devices with axis_name, evaluate with train=False, or choose "
        "single_value='running' to normalise by the running statistics, 'allow' or 'warn' to "
        "compute it all the same."
    )
    if mode.single_value == "error":
        raise ValueError(message)
    if mode.single_value == "warn":
        warn(message)
    running = mode.single_value == "running"
    return mode._replace(train=False, update_stats=False) if running else mode


def _warn_if_unseen(stats: BatchStats) -> None:
    # NumPy: under a trace, jax.numpy would make a tracer even of a count that is known.
    if any(isinstance(v, Tracer) for v in stats):
        return
    known: Any = map(np.asarray, stats)
    if np.any(never_updated(BatchStats(*known))):
        warn(
            "batch_stats.count is 0: these running statistics have never been updated, so x is "
            "normalised by mean 0 and variance 1. Keep the batch_stats that training returns; "
            "unseen='nan' makes the same mistake visible under jit, 'allow' silences this."
        )
