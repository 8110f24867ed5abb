"""Flax's linen layer, RMS, instance and group norm, with the arithmetic of :mod:`bnjax.core`.

Each has the fields, defaults, call and variables of its namesake in ``flax.linen``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import ArrayLike

from bnjax._flax import as_input, inexact_dtype, param_dtype_of, reduced_axes, shared_options
from bnjax.core import group_norm, instance_norm, layer_norm, rms_norm
from bnjax.core._axes import Axes
from bnjax.core._checks import as_array, canonical_axes, check_switch


class LayerNorm(nn.Module):
    r"""Layer normalisation, a drop-in replacement for ``flax.linen.LayerNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu, v \text{ over } \texttt{reduction_axes}

    Same fields and defaults in the same order, same call, same variables
    (``params/{scale,bias}``). The arithmetic is that of :func:`bnjax.layer_norm`: accurate at any
    offset, and without a float32 copy of a half-precision input.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of ``y``; by default the promotion of input and parameters.
      param_dtype: dtype of ``scale`` and ``bias``.
      use_bias, use_scale: whether there is a β, a γ.
      bias_init, scale_init: their initialisers, zeros and ones.
      reduction_axes: the axes that share a mean and a variance.
      feature_axes: the axes along which ``scale`` and ``bias`` vary.
      axis_name: mapped axis or axes over which the reduced axes are spread.
      axis_index_groups: groups of indices of that axis to merge separately.
      use_fast_variance: accepted, without effect.
      force_float32_reductions: accepted, without effect: reductions are in float32 at least.

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import LayerNorm
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> variables = LayerNorm().init(jax.random.key(0), x)
      >>> print(LayerNorm().apply(variables, x).round(3))
      [[-1.  1.]
       [-1.  1.]]

    Source: Ba, Kiros & Hinton (2016), eq. 3-4. PyTorch's ``LayerNorm`` has epsilon 1e-5 and
    parameters over all reduced axes. Where a mask leaves nothing to count Flax gives NaN; here
    ``y`` is ``bias``. While initialising, ``axis_name`` need not exist.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = initializers.zeros
    scale_init: Any = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32), any shape.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x = as_array(x, "x")
        scale, bias = _params(self, x, self.feature_axes)
        axes: Any = {"axes": reduced_axes(self, x), "param_axes": self.feature_axes}
        return layer_norm(scale=scale, bias=bias, **axes, **_options(self, x, mask, scale, bias))


class RMSNorm(nn.Module):
    r"""RMS normalisation, a drop-in replacement for ``flax.linen.RMSNorm``.

    .. math::
        y = \gamma\, \frac{x}{\sqrt{\overline{x^2} + \epsilon}}

    Same fields and defaults in the same order, same call, same variables (``params/scale``). The
    arithmetic is that of :func:`bnjax.rms_norm`.

    Attributes:
      use_scale, scale_init: whether there is a γ, and its initialiser.
      epsilon, dtype, param_dtype, reduction_axes, feature_axes: as in
        :class:`bnjax.linen.LayerNorm`.
      axis_name, axis_index_groups, use_fast_variance, force_float32_reductions: likewise.

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import RMSNorm
      >>> x = jnp.array([[3.0, -3.0]])
      >>> variables = RMSNorm().init(jax.random.key(0), x)
      >>> print(RMSNorm().apply(variables, x).round(3))
      [[ 1. -1.]]

    Source: Zhang & Sennrich (2019), eq. 4. PyTorch's ``RMSNorm`` takes the machine epsilon by
    default. Where a mask leaves nothing to count Flax gives NaN; here ``y`` is 0.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Any = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32), any shape.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x = as_array(x, "x")
        scale, _ = _params(self, x, self.feature_axes)
        axes: Any = {"axes": reduced_axes(self, x), "param_axes": self.feature_axes}
        return rms_norm(scale=scale, **axes, **_options(self, x, mask, scale))


class InstanceNorm(nn.Module):
    r"""Instance normalisation, a drop-in replacement for ``flax.linen.InstanceNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu, v \text{ over all axes but 0 and } \texttt{feature_axes}

    Same fields and defaults in the same order, same call, same variables
    (``params/{scale,bias}``). The arithmetic is that of :func:`bnjax.instance_norm`.

    Attributes:
      feature_axes: the feature axis or axes, not 0: -1 for NHWC, 1 for NCHW.
      epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init: as in
        :class:`bnjax.linen.LayerNorm`.
      axis_name, axis_index_groups, use_fast_variance, force_float32_reductions: likewise.

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time. A single position
        warns, except while initialising: ``y`` is then ``bias``, whatever ``x`` is.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import InstanceNorm
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two examples, two positions
      >>> variables = InstanceNorm().init(jax.random.key(0), x)
      >>> print(InstanceNorm().apply(variables, x).round(3).ravel())
      [-1.  1. -1.  1.]

    Source: Ulyanov, Vedaldi & Lempitsky (2016), eq. 3. PyTorch's ``InstanceNorm2d`` has epsilon
    1e-5 and no parameters by default. Differs from Flax's as :class:`bnjax.linen.LayerNorm` does.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = initializers.zeros
    scale_init: Any = initializers.ones
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32); examples on axis 0.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x = as_array(x, "x")
        scale, bias = _params(self, x, self.feature_axes)
        options = _options(self, x, mask, scale, bias)
        return instance_norm(scale=scale, bias=bias, axis=self.feature_axes, **options)


class GroupNorm(nn.Module):
    r"""Group normalisation, a drop-in replacement for ``flax.linen.GroupNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu_g}{\sqrt{v_g + \epsilon}} + \beta, \qquad
        g = \lfloor c \cdot G / C \rfloor

    Same fields and defaults in the same order, same call, same variables
    (``params/{scale,bias}``). The arithmetic is that of :func:`bnjax.group_norm`.

    Attributes:
      num_groups: number of groups G; it must divide the channels.
      group_size: channels in a group, with ``num_groups=None``.
      reduction_axes: the axes that share statistics, the last among them; all but axis 0 by
        default.
      epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init: as in
        :class:`bnjax.linen.LayerNorm`.
      axis_name, axis_index_groups, use_fast_variance, force_float32_reductions: likewise.

    Raises:
      ValueError: not exactly one of ``num_groups`` and ``group_size`` is None, it does not divide
        the channels, another option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import GroupNorm
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> norm = GroupNorm(num_groups=2)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> print(norm.apply(variables, x).round(3))
      [[-1.  1. -1.  1.]]

    Source: Wu & He (2018), eq. 7. PyTorch's ``GroupNorm`` has channels on axis 1 and epsilon
    1e-5. Flax's takes no mask of size 1 along the channels; otherwise the differences are those
    of :class:`bnjax.linen.LayerNorm`.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = initializers.zeros
    scale_init: Any = initializers.ones
    reduction_axes: Axes | None = None
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32); channels on the last axis.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x = as_array(x, "x")
        scale, bias = _params(self, x, -1)
        groups = {"num_groups": self.num_groups, "group_size": self.group_size}
        options = _options(self, x, mask, scale, bias)
        return group_norm(scale=scale, bias=bias, axes=reduced_axes(self, x), **groups, **options)


def _params(module: Any, x: jax.Array, feature_axes: Axes):
    """``scale`` and ``bias`` of the module, where it has them."""
    dtype = param_dtype_of(module.param_dtype)
    shape = [x.shape[a] for a in canonical_axes(feature_axes, x.ndim, "feature_axes")]

    def param(name):
        # RMS norm has no bias at all.
        if not check_switch(f"use_{name}", getattr(module, f"use_{name}", False)):
            return None
        return module.param(name, getattr(module, f"{name}_init"), shape, dtype)

    return param("scale"), param("bias")


def _options(module: Any, x: jax.Array, mask, *params) -> dict[str, Any]:
    """``x`` and what every function of the core takes."""
    dtype = module.dtype or inexact_dtype(x, *params)
    initializing = module.is_initializing()
    options = shared_options(module, mask, dtype, initializing)
    if initializing and not isinstance(module, RMSNorm):
        options["single_value"] = "allow"
    return {"x": as_input(x, dtype), **options}
