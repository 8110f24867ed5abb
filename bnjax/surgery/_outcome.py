"""What a surgery of a whole model returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from bnjax._variables import Path
from bnjax.surgery._models import Model, bind
from bnjax.surgery._pairs import account
from bnjax.surgery._verify import Difference, compare


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The model after a surgery; ``str`` of it is an account of what was done.

    Attributes:
      model: of nnx, a new ``nnx.GraphDef`` (``nnx.merge(model, variables)``); of linen, an
        :class:`AlteredModule`, with ``apply``.
      variables: a tree of the kind that was given. The arrays that did not change are shared.
      changed: what became of each layer, by path.
      left_alone: why each other layer stayed, by path.
      difference: of the outputs before and after on the example that was given, or None if there
        was none to compute with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from bnjax.surgery import fold
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> model = nn.Sequential([nn.Dense(3), norm, nn.relu, norm.copy()])
      >>> x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
      >>> print(fold(model, model.init(jax.random.key(0), jnp.ones((2, 4))), x))
      changed: 1
        layers_1: into layers_0 before it
      left alone: 1
        layers_3: input comes from relu; output goes to the output
      outputs not compared

    Source: bnjax.
    """

    model: Any
    variables: Any
    changed: Mapping[Path, str]
    left_alone: Mapping[Path, str]
    difference: Difference | None

    def __str__(self) -> str:
        return (
            account("changed", self.changed)
            + account("left alone", self.left_alone, always=False)
            + f"\n{self.difference or 'outputs not compared'}"
        )


def verified(before: tuple[Model, Any], after: tuple[Model, Any], args, kwargs, eps: float):
    """The difference that a surgery made to one call, or None where there are no arrays.

    Raises:
      ValueError: it is larger than the rounding errors of a network would be.
    """
    (old, arrays), (new, _) = (bind(model, args, kwargs) for model, _ in (before, after))
    if any(isinstance(v, jax.ShapeDtypeStruct) for v in jax.tree.leaves((before[1], arrays))):
        return None
    try:
        # The square root of eps: far above rounding, far below what a wrong layer would make.
        tolerance = math.sqrt(eps)
        return compare((old, before[1]), (new, after[1]), [tuple(arrays)], tolerance)
    except ValueError as error:
        raise ValueError(
            f"the surgery changed what the model computes: {error} Something reads the variables "
            "of a layer past its call, or a hook changes them. Choose other layers with layers=."
        ) from error
