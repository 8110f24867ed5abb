"""``flax.linen.BatchNorm``, with the arithmetic of :func:`bnjax.batch_norm`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import ArrayLike

from bnjax._flax import as_input, batch_stats_of, inexact_dtype, param_dtype_of, run_batch_norm
from bnjax._switches import AS_CALLED
from bnjax.core import batch_norm
from bnjax.core._checks import as_array, canonical_axes, check_switch
from bnjax.core._programs import SingleValue
from bnjax.linen._pending import check_not_hidden, pending_update

field = dataclasses.field


class BatchNorm(nn.Module):
    r"""Batch normalisation, a drop-in replacement for ``flax.linen.BatchNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta

    Same fields and defaults in the same order, same call, same variables
    (``params/{scale,bias}``, ``batch_stats/{mean,var}``), so a model or a checkpoint moves over,
    and back, by changing an import. What differs is the arithmetic, see
    :func:`bnjax.batch_norm`: accurate at any offset (``use_fast_variance`` is accepted and needed
    no more), faster, and without a float32 copy of a half-precision input.

    The fields after ``force_float32_reductions`` are new, keyword-only, and off by default.

    Attributes:
      use_running_average: normalise by ``batch_stats`` (True) or by the batch (False). Given here
        or in the call, not in both.
      axis: the feature axis or axes of ``x``: -1 for NHWC, 1 for NCHW.
      momentum: weight of the old running value (``decay`` in the core; PyTorch's is
        ``1 - momentum``). None averages all updates and adds ``batch_stats/count``.
      epsilon: added to the variance.
      dtype: dtype of ``y``; by default the promotion of input and parameters.
      param_dtype: dtype of ``scale`` and ``bias``.
      use_bias, use_scale: whether there is a β, a γ.
      bias_init, scale_init: their initialisers, zeros and ones.
      axis_name: mapped axis or axes to merge statistics over (``shard_map``, ``vmap``).
      axis_index_groups: groups of indices of that axis to merge separately.
      use_fast_variance: accepted, without effect.
      force_float32_reductions: False stores ``batch_stats`` in ``param_dtype``, as in Flax.
        Reductions are in float32 at least all the same.
      update_stats: False leaves ``batch_stats`` as they are, whatever normalises.
      debias: correct the running statistics for their start; adds ``batch_stats/count``, and an
        evaluation before the first update warns.
      ddof: 1 stores the sample variance in ``batch_stats``, like PyTorch.
      virtual_batch_size: ghost batch norm in training.
      skip_nonfinite: a batch with infinite or NaN moments leaves ``batch_stats`` as they were.
      single_value: one value a feature in training: "warn", "error", "allow" or "running".

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import BatchNorm
      >>> norm = BatchNorm(momentum=0.9)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).ravel(), updates["batch_stats"]["mean"])
      [-1.  1.] [0.2]

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2. PyTorch stores the sample variance
    (``ddof=1``) and calls the weight of the *new* value ``momentum``.
    """

    use_running_average: bool | None = None
    axis: int | tuple[int, ...] = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = initializers.zeros
    scale_init: Any = initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    update_stats: bool = field(default=True, kw_only=True)
    debias: bool = field(default=False, kw_only=True)
    ddof: int = field(default=0, kw_only=True)
    virtual_batch_size: int | None = field(default=None, kw_only=True)
    skip_nonfinite: bool = field(default=False, kw_only=True)
    single_value: SingleValue = field(default="warn", kw_only=True)

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalise ``x``.

        While the module is initialising, the running statistics are not updated and
        ``axis_name`` need not exist.

        Args:
          x: floating, complex or integer (then computed as float32), any shape.
          use_running_average: see the attribute; exactly one of the two may be None.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        x = as_array(x, "x")
        shape = tuple(x.shape[a] for a in canonical_axes(self.axis, x.ndim, "axis"))
        scale = self._param("scale", self.use_scale, self.scale_init, shape)
        bias = self._param("bias", self.use_bias, self.bias_init, shape)
        # There only where bnjax.surgery.freeze has put them; to be read before anything is written.
        switches = self.get_variable("batch_stats", "switches") or AS_CALLED
        variables = self._statistics(shape)
        pending = pending_update(self)
        if pending is None:
            state = batch_stats_of(**{name: v.value for name, v in variables.items()})
        else:
            state = pending.value
        y, new = run_batch_norm(
            self,
            as_input(x),
            scale,
            bias,
            state,
            switches,
            use_running_average=nn.merge_param(
                "use_running_average", self.use_running_average, use_running_average
            ),
            mask=mask,
            dtype=self.dtype or inexact_dtype(x, scale, bias),
            counted="count" in variables,
            initializing=self.is_initializing(),
        )
        if new is not state:
            if pending is None:
                check_not_hidden(self)
            else:
                pending.value = new
            for name, variable in variables.items():
                variable.value = self._stored(name, getattr(new.after, name), variable.value)
        return y

    @nn.nowrap
    def _core(self) -> Callable[..., Any]:
        """The function of the core that normalises."""
        return batch_norm

    @nn.nowrap
    def _counts(self) -> bool:
        """Whether the updates are counted in ``batch_stats/count``."""
        return self.debias or self.momentum is None

    @nn.nowrap
    def _param(self, name, use, init, shape):
        dtype = param_dtype_of(self.param_dtype)
        return (
            self.param(name, init, list(shape), dtype) if check_switch(f"use_{name}", use) else None
        )

    @nn.nowrap
    def _statistics(self, shape) -> dict[str, nn.Variable]:
        """The variables of the collection, by the names that the core has for them."""
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        variables = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, shape, dtype),
            "var": self.variable("batch_stats", "var", jnp.ones, shape, dtype),
        }
        # What is evaluated may come from Flax, which keeps no count: then it is not known.
        known = self.has_variable("batch_stats", "count")
        if self._counts() and (known or self.is_mutable_collection("batch_stats")):
            variables["count"] = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        return variables

    @nn.nowrap
    def _stored(self, name, new, old):
        """A new statistic as its variable holds it."""
        if name == "count":
            # An open update counts each feature where the statistics came without a counter.
            return new if jnp.ndim(old) else new.max()
        return new if self.force_float32_reductions else new.astype(old.dtype)
