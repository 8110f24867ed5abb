"""Normalise data by its own statistics: the one derivative rule of every mean-variance norm."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._affine import (
    Affine,
    affine_tangent,
    affine_value,
    inverse_std,
    inverse_std_tangent,
)
from bnjax.core._rows import CACHED
from bnjax.core._rule import Rule
from bnjax.core._statistics import Statistics, statistics, statistics_tangent
from bnjax.core._xla import name_statistics, remember_inputs


class Correction(NamedTuple):
    """What batch renorm corrects towards, of the rank of ``x``; no gradient flows into it."""

    mean: jax.Array
    inv_std: jax.Array
    r_max: jax.Array
    d_max: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def standardize(
    x: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    correction: Correction | None,
    guess: jax.Array | None,
    rule: Rule,
) -> tuple[jax.Array, Statistics]:
    """Normalise ``x`` by its statistics; ``scale`` and ``bias`` have the rank of ``x``.

    Apart from masks, devices, corrections and rounding, value and tangent are these lines::

        mean, var = x.mean(axes), x.var(axes)
        r = 1 / sqrt(var + epsilon)
        gain = scale * r
        y = (x - mean) * gain + bias

        dmean, cov = dx.mean(axes), (dx * (x - mean)).mean(axes)
        dr = -(r**3) * cov
        dgain = dscale * r + scale * dr
        dy = gain * dx + (x - mean) * dgain + (dbias - gain * dmean)

    One function with one rule for the whole layer, not a composition of two, so that a
    half-precision gradient is rounded once. The tangent goes through two vectors, so that its
    transpose, the backward pass, needs two sums and one elementwise pass.
    """
    y, stats, *_ = _value(x, mask, scale, bias, correction, guess, rule)
    return y, stats


def _value(x, mask, scale, bias, correction, guess, rule: Rule):
    stats = name_statistics(statistics(x, mask, guess, rule))
    # Only a mask can leave a feature without data (and an empty batch has no output).
    inv_std = inverse_std(stats.var, rule.epsilon, None if mask is None else stats.count)
    corrected = _corrected(stats, correction, rule.epsilon)
    mean = (stats.mean, stats.mean_lo) if rule.about_mean else (None, None)
    by = Affine(*mean, inv_std, *corrected(scale, bias))
    y = affine_value(x, mask, by, rule).astype(rule.dtype)
    return y, stats, by, corrected


@standardize.defjvp
def _standardize_jvp(rule: Rule, primals, tangents):
    """The tangent of the statistics, fed to the tangent of the affine map."""

    def tangent(x, mask, stats, by, dx, dscale, dbias):
        # Here and not in each of the two, whose cotangents are to be added before they are rounded.
        dx = dx.astype(rule.wide)
        dstats = statistics_tangent(x, mask, stats, dx, rule, like=by.inv_std)
        dinv_std = inverse_std_tangent(by.inv_std, dstats.var)
        dby = Affine(dstats.mean, None, dinv_std, dscale, dbias)
        return affine_tangent(x, mask, by, dx, dby, rule).astype(rule.dtype), dstats

    x, mask, scale, bias, correction, guess = primals
    dx, _, dscale, dbias, *_ = tangents
    rule = rule._replace(short_rows=rule.short_rows and (scale is None or x.size <= CACHED))
    # In the open, so that the policy can keep the statistics and repeat the rest.
    y, stats, by, corrected = _value(x, mask, scale, bias, correction, guess, rule)
    # The correction is a constant, and linear in scale and bias.
    dscale, dbias = corrected(dscale, dbias)
    return (y, stats), remember_inputs(tangent)(x, mask, stats, by, dx, dscale, dbias)


def _corrected(stats: Statistics, correction: Correction | None, epsilon: float):
    """A function that turns ``scale`` and ``bias`` into those of batch renorm."""
    if correction is None:
        return lambda scale, bias: (scale, bias)
    std = jnp.sqrt(stats.var + epsilon)
    away = (stats.mean - correction.mean) + stats.mean_lo
    r = jnp.clip(std * correction.inv_std, 1 / correction.r_max, correction.r_max)
    d = _shorten(away * correction.inv_std.astype(away.dtype), correction.d_max)
    r, d = lax.stop_gradient((r.astype(d.dtype), d))
    return lambda scale, bias: (scale * r, scale * d + bias)


def _shorten(d, d_max):
    """``d``, real or complex, with a size of at most ``d_max`` and the direction it had."""
    if not jnp.iscomplexobj(d):
        return jnp.clip(d, -d_max, d_max)
    size = jnp.abs(d)
    shorter = jnp.where(size > d_max, d_max / jnp.where(size > d_max, size, 1), 1)
    return d * shorter.astype(d.dtype)
