"""What XLA must be told, so that it neither recomputes nor contracts what it should not.

Neither function changes a value that matters; each changes the program made of it. What they buy
is measured by ``python -m experiments benchmark layer``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def pin(v: jax.Array, drop: int = 1) -> jax.Array:
    """``v`` rounded to ``drop`` bits less than its dtype holds: the same number wherever used.

    A compiler may recompute ``total * weight`` inside each kernel that reads it and contract
    it with the next subtraction into a fused multiply-add, which skips the rounding of the product:
    two kernels would then subtract different means. Rounding to fewer bits forbids that. It is
    free: any number near the mean will do as a shift.
    """
    if jnp.iscomplexobj(v):
        return lax.complex(pin(lax.real(v), drop), pin(lax.imag(v), drop))
    info = jnp.finfo(v.dtype)
    return lax.reduce_precision(v, exponent_bits=info.nexp, mantissa_bits=info.nmant - drop)


def holder(like: jax.Array):
    """A function that has a vector computed once and not again for every element of ``x``.

    On CPU, XLA fuses cheap arithmetic on vectors into the loop over ``x`` that reads them, and
    drops optimisation barriers; a division is the one thing it will not repeat. So divide by
    one, in a form it cannot see through: made of ``like``, a real array with an entry a feature
    that is NaN only where all is lost. Arrays of another shape, or complex, pass through. What is
    returned is linear, so that its transpose does the same for the cotangent.
    """
    if jax.default_backend() != "cpu":
        return lambda v: v
    one = 1 + 0 * lax.min(lax.stop_gradient(like), jnp.ones_like(like))

    def hold(v: jax.Array) -> jax.Array:
        return v / one if (v.shape, v.dtype) == (one.shape, one.dtype) else v

    return hold
