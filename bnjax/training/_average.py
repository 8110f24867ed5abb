"""Averages of the variables along a training run (EMA, SWA), running statistics among them."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from bnjax._variables import in_containers_of

V = TypeVar("V")


def average_variables(average: V, variables: Any, step_size: float | jax.Array) -> V:
    r"""Move an average of a model's variables towards its present ones.

    .. math::
        \bar\theta \leftarrow \bar\theta + s\, (\theta - \bar\theta)

    with :math:`s` = ``step_size``, for parameters and running statistics alike; counts, random
    streams and other leaves that are not floating point are taken from ``variables`` as they are.

    * exponential average (EMA): a constant :math:`s` = 1 - decay, 0.001 say;
    * stochastic weight averaging (SWA): :math:`s = 1/(n+1)` for the model after the ``n`` before.

    **Averaged along, or recalibrated?** An average of statistics is that of the *models'*
    activations, not the activations' of the average model. The two are close while the models of
    the average are: an EMA over the last per cent of a run at a small learning rate may take its
    statistics along, at no cost. They part where the models differ, in SWA over epochs of a
    cyclic learning rate, or in a soup of fine-tuned models: averaging then cancels a part of the
    activations, whose variance is *less* than the average variance, so run
    :func:`bnjax.training.recalibrate` over some thousand examples, once, before the average is
    evaluated. When in doubt recalibrate, and compare: it is never worse but for its noise.

    Args:
      average: average so far; first a copy of ``variables``. Keep it in float32 where parameters
        are in half precision, which would lose steps smaller than 1/256 of a value.
      variables: present variables, the same leaves at the same paths: linen's dict, an
        ``nnx.State``, or any other; layers may be frozen in one and not in the other.
      step_size: weight of the present variables; a scalar array for a schedule under ``jax.jit``.

    Returns:
      The new average, in its own dtypes and its own structure.

    Example:
      >>> import jax.numpy as jnp
      >>> from bnjax.training import average_variables
      >>> average = model = {"mean": jnp.zeros(2), "count": jnp.array(0)}
      >>> for n in (1, 2):
      ...     model = {"mean": model["mean"] + 3, "count": model["count"] + 1}
      ...     average = average_variables(average, model, 1 / (n + 1))
      >>> print(average["mean"], average["count"])
      [3. 3.] 2

    Source: Polyak & Juditsky (1992); Izmailov et al. (2018), *Averaging weights leads to wider
    optima*, Algorithm 1 and its last line on batch norm. ``optax.incremental_update`` is the same
    for floating leaves alone, and in their own precision; PyTorch's ``AveragedModel`` copies the
    statistics of the last model unless ``use_buffers`` is set.
    """

    def move(old, new):
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return new
        return old + jnp.asarray(step_size, old.dtype) * (jnp.asarray(new, old.dtype) - old)

    return jax.tree.map(move, average, in_containers_of(average, variables))
