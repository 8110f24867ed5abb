"""Normalise weights instead of activations: weight norm, spectral norm, weight standardisation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._axes import (
    Axes,
    canonical_axes,
    check_inexact,
    compute_dtype,
    narrow,
    other_axes,
    whole_number,
)
from bnjax.core._checks import as_array, as_dtype, check_switch, check_type
from bnjax.core._normalize import as_params, check_epsilon, expand_params
from bnjax.core._sharding import sharded_like
from bnjax.core._standardize import Rule, standardize
from bnjax.core._statistics import abs_sq


def weight_norm(w, scale, *, axis: Axes | None = -1, epsilon: float = 1e-12) -> jax.Array:
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
    w = as_array(w, "w")
    check_inexact(w, "w")
    kept = () if axis is None else canonical_axes(axis, w.ndim, "axis")
    scale, _ = as_params(scale, None)
    return _weight_norm(w, scale, kept, check_epsilon(epsilon))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _weight_norm(w, scale, kept, epsilon):
    dtype = compute_dtype(w.dtype)
    scale, _ = expand_params(scale, None, w.shape, kept, dtype)
    axes, root = other_axes(kept, w.ndim), math.sqrt(epsilon)
    shrunk, factor = _near_one(w.astype(dtype), axes, root)
    squares = jnp.sum(abs_sq(shrunk), axes, keepdims=True)
    unit = shrunk * lax.rsqrt(squares + jnp.square(root * factor)).astype(dtype)
    return (unit if scale is None else unit * scale).astype(w.dtype)


def _near_one(w, axes=None, least: float = 0.0):
    """``w`` times a power of two that brings its largest entry, or ``least``, near 1; and that.

    Of all entries along ``axes``. No digit changes, and the squares neither over- nor underflow
    whatever the size of the weights is.
    """
    largest = jnp.max(abs(lax.stop_gradient(w)), axes, keepdims=True, initial=0)
    info = jnp.finfo(largest.dtype)
    most = 2.0 ** (2 ** (info.nexp - 1) - 3)
    power = lax.reduce_precision(jnp.clip(largest, max(least, 1 / most), most), info.nexp, 0)
    return w * (1 / power).astype(w.dtype), 1 / power


class SpectralState(NamedTuple):
    """State of the power iteration of :func:`spectral_norm`.

    Attributes:
      u: estimate of the first right singular vector, shape ``(1, features)``.
      sigma: estimate of the largest singular value, scalar; 1 at first.

    Example:
      >>> import jax, jax.numpy as jnp, bnjax
      >>> print(bnjax.init_spectral_norm(jax.random.key(0), (3, 3, 8, 16)).u.shape)
      (1, 16)

    Source: Miyato et al. (2018), Algorithm 1. Flax keeps the same two; PyTorch ``u`` and ``v``.
    """

    u: jax.Array  # (1, features)
    sigma: jax.Array  # ()


def init_spectral_norm(key, shape, dtype=jnp.float32) -> SpectralState:
    """A random first estimate for weights of ``shape``, whose features are on the last axis.

    Args:
      key: a key of ``jax.random``.
      shape: shape of the weights.
      dtype: of the state: floating, of 16 bits at least.

    Raises:
      TypeError, ValueError: ``shape`` is none, ``dtype`` is another.

    Example:
      >>> import jax, bnjax
      >>> print(bnjax.init_spectral_norm(jax.random.key(0), (5, 4)).sigma)
      1.0

    Source: see :class:`SpectralState`.
    """
    dtype = as_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or narrow(dtype):
        raise ValueError(
            f"dtype must be floating and of 16 bits at least, got {jnp.dtype(dtype)}: with fewer "
            "the power iteration (param_dtype of the modules) stands still."
        )
    if not isinstance(shape, Sequence) or not shape:
        raise TypeError(f"shape must be that of the weights, such as (3, 4), got {shape!r}.")
    features = whole_number(shape[-1], "shape[-1]", 0)
    return SpectralState(jax.random.normal(key, (1, features), dtype), jnp.ones((), dtype))


def spectral_norm(
    w, state: SpectralState, *, n_steps: int = 1, epsilon: float = 1e-12, update: bool = True
) -> tuple[jax.Array, SpectralState]:
    r"""Weights divided by their largest singular value.

    .. math::
        v \leftarrow \frac{u W^\top}{\lVert u W^\top \rVert}, \quad
        u \leftarrow \frac{v W}{\lVert v W \rVert}, \quad
        \sigma = v W u^\top, \quad \hat W = W / \sigma

    with ``w`` as a matrix of all axes but the last by the last. The vectors are constants for the
    gradient, :math:`d\sigma = v\, dW\, u^\top`. Zero weights, and those without any entry, give
    themselves, a ``sigma`` of 0 and ``u`` as it was, so that the iteration goes on when they have
    moved.

    Args:
      w: weights, floating, of rank 2 at least, features on the last axis.
      state: from :func:`init_spectral_norm`, and then from call to call.
      n_steps: power iterations, at least 1.
      epsilon: in the power iteration no norm below its root is divided by; relative to the
        largest weight, so weights of any magnitude will do.
      update: False returns ``state`` itself, as for evaluation; ``w`` is divided all the same.

    Returns:
      ``(w_hat, state)``: weights of the shape and dtype of ``w``.

    Raises:
      TypeError: ``w`` is not floating.
      ValueError: ``w`` is a vector, or its features are not those of ``state``.

    Example:
      >>> import jax, jax.numpy as jnp, bnjax
      >>> w = jnp.diag(jnp.array([4.0, 2.0]))
      >>> state = bnjax.init_spectral_norm(jax.random.key(0), w.shape)
      >>> w_hat, state = bnjax.spectral_norm(w, state, n_steps=20)
      >>> print(w_hat.round(3), state.sigma.round(3))
      [[1.  0. ]
       [0.  0.5]] 4.0

    Source: Miyato et al. (2018), Algorithm 1 and eq. 11. Flax writes the divided weights into
    the parameter with nnx (flax#5576), and is stuck for good once weights were zero; PyTorch
    iterates in training only.
    """
    w = as_array(w, "w")
    check_inexact(w, "w")
    if jnp.iscomplexobj(w):
        raise TypeError("w must be real: the spectral norm of complex weights is not supported.")
    n_steps = whole_number(n_steps, "n_steps", 1)
    if w.ndim < 2:
        raise ValueError(f"w must have rank 2 at least, got shape {w.shape}.")
    check_type("state", state, SpectralState, "Make one with bnjax.init_spectral_norm.")
    update = check_switch("update", update)
    if state.u.shape != (1, w.shape[-1]):
        raise ValueError(
            f"state.u has shape {state.u.shape}, but w of shape {w.shape} needs "
            f"(1, {w.shape[-1]}): make it with init_spectral_norm(key, w.shape)."
        )
    w_hat, new = _spectral_norm(w, state, n_steps, check_epsilon(epsilon))
    return w_hat, new if update else state


@functools.partial(jax.jit, static_argnums=(2, 3))
def _spectral_norm(w, state, n_steps, epsilon):
    # Products and sums instead of a reshape and matrix products: on an explicit mesh any axis of
    # the weights may be sharded; and no accelerator rounds the factors.
    wide, factor = _near_one(w.astype(compute_dtype(w.dtype)))
    constant = lax.stop_gradient(wide)
    rows = tuple(range(w.ndim - 1))
    before = state.u.astype(wide.dtype).reshape((1,) * len(rows) + w.shape[-1:])
    u = before
    for _ in range(n_steps):
        v = _unit(jnp.sum(constant * u, -1, keepdims=True), epsilon)
        u = _unit(jnp.sum(constant * v, rows, keepdims=True), epsilon)
    sigma = jnp.sum(wide * (v * u))
    w_hat = (wide / jnp.where(sigma != 0, sigma, 1)).astype(w.dtype)
    moved = jnp.any(constant != 0)
    u = jnp.where(moved, sharded_like(u, before), before).reshape(state.u.shape)
    sigma = lax.stop_gradient(sigma) / factor.reshape(())
    return w_hat, SpectralState(u.astype(state.u.dtype), sigma.astype(state.u.dtype))


def _unit(v, epsilon):
    """``v`` with length 1; what is shorter than the root of ``epsilon`` comes out shorter."""
    return v * lax.rsqrt(jnp.maximum(jnp.sum(v * v), epsilon))


def weight_standardize(w, gain=None, *, axis: Axes = -1, epsilon: float = 1e-5) -> jax.Array:
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
    w = as_array(w, "w")
    check_inexact(w, "w")
    kept = canonical_axes(axis, w.ndim, "axis")
    rule = Rule(other_axes(kept, w.ndim), check_epsilon(epsilon), w.dtype)
    gain = None if gain is None else as_array(gain, "gain")
    return _weight_standardize(w, gain, kept, rule)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _weight_standardize(w, gain, kept, rule):
    dtype = compute_dtype(w.dtype)
    gain, _ = expand_params(gain, None, w.shape, kept, dtype, ("gain", ""))
    return standardize(w, None, gain, None, None, rule)[0]
