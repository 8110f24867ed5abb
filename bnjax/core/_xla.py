"""What XLA must be told, so that it neither recomputes nor contracts nor keeps what it should not.

Each function is the identity in arithmetic, or nearly; each changes the program that is made of it.
Read the rest of the core as if they were not there. What they buy stands with each: times are of
float32, forward and backward, over the six shapes of ``experiments benchmark layer`` on two CPU
cores, geometric means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

STATISTICS = "bnjax.statistics"

# Tests see the programs for "cpu", "gpu" and "tpu" on whatever they run: `with as_on("tpu"):`.
# An exporter to another format than XLA's sees "plain" arithmetic.
as_on = jax.make_user_context(None)


def by_platform(*args: Any, cpu: Callable, gpu: Callable, tpu: Callable) -> Any:
    """What one of three functions makes of ``args``, pytrees of arrays; equal up to rounding.

    Chosen where the program is lowered: it may be traced here and run elsewhere.
    """
    if as_on.value is not None:
        return {"cpu": cpu, "gpu": gpu, "tpu": tpu, "plain": gpu}[as_on.value](*args)
    return lax.platform_dependent(*args, cpu=cpu, tpu=tpu, default=gpu)


def pin(v: jax.Array, drop: int = 1) -> jax.Array:
    """``v`` rounded to ``drop`` bits less than its dtype holds: the same number wherever used.

    A compiler may recompute ``total * weight`` inside each kernel that reads it and contract
    it with the next subtraction into a fused multiply-add, which skips the rounding of the product:
    two kernels would then subtract different means. Rounding to fewer bits forbids that, if the
    total is :func:`settled`. It is free: any number near the mean will do as a shift. Without it
    batch norm takes 1.18 times as long (1.16 with one shift for all readers, see ``deviations``).
    """
    if jnp.iscomplexobj(v):
        return lax.complex(pin(lax.real(v), drop), pin(lax.imag(v), drop))
    return coarse(v, jnp.finfo(v.dtype).nmant - drop)


def coarse(v: jax.Array, mantissa_bits: int) -> jax.Array:
    """``v`` rounded to so many bits, where any number near it will do."""
    if as_on.value == "plain":
        return v
    return lax.reduce_precision(v, jnp.finfo(v.dtype).nexp, mantissa_bits)


def settled(total: jax.Array) -> jax.Array:
    """The sum ``total``, taken once and not again by each kernel that reads it, in another order.

    XLA for GPU repeats short sums in their readers. Two that differ in rounding may pin to
    different numbers; then what one kernel subtracts is not what the other adds again, and the
    output is off by the last place of the mean. Dropped on CPU, where sums are not repeated.
    """
    return total if as_on.value == "plain" else lax.optimization_barrier(total)


def once(v: jax.Array, like: jax.Array) -> jax.Array:
    """The vector ``v``, computed once and not again for every element of ``x``.

    On CPU, XLA fuses cheap arithmetic on vectors into the loop over ``x`` that reads them, and
    drops optimisation barriers; a division is the one thing it will not repeat. So divide by
    one, in a form it cannot see through: made of ``like``, a real array with an entry a feature
    that is NaN only where all is lost. Arrays of another shape, or complex, pass through. Linear
    in ``v``, so that its transpose does the same for the cotangent. Without it batch norm takes
    1.18 times as long, layer norm 1.25.
    """
    if (v.shape, v.dtype) != (like.shape, like.dtype):
        return v
    return by_platform(v, like, cpu=_divided_by_one, gpu=_as_it_is, tpu=_as_it_is)


def _divided_by_one(v: jax.Array, like: jax.Array) -> jax.Array:
    return v / (1 + 0 * lax.min(lax.stop_gradient(like), jnp.ones_like(like)))


def _as_it_is(v: jax.Array, like: jax.Array) -> jax.Array:
    return v


def widened(x: jax.Array, v: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """``x`` in the wider ``dtype``, converted for the one reader alone that uses the vector ``v``.

    On CPU, XLA stores what two sums convert as a float32 array, which both then read; a conversion
    of its own is fused into each sum, of bfloat16 if not of float16. Behind a barrier together with
    a vector of its own it is not found to be the same. Without it batch norm of bfloat16 takes 1.28
    times as long.
    """
    if x.dtype == jnp.bfloat16:
        x, v = by_platform(x, v, cpu=_behind_a_barrier, gpu=_as_they_are, tpu=_as_they_are)
    return x.astype(dtype), v


def _behind_a_barrier(x: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    return lax.optimization_barrier((x, v))


def _as_they_are(x: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, v


def remember_inputs(tangent: Callable[..., Any]) -> Callable[..., Any]:
    """Have the backward pass keep the inputs of ``tangent`` and recompute what it derives.

    Without this, reverse mode would store ``x - mean``: a second array of the size of ``x``, in
    float32 even when ``x`` is bfloat16. Recomputing it costs no pass over memory, since the
    subtraction is fused with its reader; so there is nothing to protect from common
    subexpression elimination either.
    """
    return jax.checkpoint(tangent, prevent_cse=False)


def name_statistics(stats: Any) -> Any:
    """``stats``, as :func:`bnjax.save_norm_statistics` knows them."""
    return stats if as_on.value == "plain" else checkpoint_name(stats, STATISTICS)
