"""Three switches of one batch norm layer, which outrank what the model's call says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Switches:
    """What of a layer is held: written by surgery, read by the modules.

    Without leaves, so it travels in any tree beside the running statistics; and part of the tree's
    *structure*, so a compiled step that has seen another setting is compiled anew.

    Attributes:
      affine: False stops the gradients of scale and bias.
      statistics: whether the running statistics are updated; None leaves it to layer and call.
      train: whether the batch normalises, or the running statistics; None leaves it to the call.
    """

    affine: bool = True
    statistics: bool | None = None
    train: bool | None = None

    def params(self, scale: Any, bias: Any) -> tuple[Any, Any]:
        """Scale and bias, held if they are to be."""
        return (scale, bias) if self.affine else jax.lax.stop_gradient((scale, bias))

    def modes(self, train: bool, update_stats: bool) -> dict[str, bool]:
        """The options ``train`` and ``update_stats`` of the core, given those of the call."""
        return {
            "train": train if self.train is None else self.train,
            "update_stats": update_stats if self.statistics is None else self.statistics,
        }

    def but(self, **fields) -> Switches:
        """These switches with some of them set."""
        return dataclasses.replace(self, **fields)


AS_CALLED = Switches()
