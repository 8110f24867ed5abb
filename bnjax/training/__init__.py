"""Training with batch norm, and the statistics after it; needs optax.

The step: :class:`TrainState`, :func:`train_step`, :func:`eval_step`, :func:`begin_update` and the
optimizer masks. Afterwards: :func:`average_variables`, :func:`recalibrate`, :func:`adapt`.
"""

from bnjax.training._average import average_variables
from bnjax.training._begin_update import begin_update
from bnjax.training._by_path import label_by_path, weight_decay_mask
from bnjax.training._recalibrate import adapt, recalibrate
from bnjax.training._state import TrainState
from bnjax.training._step import eval_step, train_step

__all__ = [
    "TrainState",
    "adapt",
    "average_variables",
    "begin_update",
    "eval_step",
    "label_by_path",
    "recalibrate",
    "train_step",
    "weight_decay_mask",
]
