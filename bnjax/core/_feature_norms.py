"""Layer, instance and RMS norm (and group norm): batch norm's arithmetic over other axes.

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
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import Axes, other_axes
from bnjax.core._checks import as_inexact, canonical_axes, check_choice
from bnjax.core._merge import AxisName, IndexGroups
from bnjax.core._rows import in_one_kernel
from bnjax.core._rule import Inputs, Rule, inputs_for, rule_for
from bnjax.core._standardize import standardize
from bnjax.core._warn import warn

SingleValue = Literal["error", "warn", "allow"]


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axes: Axes = -1,
    param_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    single_value: SingleValue = "warn",
    dtype: DTypeLike | None = None,
    axis_index_groups: IndexGroups | None = None,
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
    x = as_inexact(x, "x")
    rule = _of_axes(x, axes, param_axes, epsilon, dtype, axis_name, axis_index_groups)
    return apply_rule(rule._replace(near_zero=True), x, mask, scale, bias, single_value)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axes: Axes = -1,
    param_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    dtype: DTypeLike | None = None,
    axis_index_groups: IndexGroups | None = None,
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
    x = as_inexact(x, "x")
    rule = _of_axes(x, axes, param_axes, epsilon, dtype, axis_name, axis_index_groups)
    return apply_rule(rule._replace(about_mean=False), x, mask, scale, bias, "allow")


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    single_value: SingleValue = "warn",
    dtype: DTypeLike | None = None,
    axis_index_groups: IndexGroups | None = None,
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
    x = as_inexact(x, "x")
    kept = canonical_axes(axis, x.ndim, "axis")
    if 0 in kept:
        raise ValueError(f"axis={axis!r} keeps axis 0, where instance norm has the examples.")
    reduced = other_axes((0, *kept), x.ndim)
    rule = rule_for(x, reduced, kept, epsilon, dtype, axis_name, axis_index_groups)
    return apply_rule(rule, x, mask, scale, bias, single_value)


def _of_axes(x: jax.Array, axes: Axes, param_axes: Axes | None, *options: Any) -> Rule:
    """The rule of a norm over ``axes``; ``options`` as of :func:`rule_for`."""
    reduced = canonical_axes(axes, x.ndim, "axes")
    features = reduced if param_axes is None else canonical_axes(param_axes, x.ndim, "param_axes")
    return rule_for(x, reduced, features, *options)


def apply_rule(
    rule: Rule,
    x: jax.Array,
    mask: ArrayLike | None,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    single_value: SingleValue,
) -> jax.Array:
    """Check what is left, and call the jitted norm."""
    check_choice("single_value", single_value, get_args(SingleValue))
    if single_value != "allow" and rule.values_a_mean(x.shape) == 1:
        message = (
            f"each mean of x of shape {x.shape} is that of one value (reduced axes {rule.axes}), "
            "so y is bias, whatever x is. Reduce more axes, or choose single_value='allow'."
        )
        if single_value == "error":
            raise ValueError(message)
        warn(message)
    return by_own_statistics(inputs_for(rule, x, mask, scale, bias), rule)


@functools.partial(jax.jit, static_argnames="rule")
def by_own_statistics(inputs: Inputs, rule: Rule) -> jax.Array:
    """The norm itself."""
    rule = rule._replace(short_rows=in_one_kernel(inputs.x, inputs.mask, rule))
    guess = None
    if rule.near_zero:
        ones = (1 if a in rule.axes else n for a, n in enumerate(inputs.x.shape))
        guess = jnp.zeros(tuple(ones), rule.wide)
    return standardize(inputs.x, inputs.mask, *inputs.params(rule), None, guess, rule)[0]
