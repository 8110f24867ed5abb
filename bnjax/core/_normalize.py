"""Batch norm taken apart: normalise by given statistics, then scale and shift."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnjax.core._affine import Affine, affine, inverse_std
from bnjax.core._axes import Axes, other_axes, real_dtype
from bnjax.core._checks import as_array, as_features, as_inexact, canonical_axes
from bnjax.core._rule import Rule, inputs_for, rule_for


def normalize(
    x: ArrayLike, mean: ArrayLike, var: ArrayLike, *, epsilon: float = 1e-5, axis: Axes = -1
) -> jax.Array:
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
    x = as_inexact(x, "x")
    kept = canonical_axes(axis, x.ndim, "axis")
    rule = rule_for(x, other_axes(kept, x.ndim), kept, epsilon, None)
    mean = as_features(mean, "mean", x.shape, kept, rule.wide)
    var = as_array(var, "var")
    if jnp.iscomplexobj(var):
        raise TypeError("var must be real, as the mean of |x - mean|**2 is, got complex numbers.")
    var = as_features(var, "var", x.shape, kept, jnp.float32)
    return _normalize(x, mean, var, rule)


@functools.partial(jax.jit, static_argnames="rule")
def _normalize(x: jax.Array, mean: jax.Array, var: jax.Array, rule: Rule) -> jax.Array:
    mean, var = rule.expand(mean, x.shape).astype(rule.wide), rule.expand(var, x.shape)
    inv_std = inverse_std(var, rule.epsilon, dtype=real_dtype(rule.wide))
    return affine(x, None, Affine(mean, None, inv_std, None, None), rule)


def scale_shift(
    x_hat: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
) -> jax.Array:
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
    x_hat = as_inexact(x_hat, "x_hat")
    rule = rule_for(x_hat, (), canonical_axes(axis, x_hat.ndim, "axis"), 0.0, None)
    scale, bias = inputs_for(rule, x_hat, None, scale, bias).params(rule)
    y = x_hat.astype(rule.wide)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.astype(rule.dtype)
