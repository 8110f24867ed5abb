"""The training step around batch norm: state, accumulation and optimizer masks; needs optax."""

from bnjax.training._begin_update import begin_update
from bnjax.training._by_path import label_by_path, weight_decay_mask
from bnjax.training._state import TrainState
from bnjax.training._step import eval_step, train_step

__all__ = [
    "TrainState",
    "begin_update",
    "eval_step",
    "label_by_path",
    "train_step",
    "weight_decay_mask",
]
