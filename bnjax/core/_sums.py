"""Sums, and the means made of them: weights, rounding, magnitude."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.core._axes import other_axes, size_of
from bnjax.core._sharding import spec_of
from bnjax.core._xla import pin, settled

SumOf = Callable[[jax.Array, tuple[int, ...]], jax.Array]
ROWS = 2**13  # from which on XLA for GPU sums columns in two steps by itself
RUNS = 2**5  # enough for its threads


def count_and_weight(
    x: jax.Array, mask: jax.Array | None, axes: tuple[int, ...], dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Elements of ``x`` that count, a feature, and the weight of each in the mean.

    Both are of ``dtype``. The count is a scalar unless the mask tells features apart; the weight
    has the rank of ``x``.
    """
    count = _count(x, mask, axes, dtype)
    size = size_of(x.shape, axes)
    if mask is None and isinstance(size, int):  # and not symbolic, as under jax.export
        weight = jnp.asarray(1 / max(size, 1), dtype)
    else:
        weight = reciprocal(count)
    return count, weight if weight.ndim == x.ndim else weight.reshape((1,) * x.ndim)


def _count(x, mask, axes, dtype):
    if mask is None:
        return jnp.asarray(size_of(x.shape, axes), dtype)
    repeats = size_of(x.shape, tuple(a for a in axes if mask.shape[a] == 1))
    # Integers: a float32 running sum of ones stops growing at 2**24.
    hits = jnp.sum(mask, axes, dtype=jnp.int32, keepdims=True)
    count = hits.astype(dtype) * repeats
    if all(mask.shape[a] == 1 for a in other_axes(axes, x.ndim)):
        count = count.reshape(())
    return count


def sum_of(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sum, of the rank of ``x``."""
    return jnp.sum(x, axes, keepdims=True)


def sum_in_steps(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The same in two steps, where XLA for GPU would take one that few threads work at.

    A sum down the columns of fewer than 8192 rows has a thread for every few columns, each of
    which walks down them alone; XLA then thinks it faster to store ``x - shift`` first. So first
    runs of some rows are summed, of which there are enough to keep the threads busy.
    """
    size = size_of(x.shape, axes)
    # A symbolic size (jax.export) is no int. A row is summed by many threads as it is.
    if not isinstance(size, int) or not RUNS < size < ROWS or x.ndim - 1 in axes:
        return sum_of(x, axes)
    if len(axes) == 1:
        return _sum_of_cut(x, axes[0])
    # All axes but the first few make a run, or the last alone.
    first = next((i for i in range(1, len(axes)) if size_of(x.shape, axes[:i]) >= RUNS), -1)
    # Settled, or XLA makes one sum of the two.
    return sum_of(settled(sum_of(x, axes[first:])), axes[:first])


def _sum_of_cut(x: jax.Array, axis: int) -> jax.Array:
    """A single axis, cut into runs, unless these would lie on several devices."""
    rows = x.shape[axis]
    runs = max(n for n in range(1, 2 * RUNS + 1) if rows % n == 0)
    if runs == 1 or spec_of(x)[axis] is not None:
        return sum_of(x, (axis,))
    cut = x.reshape(*x.shape[:axis], runs, rows // runs, *x.shape[axis + 1 :])
    return sum_of(settled(jnp.sum(cut, axis + 1)), (axis,))


def mean_of(v: jax.Array, weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean."""
    return times(sum_of(v, axes), weight)


def settled_mean_of(
    v: jax.Array, weight: jax.Array, axes: tuple[int, ...], sum_of: SumOf = sum_of
) -> jax.Array:
    """The mean, to be subtracted here and added there."""
    return times(settled(sum_of(v, axes)), weight)


def mean_square_of(
    d: jax.Array, weight: jax.Array, axes: tuple[int, ...], sum_of: SumOf = sum_of
) -> jax.Array:
    """The mean of ``|d|**2``, each element divided by about the root of their number first.

    The sum of n squares would overflow at a root of n earlier than their mean. By a power of two,
    so that no digit changes.
    """
    size = size_of(d.shape, axes)
    exponent = size.bit_length() // 2 if isinstance(size, int) else 0  # symbolic: jax.export
    if exponent == 0:
        return times(sum_of(abs_sq(d), axes), weight)
    return times(sum_of(abs_sq(d * 2.0**-exponent), axes), weight * 4.0**exponent)


def times(v, weight):
    """``v * weight``, whatever the dtypes: a float, or a real array beside complex ``v``."""
    return v * (weight if isinstance(weight, float) else weight.astype(v.dtype))


def double_word(a: jax.Array, b: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean ``a + b`` as a rounded sum and its rounding error; ``b`` is a computed mean.

    Knuth's sum of two numbers, whichever is larger, with ``b`` pinned and what that takes from it
    added to the error. Where ``var``, that of the same data, is no more than the rounding of its
    own sums, the data are constant, and an error of a few units in the last place of ``b`` is
    noise: dropped, it leaves the mean exact, hence an output that is ``bias``.
    """
    high = pin(b)
    mean = a + high
    back = mean - a
    error = (a - (mean - back)) + (high - back) + (b - high)
    eps = jnp.finfo(b.dtype).eps
    noise = (jnp.abs(error) <= 8 * eps * jnp.abs(b)) & (var <= 64 * eps * abs_sq(b))
    return mean, lax.select(noise, jnp.zeros_like(error), error)


def abs_sq(x: jax.Array) -> jax.Array:
    """``|x|**2``, real."""
    return inner(x, x)


def inner(a, b):
    """Real part of ``conj(a) * b``: the real inner product of complex numbers."""
    if jnp.iscomplexobj(a):
        return lax.real(a) * lax.real(b) + lax.imag(a) * lax.imag(b)
    return a * b


def real_of(x):
    """The real part, of real numbers too."""
    return lax.real(x) if jnp.iscomplexobj(x) else x


def reciprocal(count):
    """``1 / count``, and 0 for an empty set so that its mean and variance are 0, not NaN."""
    return jnp.where(count > 0, 1 / jnp.where(count > 0, count, 1), 0)
