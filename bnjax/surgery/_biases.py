"""Drop biases that a batch norm right after them takes out again."""

from __future__ import annotations

from typing import Any

from bnjax._variables import name, refuse_shapes
from bnjax.surgery._arrays import double, narrow
from bnjax.surgery._changes import BiasAsStored
from bnjax.surgery._models import Model, alter
from bnjax.surgery._neighbours import LeftAlone, Neighbours
from bnjax.surgery._outcome import Outcome, verified
from bnjax.surgery._pairs import chosen


def drop_redundant_biases(
    model: Model, variables: Any, *args: Any, layers: str = "", **kwargs: Any
) -> Outcome:
    r"""Drop the biases of dense layers and convolutions right before a batch norm.

    .. math::
        (W x + b) - \mu = W x - (\mu - b)

    The batch mean contains the bias, so in training it changes nothing and has no gradient but
    rounding errors; weight decay moves it all the same. Here the bias goes, and out of the running
    mean too, so that evaluation stays the same as well.

    Args:
      model, variables, args, kwargs: as of :func:`find_pairs`; training mode will do too.
      layers: regular expression to be found in the path of a layer with a bias; by default all.

    Returns:
      :class:`Outcome`. Optimizer states of the dropped biases are to be dropped too.

    Raises:
      ValueError, TypeError: as :func:`fold`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from bnjax.surgery import drop_redundant_biases
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> model = nn.Sequential([nn.Dense(3), norm, nn.Dense(1)])
      >>> x = jnp.ones((2, 4))
      >>> dropped = drop_redundant_biases(model, model.init(jax.random.key(0), x), x)
      >>> print(dropped.changed, dropped.left_alone)
      {('layers_0',): 'bias into the mean of layers_1'} {('layers_2',): 'output goes to the output'}

    Source: Ioffe & Szegedy (2015), §3.2: "the bias b can be ignored". Flax's and PyTorch's layers
    have one unless told otherwise.
    """
    neighbours = Neighbours(model, variables, args, kwargs)
    flat = dict(neighbours.flat)
    refuse_shapes(flat)
    changed, left_alone = {}, {}
    biased = [p[1:-1] for p in flat if p[0] == "params" and (*p[:-1], "kernel") in flat]
    biased = [path for path in dict.fromkeys(biased) if ("params", *path, "bias") in flat]
    for path in chosen(biased, layers):
        try:
            norm = neighbours.norm_after(path)
        except LeftAlone as why:
            left_alone[path] = str(why)
            continue
        mean, bias = flat["batch_stats", *norm, "mean"], flat.pop(("params", *path, "bias"))
        moved = narrow(double(mean) - double(bias), mean, "mean without bias")
        flat["batch_stats", *norm, "mean"] = moved
        changed[path] = f"bias into the mean of {name(norm)}"
    after = alter(model, variables, flat, dict.fromkeys(changed, BiasAsStored(False)))
    difference = verified((model, variables), after, args, kwargs, neighbours.wiring.eps)
    return Outcome(*after, changed, left_alone, difference)
