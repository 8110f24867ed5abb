"""The shift about which sums are taken, so that a large mean costs no digits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import zero_unless
from bnjax.core._rule import Rule
from bnjax.core._sharding import spec_of
from bnjax.core._sums import abs_sq, count_and_weight
from bnjax.core._xla import by_platform, pin, widened

SMALL = 2**16  # elements, below which a sample saves no run time but still costs compile time
PARTS = 8  # of the data, of which one is the sample; and how far a guess may be, see below


def deviations(
    x: jax.Array,
    near: jax.Array,
    counts: jax.Array | None,
    reader: int,
    short_rows: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """``x - near``: deviations from a shift close to ``near``, and the vector still to subtract.

    Each ``reader`` gets a shift of its own, ``near`` rounded to so many bits less. Were two sums,
    or the forward and the backward pass, about the same one, XLA would find the same ``x - shift``
    in both and store it for them; a difference from another number is computed on the fly in each.
    Of ``short_rows`` all readers on GPU share one, see `_rows`. Where ``counts`` is False the
    deviation is 0.
    """
    own = functools.partial(_own_shift, reader=reader)
    if short_rows:
        shift, rest = by_platform(near, cpu=own, gpu=_shared_shift, tpu=own)
    else:
        shift, rest = own(near)
    x, shift = widened(x, shift, near.dtype)
    return zero_unless(counts, x - shift), rest


def _own_shift(near, reader):
    shift = pin(near, reader) if reader else near
    return shift, near - shift


def _shared_shift(near):
    return near, jnp.zeros_like(near)


def sample(
    x: jax.Array, mask: jax.Array | None, weight: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array]:
    r"""What of ``x`` to take a shift from, every eighth part; and the weight of each entry.

    By the Cauchy-Schwarz inequality the mean of a fraction ``f`` of the data lies within
    ``sqrt((1 - f) / f)`` standard deviations of the mean of all, whatever the data: for
    ``f = 1/8`` the sum of squares about it is at most eight times that about the mean. That costs
    three of float32's 24 bits at the very worst, and saves seven eighths of a pass. A mask may
    hide any part of the data, so then all of it is averaged; as is an array too small to gain.
    """
    sampled = None if mask is not None else _sampled_axis(x, rule.axes)
    if sampled is None:
        x, weight = widened(x, weight, rule.wide)
        return zero_unless(mask, x), weight
    # A stride along the last axis would touch all memory, a run of it a part.
    last = sampled == x.ndim - 1
    end, stride = (x.shape[sampled] // PARTS, 1) if last else (None, PARTS)
    part = lax.slice_in_dim(x, 0, end, stride=stride, axis=sampled).astype(rule.wide)
    return part, count_and_weight(part, None, rule.axes, weight.dtype)[1]


def too_far(s: jax.Array, var: jax.Array, epsilon: float) -> jax.Array:
    """Whether a shift, ``s`` away from the mean, costs more bits than a sample would at the worst.

    That is, of ``var + epsilon``. Of ``var`` alone, one dead feature whose running mean lags
    would have every step say yes. What is not a number is too far.
    """
    return ~(abs_sq(s) <= (PARTS - 1) * (var + epsilon))


def _sampled_axis(x: jax.Array, axes: tuple[int, ...]) -> int | None:
    """The axis to take a part of, if there is one that is whole on each device."""
    # A symbolic size (jax.export) is no int and compares with none.
    known = all(isinstance(size, int) for size in x.shape)
    if not known or x.size < SMALL:
        return None
    spec = spec_of(x)
    # Under jit, axis 0 may be spread over devices without this being known here.
    whole = [a for a in axes if spec[a] is None and (a > 0 or jax.device_count() == 1)]
    return next((a for a in whole if x.shape[a] >= PARTS), None)
