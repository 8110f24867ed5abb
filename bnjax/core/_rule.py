"""How a norm normalises: its static choices and its arrays, checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import Axes, compute_dtype, other_axes, size_of
from bnjax.core._checks import (
    as_features,
    as_inexact,
    as_mask,
    canonical_axes,
    check_epsilon,
    output_dtype,
    whole_number,
)
from bnjax.core._merge import AxisName, IndexGroups, Over, merged_sets, over_devices


class Rule(NamedTuple):
    """What is normalised, and by what; hashable, for ``jax.jit``."""

    axes: tuple[int, ...]  # reduced
    features: tuple[int, ...]  # along which scale, bias and running statistics vary
    epsilon: float
    dtype: jnp.dtype  # of the output
    wide: jnp.dtype  # of the arithmetic
    over: Over = Over()
    about_mean: bool = True  # False: about zero, as in RMS norm
    near_zero: bool = False  # whether zero is a good guess of the mean
    short_rows: bool = False  # whether each set is one, see `_rows`
    virtual_batch_size: int | None = None

    def values_a_mean(self, shape: tuple[int, ...]) -> int:
        """How many values each mean is taken of."""
        return size_of(shape, self.axes) * merged_sets(self.over)

    def expand(self, v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """``v``, one number a feature or one for all, ready to broadcast against ``shape``."""
        if v.ndim == 0:
            return v.reshape((1,) * len(shape))
        return v.reshape(tuple(n if a in self.features else 1 for a, n in enumerate(shape)))


class Inputs(NamedTuple):
    """The arrays of one call; ``scale`` and ``bias`` of the shape of the features, or scalars."""

    x: jax.Array
    mask: jax.Array | None
    scale: jax.Array | None
    bias: jax.Array | None

    def params(self, rule: Rule) -> tuple[jax.Array | None, jax.Array | None]:
        """``scale`` and ``bias``, ready to broadcast against ``x``."""
        shape = self.x.shape
        scale, bias = jax.tree.map(
            lambda v: rule.expand(v, shape).astype(rule.wide), (self.scale, self.bias)
        )
        return scale, bias


def of_batch(
    x: ArrayLike,
    mask: ArrayLike | None,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axes,
    *options: Any,
) -> tuple[Inputs, Rule]:
    """Inputs and rule of a norm over all axes but ``axis``; ``options`` as of :func:`rule_for`."""
    x = as_inexact(x, "x")
    kept = canonical_axes(axis, x.ndim, "axis")
    rule = rule_for(x, other_axes(kept, x.ndim), kept, *options)
    return inputs_for(rule, x, mask, scale, bias), rule


def rule_for(
    x: jax.Array,
    axes: tuple[int, ...],
    features: tuple[int, ...],
    epsilon: float,
    dtype: DTypeLike | None,
    axis_name: AxisName | None = None,
    axis_index_groups: IndexGroups | None = None,
    virtual_batch_size: int | None = None,
) -> Rule:
    """The rule of a call with these options, or an error that names the one that is illegal."""
    if virtual_batch_size is not None:
        virtual_batch_size = whole_number(virtual_batch_size, "virtual_batch_size", 1)
        if 0 in features:
            raise ValueError(
                "virtual_batch_size cuts axis 0 into virtual batches, but axis keeps axis 0 as a "
                "feature axis. Move the batch to axis 0, or leave virtual_batch_size=None."
            )
    over = over_devices(x, axis_name, axis_index_groups)
    dtype = output_dtype(dtype, x)
    return Rule(
        axes,
        features,
        check_epsilon(epsilon),
        dtype,
        compute_dtype(x.dtype, dtype),
        over,
        virtual_batch_size=virtual_batch_size,
    )


def inputs_for(
    rule: Rule,
    x: jax.Array,
    mask: ArrayLike | None,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    names: tuple[str, str] = ("scale", "bias"),
) -> Inputs:
    """The arrays of a call, or an error that names the one that does not fit."""

    def ready(v, name):
        return None if v is None else as_features(v, name, x.shape, rule.features, rule.wide)

    return Inputs(x, as_mask(mask, x), ready(scale, names[0]), ready(bias, names[1]))
