"""Layer, instance, group and RMS norm: batch norm's arithmetic over other axes.

Which axes of a batch of images ``(N, H, W, C)`` share a mean and a variance:

=============  =====================  ============================
norm           reduced                one mean and variance for each
=============  =====================  ============================
batch norm     N, H, W                channel
layer norm     C (or H, W, C)         position (or image)
instance norm  H, W                   image and channel
group norm     H, W, C within a group  image and group of channels
=============  =====================  ============================

None of them knows of other examples, so there are no running statistics and no modes.

Magnitude: squares are taken in float32 (float64 for such input), so ``y`` is right for deviations
(of RMS norm: magnitudes) up to 1.8·10¹⁹ and its gradient up to 10¹⁶; beyond, ``y`` is ``bias`` or
NaN. Below 10⁻¹⁵ ``epsilon`` alone decides; it must be a normal number, 1.2·10⁻³⁸ at least, or 0.

Conventions elsewhere, where a model moves over. Everywhere epsilon is added inside the root, the
variance that normalises is that of the population (ddof 0), and groups are runs of neighbouring
channels.

=============  =========================  ==========================  ========================
norm           PyTorch                    ONNX                        Flax
=============  =========================  ==========================  ========================
batch norm     1e-5, axis 1; running      1e-5, axis 1; running       1e-5, axis -1; running
               variance with ddof 1       variance with ddof 0        variance with ddof 0
layer norm     1e-5, last axes            1e-5, axes from ``axis``    1e-6, last axis
instance norm  1e-5, axis 1, no           1e-5, axis 1                1e-6, axis -1
               parameters by default
group norm     1e-5, axis 1               1e-5, axis 1; parameters    1e-6, axis -1
                                          of each group before
                                          opset 21, then of each
                                          channel
RMS norm       machine epsilon, last      1e-5, axes from ``axis``,   1e-6, last axis
               axes                       from opset 23
=============  =========================  ==========================  ========================
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from bnjax.core._axes import (
    Axes,
    canonical_axes,
    check_features,
    check_inexact,
    check_mask,
    compute_dtype,
    other_axes,
    output_dtype,
    size_of,
    whole_number,
)
from bnjax.core._checks import as_array, check_choice
from bnjax.core._devices import Pool, canonical_axis_name, merged_sets
from bnjax.core._normalize import as_params, check_epsilon, expand_params
from bnjax.core._sharding import cuttable, sharded_like
from bnjax.core._standardize import Rule, standardize
from bnjax.core._warn import warn

SingleValue = Literal["error", "warn", "allow"]


def layer_norm(
    x,
    scale,
    bias,
    *,
    axes: Axes = -1,
    param_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask=None,
    axis_name=None,
    single_value: SingleValue = "warn",
    dtype=None,
    axis_index_groups=None,
) -> jax.Array:
    r"""Normalise each example over its own features.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu, v \text{ over } \texttt{axes} \text{ of } x

    The statistics, and the derivative rule, of :func:`bnjax.batch_norm`: accurate at any offset,
    differentiable in both modes to any order, and only ``x`` and vectors kept for the backward
    pass. The same limits of magnitude.

    Args:
      x: floating or complex, for example ``(N, L, F)``.
      scale: γ, of the shape of ``x`` on ``param_axes``, a scalar, or None for 1.
      bias: β, likewise, or None for 0.
      axes: the axes that share a mean and a variance.
      param_axes: the axes along which ``scale`` and ``bias`` vary; those of ``axes`` by default.
      epsilon: added to the variance, inside the root.
      mask: boolean, broadcastable to ``x``; True counts. What it hides takes no part in the
        statistics; a set with nothing to count comes out as ``bias``.
      axis_name: mapped axis or axes over which the features are spread, to merge statistics over.
      single_value: what to do where each mean is that of one value, so that ``y`` is ``bias``
        whatever ``x`` is: "warn", "error", or "allow" it.
      dtype: dtype of ``y``; that of ``x`` unless given.
      axis_index_groups: see :func:`bnjax.batch_norm`.

    Returns:
      ``y`` of the shape of ``x``.

    Raises:
      TypeError: ``x`` is not floating or complex.
      ValueError: shapes do not fit, an option is illegal, or see ``single_value``.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> print(bnjax.layer_norm(x, jnp.array([1.0, 2.0]), None).round(3))
      [[-1.  2.]
       [-1.  2.]]

    Source: Ba, Kiros & Hinton (2016), eq. 3-4. PyTorch's ``LayerNorm`` has epsilon 1e-5 and
    ``normalized_shape`` in place of axes; Flax's computes ``E[x²] - E[x]²`` by default; ONNX's
    ``LayerNormalization`` reduces all axes from ``axis`` on.
    """
    x, reduced = _ready(x, axes)
    sync = canonical_axis_name(x, axis_name, axis_index_groups)
    kept = reduced if param_axes is None else param_axes
    return _apply(x, scale, bias, reduced, kept, mask, sync, epsilon, dtype, single_value)


def rms_norm(
    x,
    scale,
    bias=None,
    *,
    axes: Axes = -1,
    param_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask=None,
    axis_name=None,
    dtype=None,
    axis_index_groups=None,
) -> jax.Array:
    r"""Divide each example by the root mean square of its features.

    .. math::
        y = \gamma\, \frac{x}{\sqrt{\overline{x^2} + \epsilon}} + \beta

    Layer norm about zero instead of about the mean: one statistic, and one sum in each pass.

    Args:
      x, scale, bias, axes, param_axes, epsilon, mask, axis_name, dtype, axis_index_groups: as in
        :func:`bnjax.layer_norm`. ``bias`` is rarely used here.

    Returns:
      ``y`` of the shape of ``x``. Squares are taken in float32 at least, so float16 input does
      not overflow; float32 input does beyond 1.8·10¹⁹ (its gradient beyond 10¹⁶).

    Raises:
      TypeError, ValueError: as :func:`bnjax.layer_norm`.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> print(bnjax.rms_norm(jnp.array([[3.0, -3.0]]), jnp.array([1.0, 2.0])).round(3))
      [[ 1. -2.]]

    Source: Zhang & Sennrich (2019), eq. 4. PyTorch's ``RMSNorm`` takes the machine epsilon by
    default; Flax's has no bias.
    """
    x, reduced = _ready(x, axes)
    sync = canonical_axis_name(x, axis_name, axis_index_groups)
    kept = reduced if param_axes is None else param_axes
    return _apply(x, scale, bias, reduced, kept, mask, sync, epsilon, dtype, about_mean=False)


def instance_norm(
    x,
    scale,
    bias,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-6,
    mask=None,
    axis_name=None,
    single_value: SingleValue = "warn",
    dtype=None,
    axis_index_groups=None,
) -> jax.Array:
    r"""Normalise each channel of each example over its positions.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mu, v \text{ over all axes but 0 and } \texttt{axis}

    Args:
      x: floating or complex, for example ``(N, H, W, C)``; examples on axis 0.
      scale, bias: one entry a feature, a scalar, or None.
      axis: the feature axis or axes: -1 for NHWC, 1 for NCHW.
      epsilon, mask, axis_name, single_value, dtype, axis_index_groups: as in
        :func:`bnjax.layer_norm`.

    Returns:
      ``y`` of the shape of ``x``.

    Raises:
      TypeError, ValueError: as :func:`bnjax.layer_norm`.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two examples, two positions
      >>> print(bnjax.instance_norm(x, None, None).round(3).ravel())
      [-1.  1. -1.  1.]

    Source: Ulyanov, Vedaldi & Lempitsky (2016), eq. 3. PyTorch's ``InstanceNorm2d`` has epsilon
    1e-5 and no parameters by default; ONNX's ``InstanceNormalization`` is NCHW.
    """
    x = as_array(x, "x")
    kept = canonical_axes(axis, x.ndim, "axis")
    if 0 in kept:
        raise ValueError(f"axis={axis!r} keeps axis 0, where instance norm has the examples.")
    x, reduced = _ready(x, other_axes((0, *kept), x.ndim))
    sync = canonical_axis_name(x, axis_name, axis_index_groups)
    return _apply(x, scale, bias, reduced, kept, mask, sync, epsilon, dtype, single_value)


def group_norm(
    x,
    scale,
    bias,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    axis: int = -1,
    axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask=None,
    axis_name=None,
    single_value: SingleValue = "warn",
    dtype=None,
    axis_index_groups=None,
) -> jax.Array:
    r"""Normalise each example over its positions and a group of its channels.

    .. math::
        y = \gamma\, \frac{x - \mu_g}{\sqrt{v_g + \epsilon}} + \beta, \qquad
        g = \lfloor c \cdot G / C \rfloor

    Groups are runs of neighbouring channels. One group is layer norm over all axes but 0; a group
    for each channel is :func:`bnjax.instance_norm`.

    Args:
      x: floating or complex, for example ``(N, H, W, C)``.
      scale, bias: one entry a channel, a scalar, or None.
      num_groups: number of groups G; it must divide the number of channels.
      group_size: channels in a group, with ``num_groups=None``.
      axis: the channel axis: -1 for NHWC, 1 for NCHW.
      axes: the axes to reduce, ``axis`` among them; all but axis 0 by default, and all of a
        vector.
      epsilon, mask, axis_name, single_value, dtype, axis_index_groups: as in
        :func:`bnjax.layer_norm`.

    Returns:
      ``y`` of the shape of ``x``.

    Raises:
      TypeError, ValueError: as :func:`bnjax.layer_norm`; ``num_groups`` or ``group_size`` does
        not divide the channels, or not exactly one of them is None.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> print(bnjax.group_norm(x, None, None, num_groups=2).round(3))
      [[-1.  1. -1.  1.]]

    Source: Wu & He (2018), eq. 7. PyTorch's ``GroupNorm`` and ONNX's ``GroupNormalization`` order
    groups alike, channels on axis 1 and epsilon 1e-5.
    """
    x = as_array(x, "x")
    default = range(min(1, x.ndim - 1), x.ndim)
    x, reduced = _ready(x, default if axes is None else axes)
    (channel,) = canonical_axes((axis,), x.ndim, "axis")
    channels = x.shape[channel]
    num_groups, size = groups_of(channels, num_groups, group_size)
    if channel not in reduced:
        raise ValueError(f"axes={axes!r} must hold the channel axis {axis}, which is grouped.")
    sync = canonical_axis_name(x, axis_name, axis_index_groups)
    positions = tuple(a for a in reduced if a != channel)
    if positions:
        # Instance norm, whose statistics are then merged over the channels of each group: on CPU,
        # twice as fast as one reduction over axes that are not neighbours.
        sync = sync._replace(pool=Pool(channel, size))
        return _apply(x, scale, bias, positions, channel, mask, sync, epsilon, dtype, single_value)

    scale, bias = as_params(scale, bias)
    for v, name in ((scale, "scale"), (bias, "bias")):
        if v is not None and v.ndim:
            check_features(v.shape, x.shape, (channel,), name)

    def split(v):
        """The channel axis as groups and members."""
        if v is None or jnp.ndim(v) == 0:
            return v
        at = channel if jnp.ndim(v) == x.ndim else 0
        whole = jnp.shape(v)[at] == channels  # a mask may have size 1 there
        cut = (num_groups, size) if whole else (1, 1)
        v = cuttable(v, at, cut[0])
        return v.reshape(*v.shape[:at], *cut, *v.shape[at + 1 :])

    members, both = (channel + 1,), (channel, channel + 1)
    params, mask = (split(scale), split(bias)), split(check_mask(mask, x))
    y = _apply(split(x), *params, members, both, mask, sync, epsilon, dtype, single_value)
    return sharded_like(y.reshape(x.shape), x)


def groups_of(channels: int, num_groups: int | None, group_size: int | None) -> tuple[int, int]:
    """Number and size of the groups of ``channels``, from whichever is given."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"one of num_groups={num_groups} and group_size={group_size} must be None, and the "
            "other not. To give group_size, give num_groups=None as well."
        )
    name, given = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    given = whole_number(given, name, 1)
    if channels % given:
        raise ValueError(f"{name}={given} does not divide the {channels} channels of x.")
    other = channels // given
    return (given, other) if group_size is None else (other, given)


def _ready(x, axes):
    x = as_array(x, "x")
    check_inexact(x)
    return x, canonical_axes(axes, x.ndim, "axes")


def _apply(
    x, scale, bias, reduced, kept, mask, sync, epsilon, dtype, single_value="allow", about_mean=True
):
    """Check what is left, and call the jitted norm; ``kept`` are the axes of scale and bias."""
    rule = Rule(reduced, check_epsilon(epsilon), output_dtype(dtype, x), sync, about_mean)
    check_choice("single_value", single_value, get_args(SingleValue))
    if about_mean and size_of(x.shape, reduced) * merged_sets(sync) == 1:
        _report_single_value(single_value, x.shape, reduced)
    kept = canonical_axes(kept, x.ndim, "param_axes")
    scale, bias = as_params(scale, bias)
    return _norm(x, scale, bias, check_mask(mask, x), kept, rule)


def _report_single_value(single_value, shape, reduced):
    message = (
        f"each mean of x of shape {shape} is that of one value (reduced axes {reduced}), so y is "
        "bias, whatever x is. Reduce more axes, or choose single_value='allow'."
    )
    if single_value == "error":
        raise ValueError(message)
    if single_value == "warn":
        warn(message)


@functools.partial(jax.jit, static_argnames=("kept", "rule"))
def _norm(x, scale, bias, mask, kept, rule: Rule):
    dtype = compute_dtype(x.dtype, rule.dtype)
    scale, bias = expand_params(scale, bias, x.shape, kept, dtype)
    return standardize(x, mask, scale, bias, None, rule)[0]
