"""Spectral norm: weights divided by their largest singular value, by power iteration."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import compute_dtype, narrow
from bnjax.core._checks import (
    as_dtype,
    as_inexact,
    check_epsilon,
    check_switch,
    check_type,
    whole_number,
)
from bnjax.core._sharding import sharded_like
from bnjax.core._weight_norms import near_one


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


export.register_namedtuple_serialization(SpectralState, serialized_name="bnjax.SpectralState")


def init_spectral_norm(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> SpectralState:
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
    w: ArrayLike,
    state: SpectralState,
    *,
    n_steps: int = 1,
    epsilon: float = 1e-12,
    update: bool = True,
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
    w = as_inexact(w, "w")
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
    wide, factor = near_one(w.astype(compute_dtype(w.dtype)))
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
