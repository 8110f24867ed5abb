"""Normalise weights instead of activations: weight norm and weight standardisation."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bnjax.core._axes import Axes, other_axes
from bnjax.core._checks import as_inexact, canonical_axes
from bnjax.core._feature_norms import by_own_statistics
from bnjax.core._rule import Inputs, Rule, inputs_for, rule_for
from bnjax.core._sums import abs_sq
from bnjax.core._xla import coarse


def weight_norm(
    w: ArrayLike, scale: ArrayLike | None = None, *, axis: Axes | None = -1, epsilon: float = 1e-12
) -> jax.Array:
    r"""Weights whose length and direction are separate parameters.

    .. math::
        \hat w = g\, \frac{w}{\sqrt{\lVert w \rVert^2 + \epsilon}}

    with the norm over all axes but ``axis``. Zero weights give zero, with finite gradients. Right
    for weights of any magnitude.

    Args:
      w: weights, floating or complex, for example ``(in, out)`` or ``(H, W, in, out)``.
      scale: g, the lengths: the shape of ``w`` on ``axis``, a scalar, or None for 1.
      axis: the axes that are kept, each with a norm of its own; None for one norm of all.
      epsilon: added to the squared norm.

    Returns:
      Weights of the shape and dtype of ``w``; computed in float32 at least.

    Raises:
      TypeError: ``w`` is not floating or complex.
      ValueError: ``scale`` does not fit, or an option is illegal.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> print(bnjax.weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0])))
      [[6.]
       [8.]]

    Source: Salimans & Kingma (2016), eq. 2. PyTorch's ``weight_norm`` has no epsilon and keeps
    axis 0, where its output features are.
    """
    w = as_inexact(w, "w")
    kept = () if axis is None else canonical_axes(axis, w.ndim, "axis")
    rule = rule_for(w, other_axes(kept, w.ndim), kept, epsilon, None)
    return _weight_norm(inputs_for(rule, w, None, scale, None), rule)


@functools.partial(jax.jit, static_argnames="rule")
def _weight_norm(inputs: Inputs, rule: Rule) -> jax.Array:
    scale, _ = inputs.params(rule)
    dtype, root = rule.wide, math.sqrt(rule.epsilon)
    shrunk, factor = near_one(inputs.x.astype(dtype), rule.axes, root)
    squares = jnp.sum(abs_sq(shrunk), rule.axes, keepdims=True)
    unit = shrunk * lax.rsqrt(squares + jnp.square(root * factor)).astype(dtype)
    return (unit if scale is None else unit * scale).astype(rule.dtype)


def weight_standardize(
    w: ArrayLike, gain: ArrayLike | None = None, *, axis: Axes = -1, epsilon: float = 1e-5
) -> jax.Array:
    r"""Weights with mean 0 and variance 1 for each output feature.

    .. math::
        \hat w = g\, \frac{w - \mu}{\sqrt{v + \epsilon}}, \qquad
        \mu, v \text{ over all axes of } w \text{ but } \texttt{axis}

    The arithmetic, the derivative rule and the range of :func:`bnjax.layer_norm`, on weights.

    Args:
      w: weights, floating or complex, for example ``(H, W, in, out)``.
      gain: g, the shape of ``w`` on ``axis``, a scalar, or None for 1. For unit variance of the
        output give ``fan_in ** -0.5``.
      axis: the output features.
      epsilon: added to the variance.

    Returns:
      Weights of the shape and dtype of ``w``.

    Raises:
      TypeError: ``w`` is not floating or complex.
      ValueError: ``gain`` does not fit, or an option is illegal.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> print(bnjax.weight_standardize(jnp.array([[1.0, 2.0], [3.0, 6.0]])).round(3))
      [[-1. -1.]
       [ 1.  1.]]

    Source: Qiao et al. (2019), eq. 4; Brock et al. (2021) for the gain. PyTorch and Flax have
    none; Haiku's ``hk.nets`` has the scaled form.
    """
    w = as_inexact(w, "w")
    kept = canonical_axes(axis, w.ndim, "axis")
    rule = rule_for(w, other_axes(kept, w.ndim), kept, epsilon, None)
    inputs = inputs_for(rule, w, None, gain, None, ("gain", "bias"))
    return by_own_statistics(inputs, rule)


def near_one(
    w: jax.Array, axes: tuple[int, ...] | None = None, least: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """``w`` times a power of two that brings its largest entry, or ``least``, near 1; and that.

    Of all entries along ``axes``. No digit changes, and the squares neither over- nor underflow
    whatever the size of the weights is.
    """
    largest = jnp.max(abs(lax.stop_gradient(w)), axes, keepdims=True, initial=0)
    info = jnp.finfo(largest.dtype)
    most = 2.0 ** (2 ** (info.nexp - 1) - 3)
    power = coarse(jnp.clip(largest, max(least, 1 / most), most), 0)
    return w * (1 / power).astype(w.dtype), 1 / power
