"""Group norm: the axes of layer norm, with the channels in groups."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import Axes
from bnjax.core._checks import as_inexact, canonical_axes, whole_number
from bnjax.core._feature_norms import SingleValue, apply_rule
from bnjax.core._merge import AxisName, Groups, IndexGroups
from bnjax.core._rule import Rule, inputs_for, rule_for
from bnjax.core._sharding import cuttable, sharded_like


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    axis: int = -1,
    axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    single_value: SingleValue = "warn",
    dtype: DTypeLike | None = None,
    axis_index_groups: IndexGroups | None = None,
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
    x = as_inexact(x, "x")
    default = range(min(1, x.ndim - 1), x.ndim)
    reduced = canonical_axes(default if axes is None else axes, x.ndim, "axes")
    (channel,) = canonical_axes((axis,), x.ndim, "axis")
    groups, size = groups_of(x.shape[channel], num_groups, group_size)
    if channel not in reduced:
        raise ValueError(f"axes={axes!r} must hold the channel axis {axis}, which is grouped.")
    positions = tuple(a for a in reduced if a != channel)
    rule = rule_for(x, positions, (channel,), epsilon, dtype, axis_name, axis_index_groups)
    if not positions:
        return _of_channels_alone(rule, groups, size, x, mask, scale, bias, single_value)
    # Instance norm, whose statistics are then merged over the channels of each group: on CPU,
    # twice as fast as one reduction over axes that are not neighbours.
    rule = rule._replace(over=rule.over._replace(groups=Groups(channel, size)))
    return apply_rule(rule, x, mask, scale, bias, single_value)


def _of_channels_alone(rule: Rule, groups: int, size: int, x, mask, scale, bias, single_value):
    """Group norm without positions: layer norm of the channel axis cut into groups and members."""
    (channel,) = rule.features
    inputs = inputs_for(rule, x, mask, scale, bias)

    def split(v):
        if v.ndim == 0:
            return v
        at = channel if v.ndim == x.ndim else 0
        whole = v.shape[at] == x.shape[channel]  # a mask may have size 1 there
        cut = (groups, size) if whole else (1, 1)
        v = cuttable(v, at, cut[0])
        return v.reshape(*v.shape[:at], *cut, *v.shape[at + 1 :])

    rule = rule._replace(axes=(channel + 1,), features=(channel, channel + 1))
    x_cut, mask, scale, bias = jax.tree.map(split, inputs)
    y = apply_rule(rule, x_cut, mask, scale, bias, single_value)
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
