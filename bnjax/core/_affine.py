"""The map of every norm, from ``x`` and five vectors to ``y``, and its tangent."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bnjax.core._axes import compute_dtype, zero_unless
from bnjax.core._rows import without
from bnjax.core._rule import Rule
from bnjax.core._shift import deviations
from bnjax.core._xla import once, remember_inputs


class Affine(NamedTuple):
    r"""The vectors of :math:`y = (x - \mu - \mu_{lo})\, \sigma^{-1}\, \gamma + \beta`.

    All of the rank of ``x``; None stands for 0, or 1 of a scale. A tangent has the same fields, and
    none in ``mean_lo``: the sum of both means is what varies.
    """

    mean: jax.Array | None
    mean_lo: jax.Array | None
    inv_std: jax.Array
    scale: jax.Array | None
    bias: jax.Array | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def affine(x: jax.Array, mask: jax.Array | None, by: Affine, rule: Rule) -> jax.Array:
    """``x`` by given vectors, rounded once."""
    return affine_value(x, mask, by, rule).astype(rule.dtype)


@affine.defjvp
def _affine_jvp(rule: Rule, primals, tangents):
    def tangent(x, mask, by, dx, dby):
        return affine_tangent(x, mask, by, dx.astype(rule.wide), dby, rule).astype(rule.dtype)

    (x, mask, by), (dx, _, dby) = primals, tangents
    return affine(x, mask, by, rule), remember_inputs(tangent)(x, mask, by, dx, dby)


def affine_value(x: jax.Array, mask: jax.Array | None, by: Affine, rule: Rule) -> jax.Array:
    """The map itself: one product and one sum an entry, with the shifts folded into one vector.

    An entry that is not live is ``bias`` to the last bit, whatever ``mean_lo`` is. Where ``scale``
    varies along axes that ``inv_std`` does not (layer norm), it is a factor of its own.
    """
    live = _live(x, mask)
    x, mean_lo = x.astype(rule.wide), by.mean_lo
    centred = zero_unless(live, x if by.mean is None else x - by.mean)
    if rule.short_rows and mean_lo is not None:
        centred, mean_lo = without(centred, mean_lo)
    scale_apart = not _of_same_features(by.inv_std, by.scale)
    gain = once(_gain(by.inv_std, None if scale_apart else by.scale, centred), by.inv_std)
    shift = None if mean_lo is None else -mean_lo * gain
    if live is None and not scale_apart and _of_same_features(by.inv_std, by.bias):
        shift = _sum(shift, by.bias)
        return centred * gain if shift is None else centred * gain + once(shift, by.inv_std)
    y = centred * gain if shift is None else centred * gain + once(shift, by.inv_std)
    y = zero_unless(live, y)
    y = y * by.scale if by.scale is not None and scale_apart else y
    return _sum(y, by.bias)


def affine_tangent(
    x: jax.Array, mask: jax.Array | None, by: Affine, dx: jax.Array, dby: Any, rule: Rule
) -> jax.Array:
    r"""Tangent of :func:`affine_value`, through two vectors and no reduction of its own.

    .. math::
        \dot y = g\,\dot x + (x - \mu)\,\dot g + u, \qquad
        u = \dot\beta - g\,\dot\mu - \mu_{lo}\,\dot g, \qquad g = \gamma / \sigma

    ``dx`` is in the dtype of the arithmetic. An entry that is not live is the constant ``bias``:
    its tangent is that of ``bias`` alone.
    The transpose needs :math:`\sum \bar y` and :math:`\sum \bar y (x - \mu)`, which one fused
    read of ``x`` and the cotangent gives, and one elementwise pass.
    """
    live = _live(x, mask)
    about_mean = functools.partial(_centred, x, live, by, rule)
    if by.scale is not None and not _of_same_features(by.inv_std, by.scale):
        return _tangent_with_scale_apart(about_mean, live, by, by.scale, dx, dby)
    centred, mean_lo = about_mean(2)
    gain = once(_gain(by.inv_std, by.scale, centred), by.inv_std)
    dgain = _gain(dby.inv_std, by.scale, centred)
    if by.scale is not None:
        dgain = dgain + by.inv_std.astype(centred.dtype) * dby.scale
    u = None if by.mean is None else -gain * dby.mean - mean_lo * dgain
    if live is None and _of_same_features(by.inv_std, dby.bias):
        return _sum(gain * dx + centred * dgain, _sum(u, dby.bias))
    return _sum(zero_unless(live, _sum(gain * dx + centred * dgain, u)), dby.bias)


def _tangent_with_scale_apart(about_mean, live, by: Affine, scale, dx, dby):
    """The same where ``scale`` varies along other axes than ``inv_std``: a product of two.

    The transpose has sums along the axes of both. Each is given vectors of its own, so that no
    product of the size of ``x`` is shared, which XLA on CPU would store.
    """
    (centred, mean_lo), (again, again_lo) = about_mean(2), about_mean(3)
    inv_std, dinv_std = (v.astype(centred.dtype) for v in (by.inv_std, dby.inv_std))
    scales = [once(scale, k * jnp.real(scale)) for k in (1, 2)]
    other = once(inv_std, 2 * jnp.real(inv_std))
    u = None if by.mean is None else -inv_std * dby.mean - mean_lo * dinv_std
    dy = inv_std * dx * scale + centred * dinv_std * scales[0]
    if u is not None:
        dy, again = dy + u * scales[1], again - again_lo
    return _sum(zero_unless(live, dy + again * other * dby.scale), dby.bias)


def inverse_std(
    var: jax.Array,
    epsilon: float,
    count: jax.Array | None = None,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """``rsqrt(var + epsilon)`` in ``dtype`` at least; 0 for an empty set, so that y is bias."""
    inv_std = _rsqrt(var.astype(compute_dtype(var.dtype, dtype)) + epsilon)
    return inv_std if count is None else jnp.where(count > 0, inv_std, 0)


@jax.custom_jvp
def _rsqrt(v):
    return jax.lax.rsqrt(v)


_rsqrt.defjvps(lambda dv, inv_std, v: inverse_std_tangent(inv_std, dv))


def inverse_std_tangent(inv_std: jax.Array, dvar: jax.Array) -> jax.Array:
    r"""Tangent of :func:`inverse_std`, :math:`-\tfrac12 \sigma^{-3} \dot v`.

    Factor by factor: the cube of a deviation of 10¹³ is no float32 number, and these products are.
    """
    return -0.5 * inv_std * (inv_std * (inv_std * dvar))


def _live(x, mask):
    """Which entries the output depends on: all (None) but those masked and not finite."""
    return None if mask is None else mask | jnp.isfinite(x)


def _centred(x, live, by: Affine, rule: Rule, reader: int):
    """``x - mean`` about a shift of the reader's own, and what is still to be subtracted."""
    if by.mean is None:
        return zero_unless(live, x.astype(rule.wide)), None
    centred, rest = deviations(x, by.mean, live, reader, rule.short_rows)
    return centred, rest if by.mean_lo is None else rest + by.mean_lo


def _of_same_features(inv_std, v) -> bool:
    """Whether ``v`` (or None) varies along no other axes than ``inv_std``."""
    if v is None:
        return True
    return all(b == 1 or a == b for a, b in zip(inv_std.shape, v.shape, strict=True))


def _gain(inv_std, scale, like):
    """``inv_std * scale``, what a deviation from the mean is multiplied by."""
    gain = inv_std if scale is None else inv_std.astype(scale.dtype) * scale
    return gain.astype(like.dtype)


def _sum(a: Any, b: Any) -> Any:
    """``a + b``, where either may be None."""
    return b if a is None else a if b is None else a + b
