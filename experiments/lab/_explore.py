"""The loss and its gradient around some weights: along the gradient, and after other layers move.

Of `experiments.lab.landscape`; Santurkar et al. (2018), Fig. 4 and Definition 2.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.loop import Metrics

LossAndGrad = Callable[[Any], tuple[jax.Array, Any]]


def along_gradient(loss_and_grad: LossAndGrad, params: Any, grads: Any, etas: jax.Array) -> Metrics:
    """Range of the loss, largest change of the gradient, and its largest slope (effective beta).

    Args:
      loss_and_grad: of parameters.
      params, grads: where to start, and the gradient there.
      etas: (points,) steps along it.

    Returns:
      `loss_low`, `loss_high`, `change` and `beta`.
    """

    def at(eta: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, there = loss_and_grad(step(params, grads, eta))
        return loss, optax.tree.norm(optax.tree.sub(there, grads))

    losses, changes = jax.lax.map(at, etas)
    return {
        "loss_low": losses.min(),
        "loss_high": losses.max(),
        "change": changes.max(),
        "beta": (changes / (etas * optax.tree.norm(grads))).max(),
    }


def covariate_shift(
    loss_and_grad: LossAndGrad,
    params: Any,
    grads: Any,
    rate: jax.Array,
    layer: Any,
    kernels: Callable[[Any], list[jax.Array]],
) -> Metrics:
    """Change of each layer's gradient by the step of the layers before it, mean over layers.

    Args:
      loss_and_grad, params, grads: as above.
      rate: learning rate of the step.
      layer: a tree like `params` that tells of each entry the layer it belongs to, from 0 at the
        input; each leaf broadcasts to the parameter.
      kernels: of a tree like `params`, the weights of every layer, from the input on, in arrays
        (layers, numbers).

    Returns:
      `shift`, the l2 distance of both gradients, and `shift_cosine`, that of their angle.
    """
    taken, before = step(params, grads, rate), kernels(grads)

    def compare(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of all layers, once those before layer `i` have moved."""
        mixed = jax.tree.map(lambda of, new, now: jnp.where(of < i, new, now), layer, taken, params)
        after = kernels(loss_and_grad(mixed)[1])
        pairs = list(zip(before, after, strict=True))
        cosine = optax.losses.cosine_similarity
        distances = jnp.concatenate([jnp.linalg.norm(a - b, axis=1) for a, b in pairs])
        return distances, jnp.concatenate([cosine(a, b) for a, b in pairs])

    of = jnp.arange(1, sum(map(len, before)))  # before the first layer there is none
    distances, cosines = jax.lax.map(compare, of)
    return {
        "shift": distances[of - 1, of].mean(),
        "shift_cosine": cosines[of - 1, of].mean(),
    }


def step(params: Any, grads: Any, eta: jax.Array) -> Any:
    """The parameters after a step of gradient descent."""
    return jax.tree.map(lambda p, g: p - eta * g, params, grads)
