"""Change a trained model: freeze batch norm layers by path."""

from bnjax.surgery._freeze import freeze, trained, unfreeze

__all__ = ["freeze", "trained", "unfreeze"]
