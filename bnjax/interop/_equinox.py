"""Models and states of Equinox as variables, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.interop import _mapping
from bnjax.interop._equinox_averages import averages, evaluated, held
from bnjax.interop._equinox_names import names_of
from bnjax.interop._equinox_parts import Parts, below, parts_of, text
from bnjax.interop._names import Choice, Rename
from bnjax.interop._values import cast, refuse_losses


def from_equinox(
    model: Any,
    state: Any,
    variables: Any,
    rename: Rename = (),
    *,
    channels_first: Choice = None,
    ignore: str | None = None,
) -> Any:
    r"""Variables with the weights and running statistics of an Equinox model.

    ===========================  =============================  ===========================
    Equinox                      Flax                           how
    ===========================  =============================  ===========================
    ``weight`` of ``Linear``     ``params/kernel``              (out, in) → (in, out)
    ``weight`` of convolutions   ``params/kernel``              OIHW → HWIO
    their ``bias``               ``params/bias``                axes of one dropped
    ``weight`` of norms          ``params/scale``               as it is, or CHW → HWC
    ``bias`` of norms            ``params/bias``                as it is, or CHW → HWC
    ``weight`` of ``Embedding``  ``params/embedding``           as it is
    statistics of ``BatchNorm``  ``batch_stats/mean``, ``var``  as it evaluates with them
    counter of ``mode="batch"``  ``batch_stats/count``          dropped where there is none
    ``MultiheadAttention``       ``query``, ``key``, ...        features by head
    ===========================  =============================  ===========================

    Equinox's layers see one example with its channels first, Flax's a batch with its channels
    last. All other arrays are parameters of the same name. Layers that were stacked by
    ``filter_vmap`` keep their leading axis, as those under ``nn.scan`` have it.

    The layer that trains on as ``BatchNorm(mode="batch")`` does is ``BatchNorm(momentum=momentum,
    epsilon=eps, debias=True)``, whose ``count`` is needed for it; Equinox debiases the variance as
    if it had started at 0, though it starts at 1, and what that leaves behind is taken along.
    ``mode="ema"`` normalises by its running statistics in training too, which is no batch norm of
    Flax's: the layer evaluates the same, and its ``count`` is left at 0, which beside statistics
    means an unknown number of updates. See :func:`batch_norm_options`.

    Args:
      model, state: of ``eqx.nn.make_with_state``; the state may be None where no layer has one, or
        where the model still holds the initial values.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. Other collections are carried along.
      rename: pairs (regular expression, replacement) and functions from a path to the new one,
        applied in turn to the path of each layer, such as ``"blocks.0.norm"``; or one such
        function. Dots that are left separate the path.
      channels_first: regular expression, found in the paths of the layer norms over several axes
        whose channels come first in Equinox and last in Flax; the axes of all others keep their
        order. False if there is none. Needed where the sizes are equal; None goes by the shapes.
      ignore: regular expression; names and leaves in which it is found are left as they are.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to, mis-shaped and doubtful names; or all
        values that do not fit into the dtype of their leaf; or all leaves that nothing fills, and
        that are a ``jax.ShapeDtypeStruct`` without a value to be left at; or ``model`` is one half
        of ``eqx.partition``; or ``state`` is of another model, missing, or used up.
      TypeError: ``model`` or ``state`` is of another kind.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp
      >>> from bnjax.interop import from_equinox
      >>> from bnjax.linen import BatchNorm
      >>> theirs, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode="batch")
      >>> call = jax.vmap(theirs, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
      >>> _, state = call(jnp.array([[1.0, 2.0], [3.0, 6.0]]), state)
      >>> norm = BatchNorm(momentum=0.99, debias=True, use_running_average=True)
      >>> variables = jax.eval_shape(norm.init, jax.random.key(0), jnp.ones((1, 2)))
      >>> stats = from_equinox(theirs, state, variables)["batch_stats"]
      >>> print(stats["mean"].round(3), stats["count"])
      [2. 4.] 1

    Source: ``eqx.nn.BatchNorm`` and ``eqx.nn.State`` of Equinox 0.13, and as they were in 0.11.
    """
    parts = parts_of(model, state)
    foreign = parts.arrays | _statistics(parts)
    names = names_of(parts, rename, channels_first)
    return _mapping.read(foreign, variables, names, "equinox", ignore)


def to_equinox(
    variables: Any,
    model: Any,
    state: Any,
    rename: Rename = (),
    *,
    channels_first: Choice = None,
    ignore: str | None = None,
) -> tuple[Any, Any]:
    r"""Model and state of Equinox with the values of variables: :func:`from_equinox` backwards.

    A layer without a ``count`` averages plainly, as ``mode="batch"`` does after very many updates:
    its counter is then 2³⁰. Statistics that are still 0 and 1 are those of a new layer.

    Args:
      variables: of linen or nnx.
      model, state: of ``eqx.nn.make_with_state``, or of ``eqx.filter_eval_shape`` of that: which
        names, shapes and dtypes are expected. They are left as they are.
      rename, channels_first: those of :func:`from_equinox`, from Equinox's names to paths.
      ignore: regular expression; names in which it is found, or whose leaves it is found in,
        keep their values.

    Returns:
      ``model, state``.

    Raises:
      ValueError, TypeError: as :func:`from_equinox`.

    Example:
      >>> import equinox as eqx, jax, numpy as np
      >>> from bnjax.interop import to_equinox
      >>> variables = {"params": {"kernel": np.arange(6.0).reshape(3, 2), "bias": np.ones(2)}}
      >>> model, _ = to_equinox(variables, eqx.nn.Linear(3, 2, key=jax.random.key(0)), None)
      >>> print(model.weight)
      [[0. 2. 4.]
       [1. 3. 5.]]

    Source: as :func:`from_equinox`.
    """
    parts = parts_of(model, state)
    foreign = parts.arrays | _statistics(parts)
    names = names_of(parts, rename, channels_first)
    new = _mapping.write(variables, foreign, names, "equinox", ignore)

    def put(path: Any, leaf: Any) -> Any:
        return jnp.asarray(new[text(path)]) if text(path) in new else leaf

    return jax.tree_util.tree_map_with_path(put, model), _new_state(parts, new)


def _statistics(parts: Parts) -> dict[str, Any]:
    """What batch norms evaluate with and all that other layers keep, by name."""
    found = {
        below(path, statistic): x
        for path, norm in parts.norms.items()
        for statistic, x in evaluated(norm, held(norm, parts.state)).items()
    }
    return found | {name: parts.leaves[place] for name, place in parts.others.items()}


def _new_state(parts: Parts, new: Mapping[str, np.ndarray]) -> Any:
    """The state of ``parts`` with the statistics among ``new``."""
    values = {place: (name, new[name]) for name, place in parts.others.items() if name in new}
    for path, norm in parts.norms.items():
        mean, var, count = (new.get(below(path, own)) for own in ("mean", "var", "count"))
        if mean is not None and var is not None:
            places = held(norm, parts.places)
            found = averages(norm, mean, var, count)
            values |= {place: (path, x) for place, x in zip(places, found, strict=True)}
    leaves, losses = list(parts.leaves), []
    for place, (name, x) in values.items():
        old = leaves[place]
        x, loss = cast(np.broadcast_to(x, old.shape), old.dtype)
        leaves[place] = jnp.asarray(x)
        losses += [f"{name}: {loss}"] if loss else []
    refuse_losses(losses)
    return jax.tree.unflatten(jax.tree.structure(parts.state), leaves)
