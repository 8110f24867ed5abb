"""Norms under one call, so that a network can be built with any of them.

Each is called as `norm(use_running_average=..., momentum=..., dtype=...)` and makes the layer.
Make one once and use that object: networks with the same norm then share their compiled programs.
"""

from functools import partial
from typing import Any

from bnjax.linen import BatchNorm, BatchRenorm, GroupNorm
from experiments.common.models import Norm


def batch_norm(**options: Any) -> Norm:
    """Batch norm with some of its options set, such as `virtual_batch_size`."""
    return partial(BatchNorm, **options)


def batch_renorm(**options: Any) -> Norm:
    """Batch renormalisation with some of its options set, such as `r_max`."""
    return partial(BatchRenorm, **options)


def group_norm(num_groups: int) -> Norm:
    """Group norm, which is the same in training and evaluation."""
    return partial(_stateless, GroupNorm, num_groups=num_groups)


def _stateless(layer: Any, *, use_running_average: bool, momentum: float, dtype: Any, **options):
    return layer(dtype=dtype, **options)
