"""What a layer does after its batch norm was folded, or its bias dropped."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Passes:
    """A norm that hands on its input, in the dtype its output had."""

    dtype: Any  # None for that of the input

    stands_for_folded_norm = True  # read by bnjax.interop

    def linen(self, layer, call, args, kwargs):
        """See ``Change``."""
        return _cast(args[0] if args else kwargs["x"], self.dtype)

    def nnx(self, layer, params):
        """See ``Change``."""
        return Passing(self.dtype)


class Passing(nnx.Module):
    """The nnx module that is left of a folded norm.

    Args:
      dtype: of its output; None for that of the input.
    """

    stands_for_folded_norm = True  # read by bnjax.interop

    def __init__(self, dtype: Any):
        self.dtype = dtype

    def __call__(self, x, *args, **kwargs) -> jax.Array:
        """``x`` itself; further arguments are those of the norm that was here."""
        return _cast(x, self.dtype)


@dataclasses.dataclass(frozen=True)
class BiasAsStored:
    """A layer with weights that has a bias if its parameters do, whatever its author said."""

    use_bias: bool  # of a layer that is initialised

    def linen(self, layer, call, args, kwargs):
        """See ``Change``."""
        new = layer.is_initializing() and not layer.has_variable("params", "kernel")
        use_bias = self.use_bias if new else layer.has_variable("params", "bias")
        if layer.use_bias == use_bias:
            return call(*args, **kwargs)
        return layer.clone(parent=layer.scope.rewound(), use_bias=use_bias)(*args, **kwargs)

    def nnx(self, layer, params):
        """See ``Change``."""
        layer.use_bias = "bias" in params
        layer.bias = nnx.Param(params["bias"]) if layer.use_bias else nnx.data(None)
        return layer


def _cast(x, dtype):
    return x if dtype is None else x.astype(dtype)
