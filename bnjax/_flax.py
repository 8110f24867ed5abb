"""What linen and nnx say alike: a module's fields in the core's terms, and Flax's promotion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from bnjax._switches import Switches
from bnjax.core import BatchStats, PendingUpdate, batch_norm, batch_renorm
from bnjax.core._axes import at_least_float32, compute_dtype, narrow
from bnjax.core._checks import as_array, as_dtype, canonical_axes, check_switch, known_value


def run_batch_norm(
    module: Any,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    state: BatchStats | PendingUpdate,
    switches: Switches,
    *,
    use_running_average: bool,
    mask: ArrayLike | None,
    dtype: DTypeLike,
    counted: bool,
    initializing: bool = False,
) -> tuple[jax.Array, BatchStats | PendingUpdate]:
    """The output and the state after it, by the fields and the switches of ``module``.

    While initialising the input may be a tiny stand-in, outside of any mapping.
    """
    normalise: Any = module._core() if switches.corrected else batch_norm
    use_running_average = check_switch("use_running_average", use_running_average)
    update_stats = check_switch("update_stats", module.update_stats)
    return normalise(
        x,
        *switches.params(scale, bias),
        state,
        **switches.modes(
            train=not use_running_average,
            update_stats=update_stats and not use_running_average and not initializing,
        ),
        decay=module.momentum,
        axis=module.axis,
        ddof=module.ddof,
        debias=module.debias,
        virtual_batch_size=module.virtual_batch_size,
        skip_nonfinite=module.skip_nonfinite,
        single_value="allow" if initializing else module.single_value,
        unseen="warn" if counted and not initializing else "allow",
        **shared_options(module, mask, dtype, initializing),
    )


def shared_options(
    module: Any, mask: ArrayLike | None, dtype: DTypeLike, initializing: bool = False
) -> dict[str, Any]:
    """The options that every norm of the core takes."""
    mapped = not initializing
    return {
        "epsilon": module.epsilon,
        "mask": as_mask(mask),
        "dtype": dtype,
        "axis_name": module.axis_name if mapped else None,
        "axis_index_groups": module.axis_index_groups if mapped else None,
    }


def renorm_of(module: Any) -> Callable[..., Any]:
    """Batch renorm with the limits of ``module``."""
    limits = {"r_max": module.r_max, "d_max": module.d_max, "warmup_steps": module.warmup_steps}
    return functools.partial(batch_renorm, average=module.average, **limits)


def batch_stats_of(
    mean: jax.Array, var: jax.Array, count: jax.Array | np.ndarray | None = None
) -> BatchStats:
    """Variables of a module as the state of the core; without a count where nobody kept one."""
    # NumPy's zero is known under a trace, too.
    count = np.zeros((), np.int32) if count is None else count
    return BatchStats(at_least_float32(mean), at_least_float32(var), count)


def reduced_axes(module: Any, x: jax.Array) -> tuple[int, ...] | None:
    """The axes that ``module`` reduces, or None where the core is to choose."""
    axes = module.reduction_axes
    return None if axes is None else canonical_axes(axes, x.ndim, "reduction_axes")


def as_input(x: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """``x``, which may be of integers: these in the compute dtype of ``dtype``."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(compute_dtype(dtype))


def as_mask(mask: ArrayLike | None) -> jax.Array | None:
    """The mask of a module, where numbers may stand for booleans as they do in Flax.

    Other floats than 0 and 1 would be weights, which no mask holds.
    """
    if mask is None:
        return None
    mask = as_array(mask, "mask")
    if jnp.issubdtype(mask.dtype, jnp.floating):
        values = known_value(mask)
        if values is not None and not np.all((values == 0) | (values == 1)):
            raise ValueError(
                "mask must be boolean (True counts), or numbers that are 0 or 1, got others: "
                "examples cannot be weighted. Pass mask > 0."
            )
    return mask.astype(bool)


def param_dtype_of(dtype: Any) -> jnp.dtype:
    """The dtype of a module's parameters: floating or complex, or an error."""
    found = as_dtype(dtype, "param_dtype")
    if not jnp.issubdtype(found, jnp.inexact):
        raise ValueError(f"param_dtype must be floating or complex, got {found}.")
    return found


def inexact_dtype(*arrays: jax.Array | None) -> jnp.dtype:
    """The dtype Flax gives an output: the promotion of ``arrays`` (or None), never integer.

    Beside others a narrow dtype is the weaker one, as half precision is; two of them are float32.
    """
    with jax.numpy_dtype_promotion("standard"):
        dtypes = {jnp.dtype(a.dtype) for a in arrays if a is not None}
        if len(dtypes) > 1:
            dtypes = {d for d in dtypes if not narrow(d)} or {jnp.dtype(jnp.float32)}
        dtype = jnp.result_type(*dtypes)
        if narrow(dtype) and not jnp.issubdtype(dtype, jnp.floating):
            return jnp.dtype(jnp.float32)
        inexact = jnp.issubdtype(dtype, jnp.inexact)
        return dtype if inexact else jnp.promote_types(jnp.float32, dtype)
