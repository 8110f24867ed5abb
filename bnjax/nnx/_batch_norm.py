"""``flax.nnx.BatchNorm``, with the arithmetic of :func:`bnjax.batch_norm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes
from jax.nn import initializers
from jax.typing import ArrayLike

from bnjax._flax import as_input, batch_stats_of, inexact_dtype, param_dtype_of, run_batch_norm
from bnjax._switches import AS_CALLED, Switches
from bnjax.core import batch_norm
from bnjax.core._checks import as_array, check_switch
from bnjax.core._programs import SingleValue


class BatchNorm(nnx.Module):
    r"""Batch normalisation, a drop-in replacement for ``flax.nnx.BatchNorm``.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta

    Same constructor, call, ``train()`` / ``eval()`` / ``nnx.view`` and variables (``nnx.Param``
    ``scale`` and ``bias``, ``nnx.BatchStat`` ``mean`` and ``var``), so a model or a checkpoint
    moves over, and back, by changing an import. What differs is the arithmetic, see
    :func:`bnjax.batch_norm`: accurate at any offset, and running statistics are used in float32
    even when ``dtype`` is half precision (Flax casts them first: a variance over 65,504 becomes
    infinite in float16).

    Args:
      num_features: number of features.
      use_running_average: normalise by the running statistics; ``train()`` and ``eval()`` set it.
      axis: the feature axis of ``x``: -1 for NHWC, 1 for NCHW.
      momentum: weight of the old running value (``decay`` in the core; PyTorch's is
        ``1 - momentum``). None averages all updates and adds a ``count``.
      epsilon: added to the variance.
      dtype: dtype of ``y``; by default the promotion of input, parameters and statistics.
      param_dtype: dtype of ``scale`` and ``bias``.
      use_bias, use_scale: whether there is a β, a γ.
      bias_init, scale_init: their initialisers, zeros and ones.
      axis_name: mapped axis or axes to merge statistics over (``shard_map``, ``nnx.vmap``).
      axis_index_groups: groups of indices of that axis to merge separately.
      use_fast_variance: accepted, without effect.
      promote_dtype: applied to input and parameters if it is not Flax's own; what it makes of
        the statistics is not used.
      rngs: stream ``params`` for the initialisers.
      bias_metadata, scale_metadata: passed on to ``nnx.Param``.
      update_stats: False leaves the running statistics as they are, whatever normalises.
      debias: correct the running statistics for their start; adds a ``count``, and an evaluation
        before the first update warns.
      ddof: 1 stores the sample variance, like PyTorch.
      virtual_batch_size: ghost batch norm in training.
      skip_nonfinite: a batch with infinite or NaN moments leaves the statistics as they were.
      single_value: one value a feature in training: "warn", "error", "allow" or "running".

    Raises:
      ValueError: an option is illegal or shapes do not fit, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import BatchNorm
      >>> norm = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0], [3.0]]))
      >>> print(y.round(3).ravel(), norm.mean[...])
      [-1.  1.] [0.2]

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2. PyTorch stores the sample variance
    (``ddof=1``) and calls the weight of the *new* value ``momentum``.
    """

    pending: nnx.Variable  # only inside bnjax.nnx.one_update
    switches: Switches = AS_CALLED  # set by bnjax.surgery.freeze

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = initializers.zeros,
        scale_init: Any = initializers.ones,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        update_stats: bool = True,
        debias: bool = False,
        ddof: int = 0,
        virtual_batch_size: int | None = None,
        skip_nonfinite: bool = False,
        single_value: SingleValue = "warn",
    ):
        def param(name, use, init, metadata):
            dtype = param_dtype_of(param_dtype)
            if not check_switch(name, use):
                return nnx.data(None)
            return nnx.Param(init(rngs.params(), (num_features,), dtype), **metadata)

        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))
        self.scale = param("use_scale", use_scale, scale_init, scale_metadata)
        self.bias = param("use_bias", use_bias, bias_init, bias_metadata)

        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.update_stats = update_stats
        self.debias = debias
        self.ddof = ddof
        self.virtual_batch_size = virtual_batch_size
        self.skip_nonfinite = skip_nonfinite
        self.single_value: SingleValue = single_value
        if self._counts():
            self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalise ``x`` and, in training, update the running statistics.

        Args:
          x: floating, complex or integer (then computed as float32), any shape.
          use_running_average: takes precedence over the attribute.
          mask: boolean (or 0 and 1), broadcastable to ``x``; True counts.

        Returns:
          ``y`` of the shape of ``x``.
        """
        use_running_average = first_from(
            use_running_average,
            self.use_running_average,
            error_msg=(
                "use_running_average is not set: call the layer with use_running_average=True or "
                "False, give it to the constructor, use train() or eval() of the model, or "
                "nnx.view(model, use_running_average=...)."
            ),
        )
        variables = self._statistics()
        stats = batch_stats_of(**{name: v[...] for name, v in variables.items()})
        pending = getattr(self, "pending", None)
        state = stats if pending is None else pending.get_value()
        x, scale, bias, dtype = self._promoted(as_array(x, "x"), stats)
        y, new = run_batch_norm(
            self,
            x,
            scale,
            bias,
            state,
            self.switches,
            use_running_average=use_running_average,
            mask=mask,
            dtype=dtype,
            counted="count" in variables,
        )
        if new is not state:
            if pending is not None:
                pending.set_value(new)
            for name, variable in variables.items():
                variable.set_value(getattr(new.after, name))
        return y

    def set_view(
        self, use_running_average: bool | None = None, switches: Switches | None = None
    ) -> None:
        """Called by ``nnx.view``.

        Args:
          use_running_average: normalise by the running statistics; None changes nothing.
          switches: see :func:`bnjax.surgery.freeze`; None changes nothing.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if switches is not None:
            self.switches = switches

    def _core(self) -> Callable[..., Any]:
        """The function of the core that normalises."""
        return batch_norm

    def _counts(self) -> bool:
        """Whether the updates are counted in ``count``."""
        return self.debias or self.momentum is None

    def _statistics(self) -> dict[str, nnx.BatchStat]:
        """The variables of the statistics, by the names that the core has for them."""
        names = ("mean", "var", "count")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def _promoted(self, x, stats):
        """Input and parameters, and the dtype of the output, by Flax's rules of promotion."""
        scale, bias = (None if v is None else v[...] for v in (self.scale, self.bias))
        if self.promote_dtype is not dtypes.promote_dtype:
            arrays = (x, stats.mean, stats.var, scale, bias)
            x, _, _, scale, bias = self.promote_dtype(arrays, dtype=self.dtype)
        dtype = self.dtype or inexact_dtype(x, stats.mean, stats.var, scale, bias)
        return as_input(x, dtype), scale, bias, dtype
