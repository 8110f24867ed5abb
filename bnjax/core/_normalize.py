"""Normalisation and the affine map after it: one fused expression, one derivative."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer

from bnjax.core._axes import (
    Axes,
    canonical_axes,
    check_inexact,
    compute_dtype,
    expand,
    real_dtype,
    zero_unless,
)
from bnjax.core._checkpoint import remember_inputs
from bnjax.core._checks import as_array
from bnjax.core._xla import holder, pin


def normalize(x, mean, var, *, epsilon: float = 1e-5, axis: Axes = -1) -> jax.Array:
    r"""Shift and scale ``x`` by given statistics.

    .. math::
        \hat x = \frac{x - \mu}{\sqrt{\mathrm{var} + \epsilon}}

    Computed in float32 at least and rounded once, to the dtype of ``x``. Differentiable in all
    three arrays; the backward pass keeps ``x`` in its own dtype and vectors only.

    Args:
      x: floating or complex, any shape.
      mean, var: one entry a feature (the shape of ``x`` on ``axis``), or scalars.
      epsilon: added to the variance, inside the square root; in units of ``x`` squared. With 0, a
        constant feature gives NaN.
      axis: the feature axis or axes of ``x``: -1 for NHWC and (N, F), 1 for NCHW.

    Returns:
      ``x_hat``, shape and dtype of ``x``.

    Raises:
      TypeError: ``x`` is not floating or complex.
      ValueError: ``mean`` or ``var`` does not fit the features of ``x``, ``axis`` is out of range
        or ``epsilon`` is negative.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> m = bnjax.moments(x, axes=0)
      >>> print(bnjax.normalize(x, m.mean, m.var()).round(3))
      [[-1. -1.]
       [ 1.  1.]]

    Source: Ioffe & Szegedy (2015), Algorithm 1, line 3. The same placement of epsilon as PyTorch
    and Flax; both round half-precision input more than once.
    """
    x, mean, var = as_array(x, "x"), as_array(mean, "mean"), as_array(var, "var")
    check_inexact(x)
    if jnp.iscomplexobj(mean):
        check_complex(x.dtype, "mean")
    if jnp.iscomplexobj(var):
        raise TypeError("var must be real, as the mean of |x - mean|**2 is, got complex numbers.")
    epsilon = check_epsilon(epsilon)
    kept = canonical_axes(axis, x.ndim, "axis")
    mean, var = expand(mean, x.shape, kept, "mean"), expand(var, x.shape, kept, "var")
    return _normalize(x, mean, var, epsilon)


@functools.partial(jax.jit, static_argnums=3)
def _normalize(x, mean, var, epsilon):
    dtype = compute_dtype(x.dtype)
    inv_std = inverse_std(var, epsilon, dtype=real_dtype(dtype))
    return affine(x, None, mean.astype(dtype), inv_std, None, None, x.dtype)


def scale_shift(x_hat, scale, bias, *, axis: Axes = -1) -> jax.Array:
    r"""The learned affine map of each feature, :math:`y = \gamma \hat x + \beta`.

    Args:
      x_hat: floating or complex, any shape.
      scale: γ, one entry a feature, a scalar, or None for 1.
      bias: β, likewise, or None for 0.
      axis: the feature axis or axes of ``x_hat``.

    Returns:
      ``y``, shape and dtype of ``x_hat``; computed in float32 at least.

    Raises:
      TypeError: ``x_hat`` is not floating or complex.
      ValueError: ``scale`` or ``bias`` does not fit the features of ``x_hat``.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> print(bnjax.scale_shift(jnp.ones((1, 2)), jnp.array([2.0, 3.0]), None))
      [[2. 3.]]

    Source: Ioffe & Szegedy (2015), Algorithm 1, line 4. PyTorch calls them ``weight`` and
    ``bias`` (``affine=True``); Flax ``scale`` and ``bias``, as here.
    """
    x_hat = as_array(x_hat, "x_hat")
    check_inexact(x_hat, "x_hat")
    kept = canonical_axes(axis, x_hat.ndim, "axis")
    dtype = compute_dtype(x_hat.dtype)
    scale, bias = expand_params(scale, bias, x_hat.shape, kept, dtype)
    y = x_hat.astype(dtype)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.astype(x_hat.dtype)


def check_epsilon(epsilon) -> float:
    """``epsilon`` as a Python float, or a clear error."""
    if isinstance(epsilon, Tracer):
        raise TypeError(
            "epsilon must be a number known at trace time, got a traced value. Make it a static "
            "argument of the function under jit."
        )
    try:
        value = float(epsilon)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf") or isinstance(epsilon, str):
        raise ValueError(
            f"epsilon must be a finite non-negative number, got {epsilon!r}. "
            "It is added to the variance; 1e-5 is usual."
        )
    return value


def as_params(scale, bias):
    """``scale`` and ``bias`` (or None) as arrays, or an error that names them."""
    scale = None if scale is None else as_array(scale, "scale")
    return scale, None if bias is None else as_array(bias, "bias")


def expand_params(scale, bias, shape, kept, dtype, names=("scale", "bias")):
    """``scale`` and ``bias`` (or None) ready to broadcast against an array of ``shape``."""

    def ready(v, name):
        if v is None:
            return None
        v = as_array(v, name)
        if jnp.iscomplexobj(v):
            check_complex(dtype, name)
        return expand(v, shape, kept, name).astype(dtype)

    return ready(scale, names[0]), ready(bias, names[1])


def check_complex(dtype, name: str) -> None:
    """Raise ``TypeError`` unless arithmetic in ``dtype`` keeps the imaginary part of ``name``."""
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is complex, but the result is of real dtype, which would lose its imaginary "
            f"part. Make x complex, or {name} real."
        )


def inverse_std(var, epsilon, count=None, dtype=jnp.float32):
    """``rsqrt(var + epsilon)`` in ``dtype`` at least; 0 for an empty set, so that y is bias."""
    inv_std = _rsqrt(var.astype(compute_dtype(var.dtype, dtype)) + epsilon)
    return inv_std if count is None else jnp.where(count > 0, inv_std, 0)


@jax.custom_jvp
def _rsqrt(v):
    return jax.lax.rsqrt(v)


_rsqrt.defjvps(lambda dv, inv_std, v: inverse_std_tangent(inv_std, dv))


def inverse_std_tangent(inv_std, dvar):
    r"""Tangent of :func:`inverse_std`, :math:`-\tfrac12 \sigma^{-3} \dot v`.

    Factor by factor: the cube of a deviation of 10¹³ is no float32 number, and these products are.
    """
    return -0.5 * inv_std * (inv_std * (inv_std * dvar))


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def affine(x, mask, mean, inv_std, scale, bias, dtype):
    """``(x - mean) * inv_std * scale + bias`` in the dtype of ``mean``, rounded once."""
    y = affine_of(centre(x, mean, mask), None, inv_std, scale, bias, live_entries(x, mask))
    return y.astype(dtype)


@affine.defjvp
def _affine_jvp(dtype, primals, tangents):
    def tangent(x, mask, mean, inv_std, scale, tangents):
        dx, _, dmean, dinv_std, dscale, dbias = tangents
        dx, live = dx.astype(mean.dtype), live_entries(x, mask)
        deviation = deviation_for_tangent(x, mean, None, mask)
        dy = affine_tangent(
            deviation, inv_std, scale, dx, dmean, dinv_std, dscale, dbias, live, holder(inv_std)
        )
        return dy.astype(dtype)

    *inputs, bias = primals
    return affine(*inputs, bias, dtype), remember_inputs(tangent)(*inputs, tangents)


def live_entries(x, mask):
    """Which entries the output depends on: all (None) but those masked and not finite."""
    return None if mask is None else mask | jnp.isfinite(x)


def centre(x, mean, mask):
    """``x - mean`` in the dtype of ``mean``; the constant 0 where an entry is not live."""
    return zero_unless(live_entries(x, mask), x.astype(mean.dtype) - mean)


def deviation_for_tangent(x, mean, mean_lo, mask):
    """``x - mean - mean_lo`` as ``(x - shift, rest)``: a function of which shift to take.

    Taken from the mean itself, XLA would find ``x - mean`` in the forward and in the backward pass
    and store it for both; a subtraction from another number is done on the fly in each. So every
    sum over ``x - shift`` takes a shift of its own.
    """

    def deviation(number: int = 0):
        shift = pin(mean, 2 + number)
        rest = mean - shift if mean_lo is None else (mean - shift) + mean_lo
        return centre(x, shift, mask), rest

    return deviation


def affine_of(centred, mean_lo, inv_std, scale, bias, live):
    """``(centred - mean_lo) * inv_std * scale + bias``, the shifts folded into one vector.

    An entry that is not ``live`` is ``bias`` to the last bit, whatever ``mean_lo`` is. Where
    ``scale`` varies along axes that ``inv_std`` does not (layer norm), it is a factor of its own.
    """
    hold = holder(inv_std)
    aligned = of_same_features(inv_std, scale)
    gain = hold(gain_of(inv_std, scale if aligned else None).astype(centred.dtype))
    shift = None if mean_lo is None else -mean_lo * gain
    if live is None and aligned and of_same_features(inv_std, bias):
        parts = [v for v in (shift, bias) if v is not None]
        return centred * gain + hold(sum(parts[1:], parts[0])) if parts else centred * gain
    y = zero_unless(live, centred * gain if shift is None else centred * gain + hold(shift))
    y = y if aligned else y * scale
    return y if bias is None else y + bias


def affine_tangent(deviation, inv_std, scale, dx, dmean, dinv_std, dscale, dbias, live, hold):
    r"""Tangent of :func:`affine_of`, through two vectors and no reduction of its own.

    .. math::
        \dot y = g\,\dot x + (x - \mu)\,\dot g + u, \qquad
        u = \dot\beta - g\,\dot\mu - \mu_{lo}\,\dot g, \qquad g = \gamma / \sigma

    An entry that is not ``live`` is the constant ``bias``: its tangent is that of ``bias`` alone.
    The transpose needs :math:`\sum \bar y` and :math:`\sum \bar y (x - \mu)`, which one fused
    read of ``x`` and the cotangent gives, and one elementwise pass.
    """
    if not of_same_features(inv_std, scale):
        return _affine_tangent_of_two(
            deviation, inv_std, scale, dx, dmean, dinv_std, dscale, dbias, live
        )
    centred, mean_lo = deviation()
    dtype = centred.dtype
    gain = hold(gain_of(inv_std, scale).astype(dtype))
    dgain = gain_of(dinv_std, scale).astype(dtype)
    if scale is not None:
        dgain = dgain + inv_std.astype(dtype) * dscale
    u = -gain * dmean - mean_lo * dgain
    if live is None and of_same_features(inv_std, dbias):
        return gain * dx + centred * dgain + (u if dbias is None else u + dbias)
    dy = zero_unless(live, gain * dx + centred * dgain + u)
    return dy if dbias is None else dy + dbias


def _affine_tangent_of_two(deviation, inv_std, scale, dx, dmean, dinv_std, dscale, dbias, live):
    """The same where ``scale`` varies along other axes than ``inv_std``: a product of two.

    The transpose has sums along the axes of both. Each is given vectors of its own, so that no
    product of the size of ``x`` is shared, which XLA on CPU would store.
    """
    (centred, mean_lo), (again, again_lo) = deviation(), deviation(1)
    dtype = centred.dtype
    inv_std, dinv_std = inv_std.astype(dtype), dinv_std.astype(dtype)
    scales = [holder(k * jnp.real(scale))(scale) for k in (1, 2)]
    other = holder(2 * jnp.real(inv_std))(inv_std)
    u = -inv_std * dmean - mean_lo * dinv_std
    dy = inv_std * dx * scale + centred * dinv_std * scales[0] + u * scales[1]
    dy = zero_unless(live, dy + (again - again_lo) * other * dscale)
    return dy if dbias is None else dy + dbias


def of_same_features(inv_std, v) -> bool:
    """Whether ``v`` (or None) varies along no other axes than ``inv_std``."""
    if v is None:
        return True
    return all(b == 1 or a == b for a, b in zip(inv_std.shape, v.shape, strict=True))


def gain_of(inv_std, scale):
    """``inv_std * scale``: what a deviation from the mean is multiplied by."""
    return inv_std if scale is None else inv_std.astype(scale.dtype) * scale
