"""Flax's linen wrappers that normalise the weights of a layer, with the arithmetic of the core.

Both hand the layer normalised weights for one call. The parameters stay what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from bnjax._flax import inexact_dtype, param_dtype_of
from bnjax.core import SpectralState, init_spectral_norm, spectral_norm, weight_norm
from bnjax.core._axes import Axes, compute_dtype
from bnjax.core._checks import canonical_axes, check_switch


class WeightNorm(nn.Module):
    r"""A layer whose weights have length and direction as separate parameters.

    .. math::
        \hat w = g\, \frac{w}{\sqrt{\lVert w \rVert^2 + \epsilon}}

    A drop-in replacement for ``flax.linen.WeightNorm``: same fields and defaults in the same
    order, same call, same variables. The arithmetic is that of :func:`bnjax.weight_norm`.

    Attributes:
      layer_instance: the layer; each call runs it with normalised weights.
      epsilon: added to the squared norm.
      dtype: dtype of the normalised weights, to which they are rounded once; by default the
        promotion of weights and scale. Half-precision weights with a scale of half precision are
        so handed to the layer in half precision, which it would otherwise leave.
      param_dtype: dtype of the scales.
      use_scale: whether there is a g: ``params/<layer>/<path>/scale``.
      scale_init: its initialiser, ones.
      feature_axes: the axes with a norm of their own each; None for one norm of all.
      variable_filter: names; a parameter is normalised if one of them is part of its path. None
        for all parameters.

    Raises:
      ValueError: shapes do not fit, at trace time.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from bnjax.linen import WeightNorm
      >>> layer = WeightNorm(nn.Dense(1, kernel_init=nn.initializers.constant(5.0)))
      >>> x = jnp.eye(4)
      >>> variables = layer.init(jax.random.key(0), x)
      >>> print(layer.apply(variables, x).ravel())
      [0.5 0.5 0.5 0.5]

    Source: Salimans & Kingma (2016), eq. 2. PyTorch's ``weight_norm`` has no epsilon and starts g
    at the norm of the weights. Flax's ``init`` returns weights that are normalised already; here
    they are those of the layer. Flax normalises other collections than ``params`` if their names
    match, and none of them may change; here a batch norm within the layer can train.
    """

    layer_instance: nn.Module
    epsilon: float = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Any = initializers.ones
    feature_axes: Axes | None = -1
    variable_filter: Iterable | None = dataclasses.field(default_factory=lambda: {"kernel"})

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalised weights.

        Args:
          args, kwargs: passed to the layer.

        Returns:
          What the layer returns.
        """
        return _call(self, self._normalized, args, kwargs)

    @nn.nowrap
    def _normalized(self, name, w):
        if self.variable_filter and not any(part in name for part in self.variable_filter):
            return w
        axes, scale = self.feature_axes, None
        if check_switch("use_scale", self.use_scale):
            kept = () if axes is None else canonical_axes(axes, w.ndim, "feature_axes")
            shape, dtype = [w.shape[a] for a in kept], param_dtype_of(self.param_dtype)
            scale = self.param(f"{name}/scale", self.scale_init, shape, dtype)
        target = self.dtype or inexact_dtype(w, scale)
        wide = w.astype(compute_dtype(w.dtype, target))
        return weight_norm(wide, scale, axis=axes, epsilon=self.epsilon).astype(target)


class SpectralNorm(nn.Module):
    r"""A layer whose weights are divided by their largest singular value.

    .. math::
        \hat W = W / \sigma(W)

    with ``W`` as a matrix of all axes but the last by the last, for every parameter of rank 2 or
    more. A drop-in replacement for ``flax.linen.SpectralNorm``: same fields and defaults in the
    same order, same call, same variables (``<layer>/<path>/{u,sigma}`` in ``collection_name``).
    The arithmetic is that of :func:`bnjax.spectral_norm`.

    Attributes:
      layer_instance: the layer; each call runs it with normalised weights.
      n_steps: power iterations a call; below 1 nothing is normalised.
      epsilon: no norm below its root is divided by.
      dtype: dtype of the normalised weights, to which they are rounded once; by default the
        promotion of weights and ``u``.
      param_dtype: dtype of ``u`` and ``sigma``.
      error_on_non_matrix: refuse parameters of rank 3 or more.
      collection_name: collection of ``u`` and ``sigma``.

    Raises:
      TypeError: weights are complex.
      ValueError: a parameter has rank 3 or more, with ``error_on_non_matrix``.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from bnjax.linen import SpectralNorm
      >>> layer = SpectralNorm(nn.Dense(1, kernel_init=nn.initializers.constant(5.0)))
      >>> x = jnp.eye(4)
      >>> variables = layer.init(jax.random.key(0), x, update_stats=False)
      >>> y, updates = layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])
      >>> print(y.ravel(), updates["batch_stats"]["layer_instance/kernel/sigma"])
      [0.5 0.5 0.5 0.5] 10.0

    Source: Miyato et al. (2018), Algorithm 1. PyTorch iterates in training only. Flax's ``init``,
    and ``apply`` with ``params`` mutable, return weights that are divided already; here they stay
    those of the layer. Flax divides matrices of other collections than ``params`` too, and is
    stuck for good once weights were zero; here neither.
    """

    layer_instance: nn.Module
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        """Call the layer with normalised weights.

        Args:
          args, kwargs: passed to the layer.
          update_stats: keep what the power iteration found, as in training. False leaves ``u``
            and ``sigma`` as they are, and the output the same from call to call.

        Returns:
          What the layer returns.
        """

        update_stats = check_switch("update_stats", update_stats)

        def normalized(name, w):
            return self._normalized(name, w, update_stats)

        return _call(self, normalized, args, kwargs)

    @nn.nowrap
    def _normalized(self, name, w, update_stats):
        if w.ndim <= 1 or self.n_steps < 1:
            return w
        if w.ndim > 2 and self.error_on_non_matrix:
            raise ValueError(
                f"{name} has shape {w.shape}, but error_on_non_matrix=True allows rank 2 at most. "
                "Set it to False to take all axes but the last as one."
            )

        def start():
            return init_spectral_norm(self.make_rng("params"), w.shape, self.param_dtype)

        u = self.variable(self.collection_name, f"{name}/u", lambda: start().u)
        sigma = self.variable(self.collection_name, f"{name}/sigma", jnp.ones, (), self.param_dtype)
        state = SpectralState(u.value, sigma.value)
        target = self.dtype or inexact_dtype(w, state.u)
        options = {"n_steps": self.n_steps, "epsilon": self.epsilon, "update": update_stats}
        w_hat, state = spectral_norm(w.astype(compute_dtype(w.dtype, target)), state, **options)
        if update_stats:
            u.value, sigma.value = state
        return w_hat.astype(target)


def _call(module: Any, normalized, args, kwargs):
    """Call the layer of ``module`` with parameters that ``normalized(name, w)`` returns."""

    def forward(layer):
        return layer(*args, **kwargs)

    def leaf(path, w):
        inside = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        return normalized(f"{module.layer_instance.name}/{inside}", jnp.asarray(w))

    if module.is_initializing():
        forward(module.layer_instance)  # creates the parameters
    # Mapped, and not to be mapped back: what the layer sees as parameters is gone after the call.
    mapped = nn.map_variables(
        forward, "params", lambda params: jax.tree_util.tree_map_with_path(leaf, params)
    )
    return mapped(module.layer_instance)
