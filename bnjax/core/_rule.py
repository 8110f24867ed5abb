"""How a norm normalises: its static choices and its arrays, checked."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from bnjax.core._axes import compute_dtype, expand, size_of
from bnjax.core._checks import as_features, as_mask, check_epsilon, output_dtype, whole_number
from bnjax.core._merge import AxisName, IndexGroups, Over, merged_sets, over_devices


class Rule(NamedTuple):
    """What is normalised, and by what; hashable, for ``jax.jit``."""

    axes: tuple[int, ...]  # reduced
    features: tuple[int, ...]  # along which scale, bias and running statistics vary
    epsilon: float
    dtype: jnp.dtype  # of the output
    over: Over = Over()
    about_mean: bool = True  # False: about zero, as in RMS norm
    virtual_batch_size: int | None = None

    def compute_dtype(self, x: jax.Array) -> jnp.dtype:
        """The dtype of the arithmetic on ``x``."""
        return compute_dtype(x.dtype, self.dtype)

    def values_a_mean(self, shape: tuple[int, ...]) -> int:
        """How many values each mean is taken of."""
        return size_of(shape, self.axes) * merged_sets(self.over)


class Inputs(NamedTuple):
    """The arrays of one call; ``scale`` and ``bias`` of the shape of the features, or scalars."""

    x: jax.Array
    mask: jax.Array | None
    scale: jax.Array | None
    bias: jax.Array | None

    def params(self, rule: Rule) -> tuple[jax.Array | None, jax.Array | None]:
        """``scale`` and ``bias``, ready to broadcast against ``x``."""
        dtype = rule.compute_dtype(self.x)

        def ready(v):
            return None if v is None else expand(v, self.x.shape, rule.features).astype(dtype)

        return ready(self.scale), ready(self.bias)


def rule_for(
    x: jax.Array,
    axes: tuple[int, ...],
    features: tuple[int, ...],
    epsilon: float,
    dtype: DTypeLike | None,
    axis_name: AxisName | None,
    axis_index_groups: IndexGroups | None,
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
    options = check_epsilon(epsilon), output_dtype(dtype, x), over
    return Rule(axes, features, *options, virtual_batch_size=virtual_batch_size)


def inputs_for(
    rule: Rule,
    x: jax.Array,
    mask: ArrayLike | None,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    names: tuple[str, str] = ("scale", "bias"),
) -> Inputs:
    """The arrays of a call, or an error that names the one that does not fit."""
    dtype = rule.compute_dtype(x)

    def ready(v, name):
        return None if v is None else as_features(v, name, x.shape, rule.features, dtype)

    return Inputs(x, as_mask(mask, x), ready(scale, names[0]), ready(bias, names[1]))
