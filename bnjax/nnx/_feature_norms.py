"""Flax's nnx layer, RMS, instance and group norm, with the arithmetic of :mod:`bnjax.core`.

Each has the constructor, call and variables of its namesake in ``flax.nnx``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.nn import initializers
from jax.typing import ArrayLike

from bnjax._flax import as_input, inexact_dtype, param_dtype_of, reduced_axes, shared_options
from bnjax.core import group_norm, instance_norm, layer_norm, rms_norm
from bnjax.core._axes import Axes
from bnjax.core._checks import as_array, canonical_axes, check_switch
from bnjax.core._group_norm import groups_of


class LayerNorm(nnx.Module):
    r"""Layer normalisation, a drop-in replacement for ``flax.nnx.LayerNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu, v \text{ over } \texttt{reduction_axes}

    Same constructor, call and variables (``nnx.Param`` ``scale`` and ``bias``). The arithmetic is
    that of :func:`bnjax.layer_norm`: accurate at any offset, without a float32 copy of a
    half-precision input, and the input is not rounded to ``dtype`` first.

    Args:
      num_features: number of features: the product of the sizes of ``feature_axes``.
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
      promote_dtype: applied to input and parameters if it is not Flax's own.
      rngs: stream ``params`` for the initialisers.
      bias_metadata, scale_metadata: passed on to ``nnx.Param``.

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import LayerNorm
      >>> norm = LayerNorm(2, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3))
      [[-1.  1.]
       [-1.  1.]]

    Source: Ba, Kiros & Hinton (2016), eq. 3-4. PyTorch's ``LayerNorm`` has epsilon 1e-5 and
    parameters of the shape of all reduced axes. Where a mask leaves nothing to count Flax gives
    NaN; here ``y`` is ``bias``.
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = initializers.zeros,
        scale_init: Any = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        shape = (num_features,)
        self.scale = _param(
            "use_scale", use_scale, scale_init, rngs, shape, param_dtype, scale_metadata
        )
        self.bias = _param("use_bias", use_bias, bias_init, rngs, shape, param_dtype, bias_metadata)

        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32), any shape.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x, (scale, bias), options = _ready(
            self, x, mask, (self.scale, self.bias), self.feature_axes
        )
        axes: dict[str, Any] = {"axes": reduced_axes(self, x), "param_axes": self.feature_axes}
        return layer_norm(x, scale, bias, **axes, **options)


class RMSNorm(nnx.Module):
    r"""RMS normalisation, a drop-in replacement for ``flax.nnx.RMSNorm``.

    .. math::
        y = \gamma\, \frac{x}{\sqrt{\overline{x^2} + \epsilon}}

    Same constructor, call and variables (``nnx.Param`` ``scale``). The arithmetic is that of
    :func:`bnjax.rms_norm`.

    Args:
      use_scale, scale_init, scale_metadata: whether there is a γ, its initialiser and metadata.
      num_features, epsilon, dtype, param_dtype, reduction_axes, feature_axes: as in
        :class:`bnjax.nnx.LayerNorm`.
      axis_name, axis_index_groups, use_fast_variance, promote_dtype, rngs: likewise.

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import RMSNorm
      >>> print(RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([[3.0, -3.0]])).round(3))
      [[ 1. -1.]]

    Source: Zhang & Sennrich (2019), eq. 4. PyTorch's ``RMSNorm`` takes the machine epsilon by
    default. Where a mask leaves nothing to count Flax gives NaN; here ``y`` is 0.
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_scale: bool = True,
        scale_init: Any = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        shape = (num_features,)
        self.scale = _param(
            "use_scale", use_scale, scale_init, rngs, shape, param_dtype, scale_metadata
        )

        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32), any shape.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x, (scale,), options = _ready(self, x, mask, (self.scale,), self.feature_axes)
        axes: dict[str, Any] = {"axes": reduced_axes(self, x), "param_axes": self.feature_axes}
        return rms_norm(x, scale, **axes, **options)


class InstanceNorm(nnx.Module):
    r"""Instance normalisation, a drop-in replacement for ``flax.nnx.InstanceNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu, v \text{ over all axes but 0 and } \texttt{feature_axes}

    Same constructor, call and variables (``nnx.Param`` ``scale`` and ``bias``). The arithmetic is
    that of :func:`bnjax.instance_norm`.

    Args:
      feature_axes: the feature axis or axes, not 0: -1 for NHWC, 1 for NCHW.
      num_features, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init: as in
        :class:`bnjax.nnx.LayerNorm`.
      axis_name, axis_index_groups, use_fast_variance, promote_dtype, rngs: likewise.
      bias_metadata, scale_metadata: likewise.

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time. A single position
        warns: ``y`` is then ``bias``, whatever ``x`` is.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import InstanceNorm
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two examples, two positions
      >>> print(InstanceNorm(1, rngs=nnx.Rngs(0))(x).round(3).ravel())
      [-1.  1. -1.  1.]

    Source: Ulyanov, Vedaldi & Lempitsky (2016), eq. 3. PyTorch's ``InstanceNorm2d`` has epsilon
    1e-5 and no parameters by default. Differs from Flax's as :class:`bnjax.nnx.LayerNorm` does.
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = initializers.zeros,
        scale_init: Any = initializers.ones,
        feature_axes: Axes = -1,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        shape = (num_features,)
        self.scale = _param(
            "use_scale", use_scale, scale_init, rngs, shape, param_dtype, scale_metadata
        )
        self.bias = _param("use_bias", use_bias, bias_init, rngs, shape, param_dtype, bias_metadata)

        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32), examples on axis 0.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x, (scale, bias), options = _ready(
            self, x, mask, (self.scale, self.bias), self.feature_axes
        )
        options["axis"] = self.feature_axes
        return instance_norm(x, scale, bias, **options)


class GroupNorm(nnx.Module):
    r"""Group normalisation, a drop-in replacement for ``flax.nnx.GroupNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu_g}{\sqrt{v_g + \epsilon}} + \beta, \qquad
        g = \lfloor c \cdot G / C \rfloor

    Same constructor, call and variables (``nnx.Param`` ``scale`` and ``bias``). The arithmetic is
    that of :func:`bnjax.group_norm`.

    Args:
      num_features: number of channels C.
      num_groups: number of groups G; it must divide the channels.
      group_size: channels in a group, with ``num_groups=None``.
      reduction_axes: the axes that share statistics, the last among them; all but axis 0 by
        default.
      epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init: as in
        :class:`bnjax.nnx.LayerNorm`.
      axis_name, axis_index_groups, use_fast_variance, promote_dtype, rngs: likewise.
      bias_metadata, scale_metadata: likewise.

    Raises:
      ValueError: not exactly one of ``num_groups`` and ``group_size`` is None, or it does not
        divide the channels. At trace time: another option is illegal or shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import GroupNorm
      >>> norm = GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
      [[-1.  1. -1.  1.]]

    Source: Wu & He (2018), eq. 7. PyTorch's ``GroupNorm`` has channels on axis 1 and epsilon
    1e-5. Flax's mixes up its groups, or fails, where ``reduction_axes`` leaves other axes than
    axis 0, and takes no mask of size 1 along the channels; otherwise the differences are those of
    :class:`bnjax.nnx.LayerNorm`.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = initializers.zeros,
        scale_init: Any = initializers.ones,
        reduction_axes: Axes | None = None,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.feature_axis = -1
        self.num_groups, self.group_size = groups_of(num_features, num_groups, group_size)
        shape = (num_features,)
        self.scale = _param(
            "use_scale", use_scale, scale_init, rngs, shape, param_dtype, scale_metadata
        )
        self.bias = _param("use_bias", use_bias, bias_init, rngs, shape, param_dtype, bias_metadata)

        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalise ``x``.

        Args:
          x: floating, complex or integer (then computed as float32), channels on the last axis.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x, (scale, bias), options = _ready(self, x, mask, (self.scale, self.bias), -1)
        channels = self.num_groups * self.group_size
        if x.shape[-1] != channels:
            raise ValueError(
                f"x of shape {x.shape} must have {channels} channels, on its last axis."
            )
        options |= {"num_groups": self.num_groups, "axes": reduced_axes(self, x)}
        return group_norm(x, scale, bias, **options)


def _param(name, use, init, rngs: nnx.Rngs, shape, dtype, metadata):
    dtype = param_dtype_of(dtype)
    if not check_switch(name, use):
        return nnx.data(None)
    return nnx.Param(init(rngs.params(), shape, dtype), **metadata)


def _ready(
    module: Any, x: ArrayLike, mask, params, feature_axes: Axes
) -> tuple[jax.Array, Any, dict[str, Any]]:
    """Input and parameters by Flax's rules of promotion, and options every function takes."""
    arrays = (as_array(x, "x"), *(None if v is None else v[...] for v in params))
    if module.promote_dtype is not dtypes.promote_dtype:
        arrays = module.promote_dtype(arrays, dtype=module.dtype)
    dtype = module.dtype or inexact_dtype(*arrays)
    given, *params = arrays
    shape = [given.shape[a] for a in canonical_axes(feature_axes, given.ndim, "feature_axes")]

    def unfold(v):
        """A vector of parameters in the shape of the features; a misfit is the core's to refuse."""
        return v if v is None or v.size != math.prod(shape) else v.reshape(shape)

    options = shared_options(module, mask, dtype)
    return as_input(given, dtype), [unfold(v) for v in params], options
