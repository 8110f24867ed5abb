"""Fold batch norm's fixed scale and shift into the kernel and bias of a neighbour."""

from __future__ import annotations

import jax
import numpy as np
from jax.typing import ArrayLike

from bnjax.core import BatchStats
from bnjax.core._checks import canonical_axes, check_epsilon, whole_number
from bnjax.surgery._arrays import double, narrow


def fold_into_previous(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    batch_stats: BatchStats,
    *,
    epsilon: float = 1e-5,
    in_axis: int = -2,
    out_axis: int = -1,
    feature_group_count: int = 1,
) -> tuple[jax.Array, jax.Array]:
    r"""Fold batch norm into the dense layer or convolution before it.

    .. math::
        \gamma \frac{(W x + b) - \mu}{\sqrt{v + \epsilon}} + \beta = (a W) x + a (b - \mu) + \beta,
        \qquad a = \frac{\gamma}{\sqrt{v + \epsilon}}

    with :math:`W, b` = ``kernel``, ``bias``; :math:`\gamma, \beta` = ``scale``, ``norm_bias``; and
    :math:`\mu, v` = ``batch_stats``. Right for every padding, stride and dilation. Computed on the
    host in double precision and rounded once; not to be traced.

    Args:
      kernel: any shape, floating.
      bias: shape ``(out_features,)``, or None.
      scale, norm_bias: of the norm, shape ``(out_features,)``, or None.
      batch_stats: of the norm, ``mean`` and ``var`` of that shape.
      epsilon: of the norm.
      in_axis, out_axis: where the input and output features of ``kernel`` are. The defaults are
        those of Flax, (..., in, out), whatever the layout of the data; ``transpose_kernel=True``
        swaps them. PyTorch's ``Linear`` and ``Conv`` have ``in_axis=1, out_axis=0``, its
        ``ConvTranspose`` 0 and 1.
      feature_group_count: number of groups of a grouped convolution.

    Returns:
      Kernel and bias, in the dtypes they had (a new bias has that of the kernel).

    Raises:
      ValueError: shapes do not fit, or a result is too large for its dtype, as may be in float16.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> from bnjax.surgery import fold_into_previous
      >>> kernel = jnp.array([[1.0, 2.0]])
      >>> stats = bnjax.BatchStats(jnp.array([3.0, 4.0]), jnp.array([4.0, 16.0]), jnp.array(1))
      >>> print(*fold_into_previous(kernel, None, None, None, stats, epsilon=0.0))
      [[0.5 0.5]] [-1.5 -1. ]

    Source: Jacob et al. (2018), *Quantization and training*, §3.2. PyTorch's
    ``fuse_conv_bn_weights`` computes in the dtype of the weights, and casts without a look.
    """
    wide, a, shift, b = _wide(kernel, bias, scale, norm_bias, batch_stats, epsilon)
    axes = _kernel_axes(wide, out_axis, in_axis)
    folded = wide * _along(a, wide, *axes, feature_group_count)
    new = shift if b is None else a * _vector(b, a.size, "bias") + shift
    return narrow(folded, kernel, "kernel"), _narrow_bias(new, kernel, bias)


def fold_into_next(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    batch_stats: BatchStats,
    *,
    epsilon: float = 1e-5,
    in_axis: int = -2,
    out_axis: int = -1,
    feature_group_count: int = 1,
) -> tuple[jax.Array, jax.Array]:
    r"""Fold batch norm into the dense layer or convolution after it.

    .. math::
        W (a x + c) + b = (W a) x + (W c + b), \qquad
        a = \frac{\gamma}{\sqrt{v + \epsilon}}, \quad c = \beta - a \mu

    with the symbols of :func:`fold_into_previous`; for a convolution :math:`W c` is summed over the
    window.

    **Padding**: a convolution that pads with zeros pads after the norm: at the borders part of
    :math:`W c` is missing, and no one bias can be right. Fold only where nothing is padded (nor
    put between the entries, as transposed convolutions do), or where :math:`c = 0`.

    Args:
      kernel, bias: as of :func:`fold_into_previous`.
      scale, norm_bias, batch_stats: of the norm, shape ``(in_features,)``.
      epsilon, in_axis, out_axis, feature_group_count: as of :func:`fold_into_previous`.

    Returns:
      As :func:`fold_into_previous`.

    Raises:
      ValueError: as :func:`fold_into_previous`.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> from bnjax.surgery import fold_into_next
      >>> kernel = jnp.array([[1.0], [2.0]])
      >>> stats = bnjax.BatchStats(jnp.array([3.0, 4.0]), jnp.array([4.0, 16.0]), jnp.array(1))
      >>> print(*fold_into_next(kernel, None, None, None, stats, epsilon=0.0))
      [[0.5]
       [0.5]] [-3.5]

    Source: as :func:`fold_into_previous`, which is all that PyTorch has.
    """
    wide, a, shift, b = _wide(kernel, bias, scale, norm_bias, batch_stats, epsilon)
    axes = _kernel_axes(wide, in_axis, out_axis)
    folded = wide * _along(a, wide, *axes, feature_group_count)
    added = wide * _along(shift, wide, *axes, feature_group_count)
    # Whole input features (PyTorch's ConvTranspose): each group of them has outputs of its own.
    inputs, outputs = (wide.shape[axis] for axis in axes)
    groups = feature_group_count if a.size == inputs else 1
    added = np.moveaxis(added, axes, (-2, -1)).reshape(-1, groups, inputs // groups, outputs)
    new = added.sum((0, 2)).reshape(-1)
    new = new if b is None else _vector(b, new.size, "bias") + new
    return narrow(folded, kernel, "kernel"), _narrow_bias(new, kernel, bias)


def scale_and_shift(scale, bias, batch_stats: BatchStats, epsilon: float):
    """The two vectors of an evaluated norm, ``y = a * x + shift``, in double precision."""
    mean, var = double(batch_stats.mean), double(batch_stats.var)
    if mean.ndim != 1:
        raise ValueError(f"batch_stats.mean must have shape (features,), got {mean.shape}.")
    # As the layer does: a variance below epsilon, even 0, is no special case.
    with np.errstate(divide="ignore"):
        a = 1 / np.sqrt(_vector(var, mean.size, "batch_stats.var") + check_epsilon(epsilon))
    a = a if scale is None else a * _vector(double(scale), mean.size, "scale")
    shift = 0 if bias is None else _vector(double(bias), mean.size, "norm_bias")
    return a, shift - mean * a


def _wide(kernel, bias, scale, norm_bias, batch_stats, epsilon):
    """The kernel, the norm's scale and shift, and the bias, in double precision."""
    a, shift = scale_and_shift(scale, norm_bias, batch_stats, epsilon)
    return double(kernel), a, shift, None if bias is None else double(bias)


def _kernel_axes(kernel, axis, other):
    """``axis`` and ``other``, non-negative and not the same."""
    canonical_axes((axis, other), kernel.ndim, "(in_axis, out_axis)")
    return axis % kernel.ndim, other % kernel.ndim


def _along(features, kernel, axis, other, groups):
    """``features`` shaped to multiply ``kernel`` along ``axis``.

    Where ``axis`` holds the features of one group alone, the groups follow each other along
    ``other``, the features of the other side.
    """
    groups = whole_number(groups, "feature_group_count", 1)
    shape = [1] * kernel.ndim
    shape[axis] = kernel.shape[axis]
    if features.size == kernel.shape[axis]:
        return features.reshape(shape)
    if features.size != kernel.shape[axis] * groups or kernel.shape[other] % groups:
        raise ValueError(
            f"batch_stats have {features.size} features, which axis {axis} of a kernel of shape "
            f"{kernel.shape} with feature_group_count={groups} does not have. Name the axes with "
            "in_axis= and out_axis=."
        )
    shape[other] = kernel.shape[other]
    spread = np.repeat(features.reshape(groups, -1), kernel.shape[other] // groups, axis=0)
    return (spread if other < axis else spread.T).reshape(shape)


def _vector(v, features, name):
    if v.shape != (features,):
        raise ValueError(f"{name} must have shape ({features},), got {v.shape}.")
    return v


def _narrow_bias(wide, kernel, bias):
    if bias is None:
        return narrow(wide, np.empty(0, kernel.dtype), "bias")
    return narrow(wide, bias, "bias")
