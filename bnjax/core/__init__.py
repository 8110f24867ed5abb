"""The functional core: arrays in, arrays out, in the order data flows through it.

``moments`` (and ``merge``) -> ``normalize`` -> ``scale_shift`` is batch norm taken apart;
``batch_norm`` is the whole, with the running statistics of ``BatchStats``. Needs jax alone.

Every norm takes the same way. At the door ``_rule`` makes of its arguments a ``Rule`` and
``Inputs``, with the errors of ``_checks``. ``_standardize`` holds the one derivative rule: it takes
``_statistics`` (``_sums`` about a ``_shift``, chosen in ``_centre`` for each platform; merged by
``_merge``) and applies ``_affine``. What a norm with running statistics does beside that is chosen
in ``_programs``; how those move is in ``_batch_stats``, and ``_pending_update`` where several
batches move them once.
"""

from bnjax.core._batch_norm import batch_norm
from bnjax.core._batch_renorm import batch_renorm
from bnjax.core._batch_stats import BatchStats, init_batch_stats, update_batch_stats
from bnjax.core._checkpoint import save_norm_statistics
from bnjax.core._dataset_moments import dataset_moments
from bnjax.core._feature_norms import instance_norm, layer_norm, rms_norm
from bnjax.core._group_norm import group_norm
from bnjax.core._moments import Moments, merge, moments
from bnjax.core._normalize import normalize, scale_shift
from bnjax.core._pending_update import PendingUpdate, begin_update
from bnjax.core._spectral_norm import SpectralState, init_spectral_norm, spectral_norm
from bnjax.core._weight_norms import weight_norm, weight_standardize

__all__ = [
    "BatchStats",
    "Moments",
    "PendingUpdate",
    "SpectralState",
    "batch_norm",
    "batch_renorm",
    "begin_update",
    "dataset_moments",
    "group_norm",
    "init_batch_stats",
    "init_spectral_norm",
    "instance_norm",
    "layer_norm",
    "merge",
    "moments",
    "normalize",
    "rms_norm",
    "save_norm_statistics",
    "scale_shift",
    "spectral_norm",
    "update_batch_stats",
    "weight_norm",
    "weight_standardize",
]
