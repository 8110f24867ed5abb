"""Short rows on GPU: statistics and output by one kernel, which reads ``x`` once.

XLA for GPU makes one kernel of sums along a row and of what is computed from them and the row entry
by entry, in the backward pass too, if it meets a certain form: the mean has a single use, which is
``x - mean``, and all else is made of that difference. So the mean is that of the whole row and not
of a sample, what it lacks is never added to it, and no reader has a shift of its own.

Where there is a scale, its gradient is a sum down the columns, for which the backward pass stores
``dy`` times the normalised row. While that stays in the cache it costs little. Of larger ``x`` only
a forward pass alone takes this form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bnjax.core._rule import Rule
from bnjax.core._sums import abs_sq, mean_of, mean_square_of
from bnjax.core._xla import by_platform, pin

LONGEST = 2**14  # elements; longer rows XLA does not take
CACHED = 2**22  # elements of x, 16 MB in float32 of a cache of 50


def in_one_kernel(x: jax.Array, mask: jax.Array | None, rule: Rule) -> bool:
    """Whether XLA for GPU takes each set of ``rule`` as a row."""
    known = all(isinstance(size, int) for size in x.shape)  # and not symbolic: jax.export
    return (
        (known and mask is None and not jnp.iscomplexobj(x))
        and (rule.axes == (x.ndim - 1,) and x.shape[-1] <= LONGEST)
        and not (rule.over.groups or rule.over.axis_name)
    )


def centre_of_rows(
    x: jax.Array, weight: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean in two parts, and the variance.

    Both parts are rounded to fewer bits. Of a constant row the deviations from the first are a few
    units in its last place; then the second is exactly what is left, and the output is ``bias``.
    """
    mean = pin(mean_of(x.astype(rule.wide), weight, rule.axes))
    d = x.astype(rule.wide) - mean
    mean_lo = pin(mean_of(d, weight, rule.axes), 2)
    square = mean_square_of(d, weight, rule.axes)
    return mean, mean_lo, jnp.maximum(square - abs_sq(mean_lo), 0)


def without(centred: jax.Array, mean_lo: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Deviations from the mean less its second part, and what is still to be subtracted.

    Elsewhere that is left to the vector which is added in the end. XLA for GPU contracts its
    product with the one before: where the two are equal, the rounding of one would be left.
    """
    return by_platform(centred, mean_lo, cpu=_later, gpu=_now, tpu=_later)


def _later(centred, mean_lo):
    return centred, mean_lo


def _now(centred, mean_lo):
    return centred - mean_lo, jnp.zeros_like(mean_lo)
