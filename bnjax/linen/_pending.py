"""Where a layer of linen finds the update of several batches that its caller has opened."""

from __future__ import annotations

from flax import linen as nn
from flax.linen import module as flax_module


def pending_update(layer: nn.Module) -> nn.Variable | None:
    """The variable that holds the :class:`bnjax.PendingUpdate` of ``layer``, if one is open.

    In the collection ``batch_moments`` from :func:`bnjax.training.begin_update`; or, as the
    training functions of this library put it, among the running statistics themselves, where it
    passes every lifted transformation that they pass.
    """
    for collection in ("batch_moments", "batch_stats"):
        if layer.has_variable(collection, "pending"):
            return layer.variable(collection, "pending")
    return None


def check_not_hidden(layer: nn.Module) -> None:
    """Raise if ``layer`` moves its statistics at once, though an update of them is open outside.

    Within ``nn.scan`` and ``nn.vmap`` a layer sees the collections alone that they name.
    """
    assert layer.scope is not None
    if layer.scope.debug_path == layer.scope.path:  # not within a lifted transformation
        return
    for outer in flax_module._context.module_stack:
        scope = getattr(outer, "scope", None)
        found = {} if scope is None else scope.root.variables().get("batch_moments", {})
        for key in layer.path:
            found = found.get(key, {})
        if "pending" in found:
            raise ValueError(
                f"the update of {'/'.join(layer.path)} that begin_update has opened does not reach "
                "it, and each call would be an update of its own: let nn.scan or nn.vmap around it "
                'map the collection as they do batch_stats, variable_axes={"batch_moments": 0}.'
            )
