"""Mean and variance about the mean: two sums about a shift, from where each platform has it soon.

Any shift will do that lies within a few standard deviations of the mean: the variance loses the
bits that its distance takes, and the mean none. What it costs in time is another matter:

* On CPU a sample of ``x``, an eighth of a pass; each sum about a shift of its own.
* On GPU the same, with sums that keep its many threads busy; but short rows as in `_rows`. (To
  branch as on TPU, the host would wait for the device.)
* On TPU the convolution before sums what it writes, if the shift is known by then. So a guess, such
  as the running mean; where that is too far off, a branch that is rarely taken sums once more.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from bnjax.core._axes import zero_unless
from bnjax.core._rows import centre_of_rows
from bnjax.core._rule import Rule
from bnjax.core._shift import deviations, sample, too_far
from bnjax.core._sums import (
    abs_sq,
    double_word,
    mean_square_of,
    settled_mean_of,
    sum_in_steps,
    sum_of,
)
from bnjax.core._xla import by_platform, once, pin


class Centred(NamedTuple):
    """The mean, as the unevaluated sum of two numbers, and the variance; of the rank of ``x``."""

    mean: jax.Array
    mean_lo: jax.Array
    var: jax.Array


def centred(
    x: jax.Array,
    mask: jax.Array | None,
    guess: jax.Array | None,
    weight: jax.Array,
    rule: Rule,
) -> Centred:
    """Mean and variance of ``x``; ``weight`` is that of each of its elements in the mean.

    ``guess`` may be a number near the mean; no derivative of it is wanted.
    """
    by_sample = functools.partial(_by_sample, rule=rule)
    by_guess = functools.partial(_by_guess, rule=rule)
    by_rows = functools.partial(_by_rows, rule=rule)
    return by_platform(
        *(x, mask, guess, weight),
        cpu=functools.partial(by_sample, readers=(0, 2)),
        gpu=by_rows if rule.short_rows else functools.partial(by_sample, sum_of=sum_in_steps),
        tpu=by_sample if guess is None else by_guess,
    )


def _by_sample(x, mask, guess, weight, rule: Rule, sum_of=sum_of, readers=(0, 0)) -> Centred:
    shift = pin(settled_mean_of(*sample(x, mask, weight, rule), rule.axes, sum_of))
    return _about(shift, x, mask, weight, rule, sum_of, readers)


def _by_rows(x, mask, guess, weight, rule: Rule) -> Centred:
    return Centred(*centre_of_rows(x, weight, rule))


def _by_guess(x, mask, guess, weight, rule: Rule) -> Centred:
    found = _about(guess, x, mask, weight, rule)
    s = (found.mean - guess) + found.mean_lo
    return _repaired(x, mask, weight, too_far(s, found.var, rule.epsilon), found, rule)


def _repaired(x, mask, weight, far, found: Centred, rule: Rule) -> Centred:
    """``found``, but from two passes more where ``far``; these are made where anything is.

    Under ``vmap`` lanes are so many features more, so that there is one branch for all.
    """

    def again(x, mask, weight, far, found):
        mean = settled_mean_of(zero_unless(mask, x.astype(rule.wide)), weight, rule.axes)
        better = _about(pin(mean), x, mask, weight, rule)
        return jax.tree.map(lambda new, old: jnp.where(far, new, old), better, found)

    def either(*args):
        return lax.cond(jnp.any(args[3]), again, lambda *args: args[-1], *args)

    def lanes(size, batched, *args):
        args = jax.tree.map(lambda many, v: v if many else v[None], tuple(batched), args)
        x, mask, weight, far, found = args
        inner = rule._replace(axes=tuple(a + 1 for a in rule.axes))
        y = _repaired(x, mask, weight, far, found, inner)
        return y, jax.tree.map(lambda _: True, y)

    guarded = custom_vmap(either)
    guarded.def_vmap(lanes)
    return guarded(x, mask, weight, far, found)


def _about(shift, x, mask, weight, rule: Rule, sum_of=sum_of, readers=(0, 0)) -> Centred:
    """By a sum and a sum of squares about ``shift``."""
    d, _ = deviations(x, shift, mask, readers[0])
    s = settled_mean_of(d, weight, rule.axes, sum_of)
    d, rest = deviations(x, shift, mask, readers[1])
    q = mean_square_of(d, weight, rule.axes, sum_of)
    var = jnp.maximum(q - abs_sq(s + rest), 0)
    mean, mean_lo = double_word(shift, s, var)
    return Centred(once(mean, q), mean_lo, var)
