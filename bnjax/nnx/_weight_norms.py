"""Flax's nnx wrappers that normalise the weights of a layer, with the arithmetic of the core.

Both call a copy of the layer that holds normalised weights and shares every other variable. The
parameters of the layer itself are never written (flax#5576).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.nn import initializers

from bnjax._flax import inexact_dtype, param_dtype_of
from bnjax.core import SpectralState, init_spectral_norm, spectral_norm, weight_norm
from bnjax.core._axes import Axes, compute_dtype
from bnjax.core._checks import canonical_axes, check_switch

KERNEL = nnx.PathContains("kernel")


class WeightNorm(nnx.Module):
    r"""A layer whose weights have length and direction as separate parameters.

    .. math::
        \hat w = g\, \frac{w}{\sqrt{\lVert w \rVert^2 + \epsilon}}

    A drop-in replacement for ``flax.nnx.WeightNorm``: same constructor, call and names of
    variables. The arithmetic is that of :func:`bnjax.weight_norm`. Gradients reach the raw
    weights and the scales, and a call leaves both as they are.

    Variables that the layer makes or changes in its call persist; plain Python attributes that
    it sets there are lost with the copy.

    Args:
      layer_instance: the layer; each call runs it with normalised weights.
      feature_axes: the axes with a norm of their own each; None for one norm of all.
      use_scale: whether there is a g: ``scales``, an ``nnx.Param`` by path of the weight.
      scale_init: its initialiser, ones.
      epsilon: added to the squared norm.
      dtype: dtype of the normalised weights, to which they are rounded once; by default the
        promotion of weights and scale. Half-precision weights with a scale of half precision are
        so handed to the layer in half precision, which it would otherwise leave.
      param_dtype: dtype of the scales.
      variable_filter: filter of nnx; the ``nnx.Param`` it lets through are normalised.
      promote_dtype: accepted, without effect.
      rngs: stream ``params`` for the initialiser.

    Raises:
      ValueError: shapes do not fit, or the layer has got weights that it did not have when it
        was wrapped.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import WeightNorm
      >>> kernel_init = nnx.initializers.constant(5.0)
      >>> layer = nnx.Linear(4, 1, kernel_init=kernel_init, rngs=nnx.Rngs(0))
      >>> layer = WeightNorm(layer, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.eye(4)).ravel().round(3), layer.layer_instance.kernel[...].ravel())
      [0.5 0.5 0.5 0.5] [5. 5. 5. 5.]

    Source: Salimans & Kingma (2016), eq. 2. PyTorch's ``weight_norm`` has no epsilon and starts g
    at the norm of the weights. Flax writes the normalised weights into the parameters at each
    call, scale included; and keeps the scales as plain arrays of float32, which an optimizer of
    ``nnx.Param`` does not train.
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = True,
        scale_init: Any = initializers.ones,
        epsilon: float = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        variable_filter: Any = KERNEL,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
    ):
        self.layer_instance = layer_instance
        self.feature_axes: Axes = () if feature_axes is None else feature_axes
        self.use_scale = check_switch("use_scale", use_scale)
        self.scale_init = scale_init
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype

        def scale(w):
            kept = canonical_axes(self.feature_axes, w.ndim, "feature_axes")
            shape = [w.shape[a] for a in kept]
            return nnx.Param(scale_init(rngs.params(), shape, param_dtype_of(param_dtype)))

        weights = [(p, w) for p, w in _params(layer_instance) if self.variable_filter(p, w)]
        self.scales = nnx.data({path: scale(w) for path, w in weights} if use_scale else None)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalised weights.

        Args:
          x, args, kwargs: passed to the layer.

        Returns:
          What the layer returns.
        """
        return _call(self.layer_instance, self._normalized, (x, *args), kwargs)

    def _normalized(self, path, param):
        if not self.variable_filter(path, param):
            return None
        scale = None if self.scales is None else _kept_for(path, self.scales, path)[...]
        w = param[...]
        axis = None if self.feature_axes == () else self.feature_axes
        target = self.dtype or inexact_dtype(w, scale)
        wide = w.astype(compute_dtype(w.dtype, target))
        return weight_norm(wide, scale, axis=axis, epsilon=self.epsilon).astype(target)


class SpectralNorm(nnx.Module):
    r"""A layer whose weights are divided by their largest singular value.

    .. math::
        \hat W = W / \sigma(W)

    with ``W`` as a matrix of all axes but the last by the last, for every ``nnx.Param`` of rank 2
    or more. A drop-in replacement for ``flax.nnx.SpectralNorm``: same constructor, call,
    ``train()`` / ``eval()`` and names of variables (``nnx.BatchStat`` ``u`` and ``sigma`` by path
    of the weight). The arithmetic is that of :func:`bnjax.spectral_norm`. Gradients reach the raw
    weights, and a call leaves them as they are.

    Variables that the layer makes or changes in its call persist; plain Python attributes that
    it sets there are lost with the copy.

    Args:
      layer_instance: the layer; each call runs it with normalised weights.
      n_steps: power iterations a call; below 1 nothing is normalised.
      epsilon: no norm below its root is divided by.
      dtype: dtype of the normalised weights, to which they are rounded once; by default the
        promotion of weights and ``u``.
      param_dtype: dtype of ``u`` and ``sigma``.
      error_on_non_matrix: refuse parameters of rank 3 or more.
      update_stats: keep what the power iteration finds; ``train()`` and ``eval()`` set it, by way
        of ``use_running_average``, its opposite.
      rngs: stream ``params`` for ``u``.

    Raises:
      TypeError: weights are complex.
      ValueError: a parameter has rank 3 or more, with ``error_on_non_matrix``; or the layer has
        got weights that it did not have when it was wrapped.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from bnjax.nnx import SpectralNorm
      >>> kernel_init = nnx.initializers.constant(5.0)
      >>> layer = nnx.Linear(4, 1, kernel_init=kernel_init, rngs=nnx.Rngs(0))
      >>> layer = SpectralNorm(layer, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.eye(4)).ravel().round(3), layer.layer_instance.kernel[...].ravel())
      [0.5 0.5 0.5 0.5] [5. 5. 5. 5.]

    Source: Miyato et al. (2018), Algorithm 1. PyTorch iterates in training only. Flax writes the
    divided weights into the parameters at each call, so that ``sigma`` runs away from that of the
    weights an optimizer moves; and is stuck for good once weights were zero.
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        n_steps: int = 1,
        epsilon: float = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        rngs: nnx.Rngs,
    ):
        self.layer_instance = layer_instance
        self.n_steps = n_steps
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.error_on_non_matrix = error_on_non_matrix
        self.use_running_average = not update_stats

        stats = {}
        for path, w in _params(layer_instance):
            if self._is_weight(path, w):
                state = init_spectral_norm(rngs.params(), w.shape, param_dtype)
                for name, value in state._asdict().items():
                    stats[*path, name] = nnx.BatchStat(value)
        self.batch_stats = nnx.data(stats)

    def __call__(self, x: Any, update_stats: bool | None = None) -> Any:
        """Call the layer with normalised weights.

        Args:
          x: passed to the layer.
          update_stats: takes precedence over that of the constructor. False leaves ``u`` and
            ``sigma`` as they are, and the output the same from call to call.

        Returns:
          What the layer returns.
        """
        if update_stats is None:
            update_stats = not self.use_running_average
        update_stats = check_switch("update_stats", update_stats)

        def normalized(path, param):
            return self._normalized(path, param, update_stats)

        return _call(self.layer_instance, normalized, (x,), {})

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by ``nnx.view``.

        Args:
          use_running_average: leave ``u`` and ``sigma`` as they are; None changes nothing.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _is_weight(self, path, param) -> bool:
        if param.ndim <= 1 or self.n_steps < 1:
            return False
        if param.ndim > 2 and self.error_on_non_matrix:
            raise ValueError(
                f"{'/'.join(map(str, path))} has shape {param.shape}, but error_on_non_matrix=True "
                "allows rank 2 at most. Set it to False to take all axes but the last as one."
            )
        return True

    def _normalized(self, path, param, update_stats):
        if not self._is_weight(path, param):
            return None
        u, sigma = (_kept_for(path, self.batch_stats, (*path, name)) for name in ("u", "sigma"))
        w, state = param[...], SpectralState(u[...], sigma[...])
        target = self.dtype or inexact_dtype(w, state.u)
        options = {"n_steps": self.n_steps, "epsilon": self.epsilon, "update": update_stats}
        w_hat, state = spectral_norm(w.astype(compute_dtype(w.dtype, target)), state, **options)
        if update_stats:
            u.set_value(state.u)
            sigma.set_value(state.sigma)
        return w_hat.astype(target)


def _params(layer):
    return nnx.to_flat_state(nnx.state(layer, nnx.Param))


def _kept_for(path, table, key):
    """What the wrapper keeps for the weight at ``path``."""
    if key not in table:
        raise ValueError(
            f"the layer has a weight {'/'.join(map(str, path))} that it did not have when it was "
            "wrapped. Wrap it again after its parameters have changed."
        )
    return table[key]


def _call(layer, normalized: Callable[..., jax.Array | None], args, kwargs):
    """Call a copy of ``layer`` with the parameters ``normalized(path, param)``, where not None."""
    graph, state = nnx.split(layer)

    def leaf(path, v):
        value = normalized(path, v) if isinstance(v, nnx.Param) else None
        return v if value is None else v.replace(value)

    # Variables that are not replaced are shared: what the copy writes is written in the layer.
    given = {path: leaf(path, v) for path, v in nnx.to_flat_state(state)}
    copy = nnx.merge(graph, nnx.from_flat_state(given.items()))
    y = copy(*args, **kwargs)
    after = nnx.to_flat_state(nnx.state(copy))
    new = [(path, v) for path, v in after if path not in given or v is not given[path]]
    if new:
        nnx.update(layer, nnx.from_flat_state(new))
    return y
